"""The browser's side of a session with the review page, without a browser."""

from typing import Any

from fastapi.testclient import TestClient
from httpx import Response

PORT = 8123
ORIGIN = f"http://127.0.0.1:{PORT}"


class Browser:
    """A client that is let in, and that posts as a page of the server does."""

    def __init__(self, app: Any, token: str) -> None:
        self.client = TestClient(app, base_url=ORIGIN, raise_server_exceptions=True)
        assert self.client.get(f"/?token={token}").status_code == 200

    def get(self, url: str) -> str:
        answer = self.client.get(url)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, url: str, /, **form: str) -> Response:
        return self.client.post(url, data=form, headers={"origin": ORIGIN}, follow_redirects=False)
