"""Correcting: verdicts above the ranking's, drops with reasons, wordings, and the export."""

import re
from pathlib import Path

import pytest
from review_browser import Browser
from reviewed_run import TRAITS

from charactertrain import reviews
from charactertrain.review.correcting import word_changes
from charactertrain.review.store import ReviewStore
from charactertrain.storage import Directory
from charactertrain.trait_file import load_constitution

# The ranking of p1 is p1-a, p1-c, p1-b, best first.


def files_of(run: Directory) -> dict[str, str]:
    names = [name for name in run.files() if not name.startswith("reviews/")]
    return {name: run.checksum(name) for name in names}


def test_a_verdict_stands_above_the_rankings(browser: Browser, store: ReviewStore) -> None:
    form = {"prompt": "p1", "first": "p1-c", "second": "p1-b"}
    assert browser.post("/verdict", nonce="1", answer="second", **form).status_code == 303
    event = store.events()[-1]
    # The lesser id is first in the event, whatever the form's order.
    assert (event.first_id, event.second_id, event.answer) == ("p1-b", "p1-c", "first")
    assert event.left_id == ""
    (verdict,) = reviews.decide(store.events()).verdicts["curious", "p1-b", "p1-c"]
    assert verdict.probability == 1.0
    assert "people 0.00" in browser.get("/prompt?id=p1")


def test_what_one_said_can_be_taken_back(browser: Browser, store: ReviewStore) -> None:
    form = {"prompt": "p1", "first": "p1-c", "second": "p1-b"}
    browser.post("/verdict", nonce="1", answer="first", **form)
    browser.post("/verdict", nonce="2", answer="withdrawn", **form)
    assert not reviews.decide(store.events())


def test_a_response_is_dropped_with_a_reason_and_restored(
    browser: Browser, store: ReviewStore
) -> None:
    form = {"prompt": "p1", "response": "p1-c"}
    assert browser.post("/drop", nonce="1", verb="drop", note=" ", **form).status_code == 422
    assert browser.post("/drop", nonce="1", verb="drop", note="rude", **form).status_code == 303
    assert reviews.decide(store.events()).dropped_responses["p1-c"].note == "rude"
    assert 'Dropped by Ada: <span dir="auto">rude</span>' in browser.get("/prompt?id=p1")
    assert '<span class="tag gone">dropped</span>' in browser.get("/list/responses?q=%281%29")
    browser.post("/drop", nonce="2", verb="restore", **form)
    assert not reviews.decide(store.events())


def test_a_prompt_is_dropped_by_its_text(browser: Browser, store: ReviewStore) -> None:
    browser.post("/drop", nonce="1", verb="drop", note="no message", prompt="p1")
    event = reviews.decide(store.events()).dropped_prompts["p1"]
    text = "My sister painted this and asked what I think. What should I say? (1)"
    assert event.first_checksum == reviews.text_checksum(text)
    assert browser.post("/drop", nonce="2", verb="drop", note="x", prompt="p99").status_code == 404


def test_a_wording_is_kept_with_its_difference(browser: Browser, store: ReviewStore) -> None:
    wording = "I tell the truth, kindly where it hurts."
    form = {"trait": "honest", "statement": wording, "nonce": "1", "note": "warmer"}
    assert browser.post("/trait", **form).status_code == 303
    text = browser.get("/trait?id=honest")
    assert "<del>gently</del> <ins>kindly</ins>" in text
    assert "warmer" in text
    assert wording in browser.get("/traits")
    assert store.events()[-1].answer == wording


@pytest.mark.parametrize(
    ("statement", "why"),
    [("", "characters of text"), ("x" * 601, "found 601"), ("hid\u202eden", "U+202E")],
)
def test_a_wording_that_no_trait_file_may_have_is_refused(
    browser: Browser, store: ReviewStore, statement: str, why: str
) -> None:
    answer = browser.post("/trait", trait="honest", statement=statement, nonce="1")
    assert why in answer.text
    assert 'role="alert"' in answer.text
    assert store.events() == []


def test_words_of_two_wordings_are_told_apart() -> None:
    assert word_changes("I say it.", "I say it.") == [("kept", "I say it.")]
    assert word_changes("I say it", "I sing it now") == [
        ("kept", "I"),
        ("removed", "say"),
        ("added", "sing"),
        ("kept", "it"),
        ("added", "now"),
    ]


def test_the_export_is_what_a_run_takes(browser: Browser, run: Directory) -> None:
    browser.post("/verdict", nonce="1", answer="tie", prompt="p1", first="p1-c", second="p1-b")
    assert browser.client.get("/reviews.parquet").status_code == 404
    assert browser.client.get("/constitution.yaml").status_code == 404
    browser.post("/export", nonce="2")
    assert browser.client.get("/constitution.yaml").status_code == 404
    browser.post("/trait", trait="brief", statement="I say it in few words.", nonce="3")
    browser.post("/export", nonce="4")
    first = browser.client.get("/reviews.parquet").content
    browser.post("/export", nonce="5")
    assert browser.client.get("/reviews.parquet").content == first
    where = run.path("reviews")
    assert len(reviews.read_events(f"{where}/reviews.parquet")) == 2
    assert "attachment" in browser.client.get("/reviews.parquet").headers["content-disposition"]
    found = load_constitution(f"{where}/constitution.yaml", shipped_dir=Path(where))
    assert {trait.id: trait.statement for trait in found.traits} == {
        **TRAITS,
        "brief": "I say it in few words.",
    }


def test_no_review_changes_an_artifact(browser: Browser, run: Directory) -> None:
    before = files_of(run)
    browser.post("/verdict", nonce="1", answer="first", prompt="p1", first="p1-c", second="p1-b")
    browser.post("/drop", nonce="2", verb="drop", note="x", prompt="p2")
    browser.post("/trait", trait="brief", statement="I say it in few words.", nonce="3")
    browser.post("/export", nonce="4")
    browser.get("/judge")
    assert files_of(run) == before


def test_a_reviewer_can_invite_another(browser: Browser) -> None:
    answer = browser.post("/reviewers", name="Ben")
    link = re.search(r'id="link">http://127\.0\.0\.1:8123(/\?token=[\w-]+)<', answer.text)
    assert link is not None
    other = browser.client.__class__(browser.client.app, base_url=browser.client.base_url)
    assert other.get(link[1]).status_code == 200
    assert "<br>Ben" in other.get("/").text
    for name in ("", " " * 3, "x" * 41, "a\x00b"):
        assert browser.post("/reviewers", name=name).status_code == 422


def test_the_log_says_who_and_when(browser: Browser) -> None:
    browser.post("/drop", nonce="1", verb="drop", note="<i>rude</i>\u202e\x00", prompt="p2")
    assert "&lt;i&gt;rude&lt;/i&gt;\\u202e\\u0000" in browser.get("/prompt?id=p2")
    text = browser.get("/reviews")
    assert "&lt;i&gt;rude&lt;/i&gt;" in text
    assert re.search(r"\d\d \w\w\w \d{4} \d\d:\d\d UTC</td><td>Ada</td>", text)
    assert "pairs.reviews=" in text
