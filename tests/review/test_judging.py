"""Judging: blind, on sides drawn by chance, recorded as answered, with honest numbers."""

import re
from collections.abc import Callable

import pytest
from review_browser import Browser
from reviewed_run import TRAITS

from charactertrain.records import ReviewEvent
from charactertrain.review.store import ReviewStore
from charactertrain.reviews import text_checksum

Enter = Callable[[str], Browser]


def fields(text: str, action: str = "/judge") -> dict[str, str]:
    """The hidden fields of a page's form."""
    start = text.index(f'<form method="post" action="{action}"')
    form = text[start : text.index("</form>", start)]
    return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form))


def answer(browser: Browser, given: str, **changes: str) -> dict[str, str]:
    """Judge the next pair; what the form held."""
    form = fields(browser.get("/judge")) | changes
    assert browser.post("/judge", answer=given, **form).status_code == 303
    return form


@pytest.mark.parametrize("given", ["left", "right", "tie", "neither", "unsure"])
def test_a_verdict_is_recorded_as_it_was_given(
    browser: Browser, store: ReviewStore, given: str
) -> None:
    sides = set()
    for _ in range(8):
        form = answer(browser, given, note="so it is")
        event = store.events()[-1]
        is_first_left = form["left"] == event.first_id
        sides.add(is_first_left)
        chosen = {"left": "first", "right": "second"}
        if not is_first_left:
            chosen = {"left": "second", "right": "first"}
        assert event.answer == chosen.get(given, given)
        assert (event.kind, event.reviewer, event.note) == ("verdict", "Ada", "so it is")
        assert event.left_id == form["left"]
        assert (event.first_id, event.second_id) == tuple(sorted((form["first"], form["second"])))
    assert sides == {True, False}


def test_an_event_holds_the_checksums_of_what_was_shown(
    browser: Browser, store: ReviewStore
) -> None:
    text = browser.get("/judge")
    answer(browser, "left")
    event = store.events()[-1]
    shown = {text_checksum(t) for t in re.findall(r'<div class="said " dir="auto">([^<]*)<', text)}
    assert {event.first_checksum, event.second_checksum} <= shown


def test_the_page_tells_nothing_of_what_the_ranker_thinks(browser: Browser) -> None:
    text = browser.get("/judge")
    for word in ("utility", "0.55", "0.9", "contrast", "strong", "mild", "#1"):
        assert word not in text


def test_the_same_page_shows_the_same_sides_until_it_is_answered(browser: Browser) -> None:
    first, second = fields(browser.get("/judge")), fields(browser.get("/judge"))
    assert first.pop("nonce") != second.pop("nonce")
    assert first == second


def test_sides_are_drawn_for_each_reviewer_and_item(enter: Enter) -> None:
    lefts = {}
    for name in ("Ada", "Ben"):
        browser = enter(name)
        forms = [answer(browser, "tie") for _ in range(16)]
        lefts[name] = [form["left"] == form["first"] for form in forms]
        assert 3 <= sum(lefts[name]) <= 13
    assert lefts["Ada"] != lefts["Ben"]


def test_reviewers_are_shown_the_same_pairs(enter: Enter) -> None:
    seen = []
    for name in ("Ada", "Ben"):
        browser = enter(name)
        forms = [answer(browser, "tie") for _ in range(5)]
        seen.append([(form["first"], form["second"], form["way"]) for form in forms])
    assert seen[0] == seen[1]


def test_a_form_that_is_sent_twice_is_one_verdict(browser: Browser, store: ReviewStore) -> None:
    form = fields(browser.get("/judge"))
    for given in ("left", "right"):
        assert browser.post("/judge", answer=given, **form).status_code == 303
    assert len(store.events()) == 1


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"answer": "best"}, 422),
        ({"way": "mine"}, 422),
        ({"left": "p0-z"}, 422),
        ({"second": "p1-a"}, 404),
        ({"prompt": "nowhere"}, 404),
    ],
)
def test_a_form_that_no_page_sends_is_refused(
    browser: Browser, store: ReviewStore, changes: dict[str, str], status: int
) -> None:
    form = {"answer": "left", **fields(browser.get("/judge")), **changes}
    assert browser.post("/judge", **form).status_code == status
    assert store.events() == []


