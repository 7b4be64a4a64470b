"""A reviewed run, and the browser's side of a session with it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from reviewed_run import make_run

from charactertrain.records import ReviewEvent
from charactertrain.review.app import make_app
from charactertrain.review.security import Access
from charactertrain.review.store import ReviewStore
from charactertrain.storage import Directory

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
        return self.client.post(
            url, data=form, headers={"origin": ORIGIN}, follow_redirects=False
        )


@pytest.fixture(name="run")
def reviewed_run(tmp_path: Path) -> Directory:
    return make_run(tmp_path / "run")


@pytest.fixture(name="store")
def review_store(run: Directory) -> Iterator[ReviewStore]:
    store = ReviewStore(run.local_path)
    yield store
    store.close()


@pytest.fixture(name="access")
def open_access() -> Access:
    return Access()


@pytest.fixture(name="app")
def guarded_app(run: Directory, store: ReviewStore, access: Access) -> Any:
    return make_app(run, store, access, port=PORT)


@pytest.fixture(name="enter")
def browser_maker(app: Any, access: Access) -> Callable[[str], Browser]:
    return lambda name: Browser(app, access.invite(name))


@pytest.fixture(name="browser")
def adas_browser(enter: Callable[[str], Browser]) -> Browser:
    return enter("Ada")


@pytest.fixture(name="verdict")
def verdict_maker() -> Callable[..., ReviewEvent]:
    """Makes events; only what a test is about needs to be given."""

    def make(event_id: str, **values: str) -> ReviewEvent:
        blank = {name: "" for name in ReviewEvent.__dataclass_fields__}
        usual = {"at": "2026-11-28T00:00:00.000+00:00", "reviewer": "Ada", "kind": "verdict"}
        return ReviewEvent(**{**blank, "event_id": event_id, **usual, **values})  # type: ignore[arg-type]

    return make
