"""Reviews: the latest word of each counts, texts must be those that were seen, nothing is lost."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from ranking_rows import RANKING

from charactertrain import reviews
from charactertrain.exceptions import ConfigError
from charactertrain.records import Response, ReviewEvent
from charactertrain.review.store import ReviewStore
from charactertrain.reviews import Verdict, decide, review_of_ranking, text_checksum
from charactertrain.storage import open_directory

TEXTS = {"a": "No.", "b": "To tell the truth, no.", "c": "It is green and quite long."}
KEY = ("honest", "a", "b")


def event(number: int, **values: str) -> ReviewEvent:
    usual = {field.name: "" for field in fields(ReviewEvent)}
    usual |= {"event_id": f"e{number}", "at": "2026-11-28T00:00:00+00:00", "reviewer": "Ada"}
    return ReviewEvent(**{**usual, "kind": "verdict", **values})  # type: ignore[arg-type]


def verdict(number: int, answer: str, reviewer: str = "Ada", pair: str = "ab") -> ReviewEvent:
    first, second = pair
    return event(
        number,
        answer=answer,
        reviewer=reviewer,
        trait_id="honest",
        prompt_id="p1",
        first_id=first,
        second_id=second,
        first_checksum=text_checksum(TEXTS[first]),
        second_checksum=text_checksum(TEXTS[second]),
    )


def drop(number: int, verb: str = "drop", **values: str) -> ReviewEvent:
    usual = {"prompt_id": "p1", "trait_id": "honest", "note": "rude"}
    if "first_id" in values:
        usual |= {"kind": f"{verb}_response", "first_checksum": text_checksum(TEXTS["c"])}
    else:
        usual |= {"kind": f"{verb}_prompt"}
        usual |= {"first_checksum": text_checksum("Do you like my scarf?")}
    return event(number, **{**usual, **values})


@pytest.fixture(name="by_id")
def responses_by_id(responses: list[Response]) -> dict[str, Response]:
    return {response.response_id: response for response in responses}


def only_verdict(events: list[ReviewEvent]) -> Verdict:
    ((found,),) = decide(events).verdicts.values()
    return found


def test_votes_are_shared_out_with_ties_as_halves() -> None:
    events = [verdict(0, "first"), verdict(1, "tie", "Ben"), verdict(2, "second", "Cleo")]
    assert only_verdict(events).probability == 0.5
    assert only_verdict(events[:2]).probability == 0.75
    assert only_verdict(events[:1]).probability == 1.0
    assert only_verdict(events).votes == {"Ada": 1.0, "Ben": 0.5, "Cleo": 0.0}


@pytest.mark.parametrize("answer", ["neither", "unsure"])
def test_a_later_word_of_the_same_reviewer_replaces_the_earlier(answer: str) -> None:
    assert only_verdict([verdict(0, "first"), verdict(1, "second")]).probability == 0.0
    assert not decide([verdict(0, "first"), verdict(1, answer)])


def test_a_withdrawn_word_leaves_the_one_before_it() -> None:
    events = [verdict(0, "first"), verdict(1, "second"), verdict(2, "withdrawn")]
    assert only_verdict(events).probability == 1.0
    assert not decide([*events, verdict(3, "withdrawn"), verdict(4, "withdrawn")])


def test_what_is_dropped_can_be_restored() -> None:
    dropped = decide([drop(0, first_id="c"), drop(1)])
    assert dropped.dropped_responses.keys() == {"c"}
    assert dropped.dropped_prompts.keys() == {"p1"}
    assert not decide([drop(0, first_id="c"), drop(1, "restore", first_id="c")])


def test_decisions_apply_to_the_texts_that_were_seen(by_id: dict[str, Response]) -> None:
    decisions = decide([verdict(0, "first"), verdict(1, "tie", pair="bc"), drop(2, first_id="c")])
    found = review_of_ranking(decisions, RANKING, by_id)
    assert found.probabilities == {("a", "b"): 1.0, ("b", "c"): 0.5}
    assert found.probability("a", "b") == 1.0
    assert found.probability("b", "a") == 0.0
    assert found.probability("a", "c") is None
    assert found.dropped == {"c": "response c was dropped by Ada: rude"}
    assert found.applied == reviews.decision_names(decisions).keys()


@pytest.mark.parametrize("changed", ["a", "b"])
def test_another_text_under_the_same_id_is_not_what_was_judged(
    by_id: dict[str, Response], changed: str
) -> None:
    by_id[changed] = replace(by_id[changed], text="Another.")
    found = review_of_ranking(decide([verdict(0, "first")]), RANKING, by_id)
    assert (found.probabilities, found.applied) == ({}, frozenset())


def test_a_verdict_for_another_trait_is_not_applied(by_id: dict[str, Response]) -> None:
    found = review_of_ranking(
        decide([verdict(0, "first")]), replace(RANKING, trait_id="curious"), by_id
    )
    assert found.probabilities == {}


def test_a_dropped_prompt_drops_all_responses_to_its_text(by_id: dict[str, Response]) -> None:
    assert review_of_ranking(decide([drop(0)]), RANKING, by_id).dropped.keys() == set("abc")
    other = {key: replace(value, prompt="Another?") for key, value in by_id.items()}
    assert review_of_ranking(decide([drop(0)]), RANKING, other).dropped == {}


def test_the_directory_and_its_export_are_the_same_events(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    events = [verdict(0, "first"), event(1, kind="naming", answer="none"), drop(2)]
    for each in events:
        store.append(each)
    store.export()
    exported = tmp_path / "reviews" / "reviews.parquet"
    assert reviews.read_events(str(tmp_path / "reviews")) == events
    assert reviews.read_events(str(exported)) == events
    assert reviews.checksum(str(exported)) == reviews.checksum(str(tmp_path / "reviews"))
    # What a trait was taken for decides nothing about pairs.
    bearing = [events[0], events[2]]
    assert reviews.events_until(str(exported), reviews.checksum(str(exported))) == bearing
    store.close()


def test_the_same_events_give_the_same_bytes(tmp_path: Path) -> None:
    stores = [ReviewStore(tmp_path / name) for name in ("one", "two")]
    for store in stores:
        for each in (verdict(0, "first"), verdict(1, "tie", "Ben")):
            store.append(each)
        store.export()
    first, second = (store.directory.read_bytes("reviews.parquet") for store in stores)
    assert first == second


def test_a_run_reads_the_events_that_it_was_planned_with(tmp_path: Path) -> None:
    store, where = ReviewStore(tmp_path), str(tmp_path / "reviews")
    planned = reviews.checksum(where)
    assert reviews.events_until(where, planned) == []
    store.append(verdict(0, "first"))
    then = reviews.checksum(where)
    store.append(verdict(1, "second"))
    assert reviews.events_until(where, planned) == []
    assert reviews.events_until(where, then) == [verdict(0, "first")]
    assert len({planned, then, reviews.checksum(where)}) == 3


def test_events_that_were_changed_are_refused(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path))
    directory.write_table("reviews.parquet", reviews.export_table([verdict(0, "first")]))
    planned = reviews.checksum(str(tmp_path))
    directory.write_table("reviews.parquet", reviews.export_table([verdict(0, "second")]))
    with pytest.raises(ConfigError, match="no longer begins with the events"):
        reviews.events_until(str(tmp_path), planned)


def test_what_is_no_review_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*reviews\.parquet"):
        reviews.read_events(str(tmp_path))
    (tmp_path / "reviews.sqlite").write_bytes(b"not a database, but long enough to be looked at")
    with pytest.raises(ConfigError, match="cannot be read"):
        reviews.read_events(str(tmp_path))
    (tmp_path / "reviews.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(ConfigError, match="cannot be read"):
        reviews.read_events(str(tmp_path / "reviews.parquet"))
