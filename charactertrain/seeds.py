"""Seeds that depend on what a sample is, never on where or when it is drawn."""

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2**31) that depends on the parts alone.

    The same (run seed, row id, index) gives the same seed on every machine and after every
    retry, so another sharding of the same rows draws the same samples.
    """
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31


def stable_id(*parts: str | int) -> str:
    """A short identifier (16 hexadecimal digits) that depends on the parts alone."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
