"""The review page in a real browser: judged by keyboard, corrected, exported, by two at once."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_chromium import Open, chromium_pages
from review_server import links, started
from reviewed_run import HOSTILE, commit, make_run, prompt_row, response_rows

from charactertrain import reviews
from charactertrain.records import Response, ReviewEvent, to_table
from charactertrain.storage import Directory

pytestmark = pytest.mark.slow


@pytest.fixture(name="chromium", scope="module")
def browser_opener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """What a page complains of fails the test."""
    complaints: list[str] = []
    with chromium_pages(lambda: tmp_path_factory.mktemp("profile"), complaints) as opener:
        yield opener
    # Answers with 403 and 404 are asked for, and are no fault of a page.
    assert [each for each in complaints if "Failed to load resource" not in each] == []


@pytest.fixture(name="served", scope="module")
def served_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Directory, list[str]]]:
    run = make_run(tmp_path_factory.mktemp("served") / "run", num_prompts=24)
    names = ("Ada", "Ben", "Cleo", "Dora")
    with started(run, *(part for name in names for part in ("--reviewer", name))) as server:
        yield run, list(links(server.stdout, len(names)))


def enter(page: Any, link: str) -> str:
    """Open a link; where the server is."""
    page.goto(link)
    page.wait_for_selector("main h1")
    assert "token" not in page.url
    return str(page.url).rstrip("/")


def press(page: Any, key: str) -> None:
    """A key that leads to another page."""
    with page.expect_navigation():
        page.keyboard.press(key)


def said_by(run: Directory, reviewer: str) -> list[ReviewEvent]:
    events = reviews.read_events(run.path("reviews"))
    return [event for event in events if event.reviewer == reviewer]


KEYS = {
    "1": "left",
    "2": "right",
    "3": "tie",
    "4": "neither",
    "5": "unsure",
    "ArrowLeft": "left",
    "ArrowRight": "right",
    "t": "tie",
    "n": "neither",
    "u": "unsure",
}


def judged_by_keyboard(page: Any, key: str) -> tuple[str, set[str]]:
    """What an event must say of the pair that a key was pressed on: answer or text, and texts."""
    left, right = page.locator(".judge article .said").all_inner_texts()
    press(page, key)
    chosen = {"left": left, "right": right}.get(KEYS[key], KEYS[key])
    return chosen, {reviews.text_checksum(left), reviews.text_checksum(right)}


def test_ten_pairs_are_judged_by_keyboard_and_a_ranking_is_overridden(
    chromium: Open, served: tuple[Directory, list[str]]
) -> None:
    run, all_links = served
    page = chromium()
    base = enter(page, all_links[0])
    page.keyboard.press("g")
    press(page, "j")
    expected = [judged_by_keyboard(page, key) for key in KEYS]
    events = said_by(run, "Ada")
    assert len(events) == 10
    for event, (chosen, checksums) in zip(events, expected, strict=True):
        assert {event.first_checksum, event.second_checksum} == checksums
        of_answer = {"first": event.first_checksum, "second": event.second_checksum}
        given = of_answer.get(event.answer)
        assert given == reviews.text_checksum(chosen) if given else event.answer == chosen
    # The second pair of a ranking, against what the ranker says, and the third after it.
    page.goto(f"{base}/prompt?id=p1")
    for key in ("j", "j"):
        page.keyboard.press(key)
    press(page, "2")
    assert "current" in page.locator("#pair-2-3").get_attribute("class")
    press(page, "3")
    page.reload()
    assert "people 0.00" in page.locator("#pair-1-3").inner_text()
    assert "people 0.50" in page.locator("#pair-2-3").inner_text()
    page.keyboard.press("g")
    press(page, "l")
    press(page, "s")
    exported = reviews.read_events(run.path("reviews/reviews.parquet"))
    assert exported == reviews.read_events(run.path("reviews"))
    overrides = [event for event in exported if event.prompt_id == "p1" and not event.left_id]
    assert [(e.first_id, e.second_id, e.answer) for e in overrides] == [
        ("p1-a", "p1-b", "second"),
        ("p1-b", "p1-c", "tie"),
    ]


def test_two_reviewers_judge_at_once(chromium: Open, served: tuple[Directory, list[str]]) -> None:
    run, all_links = served
    pages = [chromium(), chromium()]
    for page, link in zip(pages, all_links[1:3], strict=True):
        base = enter(page, link)
        page.goto(f"{base}/judge")
    expected: dict[str, list[Any]] = {"Ben": [], "Cleo": []}
    for turn in range(6):
        for page, (name, found) in zip(pages, expected.items(), strict=True):
            found.append(judged_by_keyboard(page, "1" if name == "Ben" or turn % 2 else "2"))
    for name, found in expected.items():
        events = said_by(run, name)
        assert [{e.first_checksum, e.second_checksum} for e in events] == [c for _, c in found]
    base = re.sub("/judge$", "", pages[0].url)
    pages[0].goto(f"{base}/agreement")
    assert "Ben, Cleo" in pages[0].inner_text("main")
    # A link that was used is no way in, and neither is the address alone.
    other = chromium()
    for url in (all_links[1], base, f"{base}/static/style.css"):
        assert other.goto(url).status == 403


def test_keys_are_listed_and_work_without_a_mouse(
    chromium: Open, served: tuple[Directory, list[str]]
) -> None:
    run, all_links = served
    page = chromium()
    base = enter(page, all_links[3])
    page.goto(f"{base}/judge")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    assert "Take back" not in page.inner_text("#help")
    page.keyboard.press("1")
    page.keyboard.press("?")
    assert not page.locator("#help").is_visible()
    assert said_by(run, "Dora") == []
    page.keyboard.press("m")
    page.keyboard.type("1 t n: keys are letters in a note")
    page.keyboard.press("Escape")
    press(page, "2")
    assert [event.note for event in said_by(run, "Dora")] == ["1 t n: keys are letters in a note"]
    press(page, "z")
    assert [event.answer for event in said_by(run, "Dora")][1:] == ["withdrawn"]
    page.keyboard.press("g")
    press(page, "e")
    assert page.url.endswith("/list/responses")
    page.keyboard.press("/")
    page.keyboard.type("lovely")
    press(page, "Enter")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    press(page, "Enter")
    assert "/prompt?id=p0" in page.url
    # A narrow window needs no scrolling sideways.
    page.set_viewport_size({"width": 360, "height": 740})
    for url in ("/", "/judge", "/prompt?id=p1", "/list/responses", "/agreement", "/trait?id=brief"):
        page.goto(f"{base}{url}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, url


def test_hostile_texts_do_nothing_in_a_browser(chromium: Open, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_prompts=2)
    shutil.rmtree(run.path("responses"))
    rows = [row for n in range(2) for row in response_rows(prompt_row(n), (HOSTILE,) * 3)]
    commit(run, "responses", [("responses/part-000000.parquet", to_table(rows, Response))])
    with started(run, "--reviewer", "Ada") as server:
        (link,) = links(server.stdout, 1)
        page = chromium()
        base = enter(page, link)
        for url in ("/list/responses", "/prompt?id=p0", "/judge", "/naming"):
            page.goto(f"{base}{url}")
            assert "hacked" not in page.title()
            assert page.locator("img").count() == 0
            assert page.locator("script").count() == 1
            assert "<script>document.title='hacked'</script>" in page.inner_text("main")
