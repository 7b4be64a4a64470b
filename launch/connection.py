"""Which Jobs API, and with which token."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from charactertrain.exceptions import ConfigError
from charactertrain.storage import without_userinfo


def find_address(given: str | None) -> str:
    """The URL of the head's dashboard, as given or as RAY_ADDRESS says.

    Raises:
        ConfigError: There is none, or it is an address of another kind.
    """
    address = given or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            "no cluster is named: give --address http://host:8265, the dashboard of its head, or "
            "set RAY_ADDRESS to it"
        )
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        is_dashboard = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_dashboard = is_dashboard and (parts.port is None or parts.port > 0)
    except ValueError:
        is_dashboard = False
    if not is_dashboard:
        raise ConfigError(
            f"address {without_userinfo(url)!r}: expected the dashboard of the cluster's head, "
            "such as http://host:8265 or https://host; it serves the Jobs API"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def auth_headers() -> dict[str, str]:
    """The header that RAY_AUTH_MODE=token asks for, from where Ray looks for tokens.

    Raises:
        ConfigError: The mode is `token` and there is no token.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token and path.is_file():
        token = path.read_text().strip()
    if not token:
        raise ConfigError(
            f"RAY_AUTH_MODE is token and there is no token: neither in RAY_AUTH_TOKEN nor in {path}"
            ". Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that has it."
        )
    return {"Authorization": f"Bearer {token}"}