def test_the_last_verdict_can_be_taken_back(browser: Browser, store: ReviewStore) -> None:
    answer(browser, "tie")
    form = answer(browser, "left")
    undo = fields(browser.get("/judge"), "/judge/undo")
    assert browser.post("/judge/undo", **undo).status_code == 303
    assert [event.answer for event in store.events()][-1] == "withdrawn"
    again = fields(browser.get("/judge"))
    assert (again["first"], again["left"]) == (form["first"], form["left"])
    # The same once more, or that of another page: it is not the last any more.
    browser.post("/judge/undo", **undo)
    browser.post("/judge/undo", **(undo | {"nonce": "another"}))
    assert len(store.events()) == 3


def test_one_trait_can_be_judged_alone(browser: Browser, store: ReviewStore) -> None:
    for _ in range(3):
        form = fields(browser.get("/judge?trait=brief"))
        assert form["only_trait"] == "brief"
        browser.post("/judge", answer="left", **form)
    assert {event.trait_id for event in store.events()} == {"brief"}
    assert browser.client.get("/judge?trait=none_such").status_code == 404


def test_what_was_dropped_is_not_shown(browser: Browser) -> None:
    form = fields(browser.get("/judge"))
    browser.post("/drop", nonce="1", verb="drop", prompt=form["prompt"], note="no message")
    assert fields(browser.get("/judge"))["prompt"] != form["prompt"]


def test_when_all_is_judged_the_page_says_so(browser: Browser, store: ReviewStore) -> None:
    for _ in range(60):
        text = browser.get("/judge")
        if "Nothing left to judge" in text:
            break
        browser.post("/judge", answer="left", **fields(text))
    assert "Nothing left to judge" in text
    pairs = {(event.first_id, event.second_id) for event in store.events()}
    assert len(pairs) == 36


def test_a_name_is_recorded_with_how_the_response_was_written(
    browser: Browser, store: ReviewStore
) -> None:
    text = browser.get("/naming")
    form = fields(text, "/naming")
    for trait_id in TRAITS:
        assert f'value="{trait_id}"' in text
    assert browser.post("/naming", answer="none", **form).status_code == 303
    event = store.events()[-1]
    assert (event.kind, event.answer, event.first_id) == ("naming", "none", form["response"])
    variants = {"b": "none", "c": "mild", "a": "strong"}
    assert event.variant == variants[event.first_id.partition("-")[2]]
    assert fields(browser.get("/naming"), "/naming")["response"] != form["response"]
    assert browser.post("/naming", answer="none", **(form | {"response": "x"})).status_code == 404


def test_agreement_is_live(browser: Browser) -> None:
    assert "0 blind verdicts" in browser.get("/agreement")
    answer(browser, "left")
    part = browser.get("/agreement?part=1")
    assert "1 blind verdicts" in part
    assert "<html" not in part


def test_another_reviewer_sees_nothing_of_the_first_ones_count(enter: Enter) -> None:
    ada, ben = enter("Ada"), enter("Ben")
    answer(ada, "left")
    assert '<b class="num">1</b> judged by you' in ada.get("/judge")
    assert '<b class="num">0</b> judged by you' in ben.get("/judge")


def test_events_of_another_process_are_seen(
    browser: Browser, store: ReviewStore, verdict: Callable[..., ReviewEvent]
) -> None:
    other = ReviewStore(store.path.parent.parent)
    other.append(verdict("x", reviewer="Ben", answer="tie", left_id="b", picked_by="random"))
    other.close()
    assert "1 blind verdicts" in browser.get("/agreement")
