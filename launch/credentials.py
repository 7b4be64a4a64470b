"""What looks like a credential, by a file's name or by what stands in it."""

import re
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

_NAMES = (
    ".env",
    ".env.*",
    "*.env",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    ".pypirc",
    ".git-credentials",
    ".htpasswd",
    ".npmrc",
    "auth_token",
    "credentials",
    "credentials.json",
    "kubeconfig",
    "*.kubeconfig",
)
_PUBLIC = ("*.pub", ".env.example", ".env.template", ".env.sample")

_TEXTS = {
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "an access key of AWS": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of the Hugging Face hub": rb"\bhf_[A-Za-z0-9]{34}\b",
    "a token of GitHub": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{60,})",
    "a token of GitLab": rb"\bglpat-[\w-]{20}",
    "a key of Google": rb"\bAIza[\w-]{35}",
    "an API key": rb"\bsk-[\w-]{32,}",
    "a token of Slack": rb"\bxox[abprs]-[\w-]{10,}",
}
_PATTERN = re.compile(b"|".join(b"(%s)" % text for text in _TEXTS.values()))
_KINDS = tuple(_TEXTS)


def looks_secret(name: str, data: bytes) -> str | None:
    """Why the file at the relative path `name` looks like a credential; None where it does not."""
    base = PurePosixPath(name).name.lower()
    is_public = any(fnmatchcase(base, pattern) for pattern in _PUBLIC)
    if not is_public and any(fnmatchcase(base, pattern) for pattern in _NAMES):
        return "its name is that of a credential"
    found = _PATTERN.search(data)
    if found is None:
        return None
    assert found.lastindex is not None, "the pattern has a group for each kind"
    line = data.count(b"\n", 0, found.start()) + 1
    return f"line {line} looks like {_KINDS[found.lastindex - 1]}"
