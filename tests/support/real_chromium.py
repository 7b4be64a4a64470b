"""A real browser for tests of pages, with an empty profile each time."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
Open = Callable[..., Any]


@contextmanager
def chromium_pages(new_profile: Callable[[], Path], complaints: list[str]) -> Iterator[Open]:
    """Opens a browser of its own at each call, with the options of a playwright context.

    Args:
        new_profile: An empty directory at each call.
        complaints: Takes the errors, dialogs and console lines of all pages.
    """
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (extra dev)"
    )
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium on this machine")
    contexts = []
    with playwright.sync_playwright() as driver:

        def open_page(**options: Any) -> Any:
            context = driver.chromium.launch_persistent_context(
                str(new_profile()), executable_path=path, headless=True, args=list(FLAGS), **options
            )
            contexts.append(context)
            page = context.pages[0]
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.on("console", lambda message: complaints.append(message.text))
            return page

        yield open_page
        for context in contexts:
            context.close()
