"""A reviewed run, and the browser's side of a session with it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from review_browser import PORT, Browser
from reviewed_run import make_run

from charactertrain.records import ReviewEvent
from charactertrain.review.app import make_app
from charactertrain.review.security import Access
from charactertrain.review.store import ReviewStore
from charactertrain.storage import Directory


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
        blank = dict.fromkeys(ReviewEvent.__dataclass_fields__, "")
        usual = {"at": "2026-11-28T00:00:00.000+00:00", "reviewer": "Ada", "kind": "verdict"}
        return ReviewEvent(**{**blank, "event_id": event_id, **usual, **values})  # type: ignore[arg-type]

    return make
