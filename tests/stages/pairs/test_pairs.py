"""pairs: the better response first, weights that sum to the trait's, nothing dropped unsaid."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ranking_rows import RANKING
from rich.console import Console

from charactertrain import artifacts, reviews
from charactertrain.artifacts import Identity, Outcome, read_rows
from charactertrain.config import RunConfig
from charactertrain.exceptions import ConfigError, SamplingError
from charactertrain.pipeline import Stage, Work
from charactertrain.records import (
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Reject,
    Response,
    ReviewEvent,
    Trait,
    from_table,
    to_table,
)
from charactertrain.review.store import ReviewStore
from charactertrain.stages.context import Context
from charactertrain.stages.pairs import stage as pairs
from charactertrain.stages.pairs.stage import pairs_from_ranking
from charactertrain.storage import open_directory


@pytest.fixture(name="by_id")
def responses_by_id(responses: list[Response]) -> dict[str, Response]:
    """The responses of the ranking."""
    return {response.response_id: response for response in responses}


def made(
    by_id: dict[str, Response], ranking: Ranking = RANKING, **changes: float
) -> tuple[list[PreferencePair], list[Reject]]:
    options = {"trait_weight": 1.0, "min_probability": 0.5} | changes
    return pairs_from_ranking(ranking, by_id, **options)


def test_every_two_responses_are_a_pair(by_id: dict[str, Response]) -> None:
    found, rejects = made(by_id)
    assert [(pair.chosen_id, pair.rejected_id, pair.probability) for pair in found] == [
        ("b", "c", 0.7),
        ("b", "a", 0.95),
        ("c", "a", 0.8),
    ]
    assert rejects == []
    assert len({pair.pair_id for pair in found}) == 3


def test_a_pair_is_two_conversations_and_where_they_came_from(by_id: dict[str, Response]) -> None:
    (first, *_), _ = made(by_id)
    assert first.prompt == (Message("user", "Do you like my scarf?"),)
    assert first.chosen == (Message("assistant", "To tell the truth, no."),)
    assert first.rejected == (Message("assistant", "It is green and quite long."),)
    assert (first.prompt_id, first.trait_id, first.split) == ("p1", "honest", "train")
    assert (first.chosen_variant, first.rejected_variant) == ("strong", "mild")
    assert (first.chosen_tokens, first.rejected_tokens) == (6, 7)


def test_the_likelier_is_chosen_even_against_the_order_of_the_ranking(
    by_id: dict[str, Response],
) -> None:
    # Utilities order b, c, a, but c was judged better than b: a cycle.
    cycle = replace(RANKING, pair_probabilities=(0.25, 0.95, 0.8))
    (first, *_), _ = made(by_id, cycle)
    assert (first.chosen_id, first.rejected_id, first.probability) == ("c", "b", 0.75)
    assert first.chosen == (Message("assistant", "It is green and quite long."),)
    assert (first.chosen_variant, first.chosen_tokens) == ("mild", 7)


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize(("limit", "count"), [(0.5, 3), (0.75, 2), (0.9, 1)])
def test_weights_of_a_prompt_sum_to_the_weight_of_its_trait(
    by_id: dict[str, Response], weight: float, limit: float, count: int
) -> None:
    found, rejects = made(by_id, trait_weight=weight, min_probability=limit)
    assert (len(found), len(rejects)) == (count, 3 - count)
    assert sum(pair.weight for pair in found) == pytest.approx(weight)
    assert len({pair.weight for pair in found}) == 1


def test_uncertain_pairs_are_rejects(by_id: dict[str, Response]) -> None:
    doubtful = replace(RANKING, pair_probabilities=(0.7, 0.25, 0.3))
    found, rejects = made(by_id, doubtful, min_probability=0.7)
    assert [(pair.chosen_id, pair.rejected_id) for pair in found] == [
        ("b", "c"),
        ("a", "b"),
        ("a", "c"),
    ]
    assert rejects == []
    found, rejects = made(by_id, doubtful, min_probability=0.72)
    assert [(pair.chosen_id, pair.rejected_id) for pair in found] == [("a", "b")]
    assert [(each.stage, each.reason) for each in rejects] == [("pairs", "uncertain")] * 2
    assert [each.detail for each in rejects] == ["probability 0.700 is below 0.72"] * 2


def test_a_ranking_without_a_certain_pair_gives_none(by_id: dict[str, Response]) -> None:
    even = replace(RANKING, pair_probabilities=(0.5, 0.5, 0.5))
    found, rejects = made(by_id, even, min_probability=0.6)
    assert found == []
    assert len(rejects) == 3
    found, _ = made(by_id, even)
    assert [pair.probability for pair in found] == [0.5, 0.5, 0.5]


def test_pair_ids_name_the_two_responses_alone(by_id: dict[str, Response]) -> None:
    plain, _ = made(by_id)
    other, _ = made(by_id, replace(RANKING, pair_probabilities=(0.6, 0.6, 0.6)), trait_weight=9.0)
    assert [pair.pair_id for pair in plain] == [pair.pair_id for pair in other]


MakeWork = Callable[..., Work]


@pytest.fixture(name="make_work")
def work_maker(tmp_path: Path, traits: list[Trait], responses: list[Response]) -> MakeWork:
    """The stage's work on two prompts in three files of responses, one of which is empty."""
    run_directory = open_directory(str(tmp_path))

    def artifact(name: str, *tables: tuple[str, Any]) -> tuple[Any, Any]:
        directory = run_directory.child(name)
        for file, table in tables:
            directory.write_table(file, table)
        return directory, artifacts.commit(
            directory,
            Identity(name, {}, {}),
            Outcome(tuple(file for file, _ in tables)),
            resolved_config={},
            code_version="",
            wall_seconds=0,
        )

    def make_work(split: str) -> Work:
        held_out = [
            replace(each, prompt_id="p2", trait_id="curious", split=cast(Any, split))
            for each in responses
        ]
        other = replace(RANKING, prompt_id="p2", trait_id="curious", split=cast(Any, split))
        files = [f"responses/part-{index:06d}.parquet" for index in range(3)]
        ranked = [f"rankings/part-{index:06d}.parquet" for index in range(2)]
        prompts = [
            Prompt(each.prompt_id, each.trait_id, each.family, "trait", each.prompt, each.split)
            for each in (responses[0], held_out[0])
        ]
        prompts.append(replace(prompts[0], prompt_id="p3", family="honest/a-meal", split="test"))
        inputs = {
            "traits": artifact("traits", ("traits/part-000000.parquet", to_table(traits, Trait))),
            "prompts": artifact(
                "prompts", ("prompts/part-000000.parquet", to_table(prompts, Prompt))
            ),
            "responses": artifact(
                "responses",
                (files[0], to_table(responses, Response)),
                (files[1], to_table([], Response)),
                (files[2], to_table(held_out, Response)),
            ),
            "rankings": artifact(
                "rankings",
                (ranked[0], to_table([RANKING], Ranking)),
                (ranked[1], to_table([other], Ranking)),
            ),
        }
        stage = Stage("pairs", tuple(inputs), {}, {}, "")
        return Work(stage, Identity("pairs", {}, {}), run_directory.child("pairs"), inputs)

    return make_work


def context(config: RunConfig, min_probability: float, **changes: object) -> Context:
    section = config.pairs.model_copy(update={"min_probability": min_probability} | changes)
    changed = config.model_copy(update={"pairs": section})
    session = SimpleNamespace(console=Console(file=io.StringIO()))
    return cast(Context, SimpleNamespace(config=changed, session=session))


def test_the_stage_writes_pairs_and_rejects_of_every_file(
    make_work: MakeWork, smoke_config: RunConfig
) -> None:
    work = make_work("validation")
    outcome = pairs.run(work, context(smoke_config, 0.75))
    assert outcome.rejects == {"uncertain": 2}
    assert outcome.summary["pairs_by_split"] == {"train": 2, "validation": 2}
    assert outcome.summary["mean_probability"] == pytest.approx(0.875)
    assert outcome.summary["pairs_from_file"] == 0
    assert outcome.summary["prompts_by_trait"] == {
        "curious": {"train": 0, "validation": 1},
        "honest": {"train": 1, "validation": 0},
    }
    manifest = artifacts.commit(
        work.directory,
        work.identity,
        outcome,
        resolved_config={},
        code_version="",
        wall_seconds=0,
    )
    assert manifest.rows == {"pairs": 4, "rejects/pairs": 2}
    found = read_rows(work.directory, manifest, "pairs", PreferencePair)
    weights = {pair.trait_id: pair.weight for pair in found}
    assert weights == {"honest": 0.5, "curious": 1.0}


def test_traits_that_are_ablated_leave_no_pair_of_rankings_or_of_a_file(
    make_work: MakeWork, smoke_config: RunConfig, tmp_path: Path
) -> None:
    path = write_rows(
        tmp_path / "own.jsonl",
        own_row(0, trait_id="curious", split="train"),
        own_row(1, trait_id="honest", split="validation"),
        own_row(2, split="train"),
    )
    work = make_work("validation")
    ablated = smoke_config.model_copy(update={"ablate": ("curious",)})
    outcome = pairs.run(work, context(ablated, 0.5, file=path))
    found = {pair.trait_id for part in read_parts(work, outcome) for pair in part}
    assert found == {"honest", "general"}
    assert outcome.summary["ablated"] == ["curious"]


def test_a_split_without_pairs_stops_the_stage(
    make_work: MakeWork, smoke_config: RunConfig
) -> None:
    with pytest.raises(SamplingError, match="no validation pair is left"):
        pairs.run(make_work("train"), context(smoke_config, 0.5))


def own_row(index: int, **keys: object) -> dict[str, object]:
    return {
        "prompt": [{"role": "user", "content": f"Is it so, {index}?"}],
        "chosen": [{"role": "assistant", "content": "I doubt it."}],
        "rejected": [{"role": "assistant", "content": "Sure!"}],
        **keys,
    }


def write_rows(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_parts(work: Work, outcome: Outcome) -> list[list[PreferencePair]]:
    tables = (work.directory.read_table(name) for name in outcome.files if "rejects" not in name)
    return [from_table(table, PreferencePair) for table in tables]


def test_pairs_of_a_file_join_those_of_rankings(
    make_work: MakeWork, smoke_config: RunConfig, tmp_path: Path
) -> None:
    path = write_rows(
        tmp_path / "own.jsonl",
        own_row(0, probability=0.75, split="validation"),
        own_row(1, trait_id="curious", split="train"),
        own_row(1, trait_id="curious", chosen=[{"role": "assistant", "content": "No."}]),
    )
    work = make_work("validation")
    first, _ = read_parts(work, pairs.run(work, context(smoke_config, 0.75)))
    work = make_work("train")
    outcome = pairs.run(work, context(smoke_config, 0.75, file=path))
    assert outcome.files == (
        "pairs/part-000000.parquet",
        "rejects/pairs/part-000000.parquet",
        "pairs/part-000001.parquet",
        "rejects/pairs/part-000001.parquet",
        "pairs/part-000002.parquet",
    )
    again, _, own = read_parts(work, outcome)
    assert again == first
    assert [(pair.trait_id, pair.split, pair.weight) for pair in own] == [
        ("general", "validation", 1.0),
        ("curious", "train", 1.0),
        ("curious", "train", 1.0),
    ]
    assert outcome.rejects == {"uncertain": 2}
    assert outcome.summary["pairs_by_split"] == {"train": 6, "validation": 1}
    # Of b over a and c over a, twice, and of the file.
    assert outcome.summary["mean_probability"] == pytest.approx((2 * (0.95 + 0.8) + 2.75) / 7)
    assert outcome.summary["pairs_from_file"] == 3
    assert outcome.summary["prompts_by_trait"] == {
        "curious": {"train": 2, "validation": 0},
        "general": {"train": 0, "validation": 1},
        "honest": {"train": 1, "validation": 0},
    }


def test_pairs_of_a_file_keep_out_of_the_test_split_of_the_runs_prompts(
    make_work: MakeWork, smoke_config: RunConfig, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "own.jsonl", own_row(0, family="honest/a-meal"))
    with pytest.raises(ConfigError, match="family 'honest/a-meal' is one of this run's test split"):
        pairs.run(make_work("validation"), context(smoke_config, 0.5, file=path))


def test_pairs_of_a_file_take_the_place_of_rankings(
    make_work: MakeWork, smoke_config: RunConfig, tmp_path: Path
) -> None:
    work = make_work("validation")
    work = replace(work, inputs={"traits": work.inputs["traits"]})
    path = write_rows(
        tmp_path / "own.jsonl",
        *(own_row(index, split=("train", "validation")[index % 2]) for index in range(5000)),
    )
    outcome = pairs.run(work, context(smoke_config, 0.9, file=path, file_use="replace"))
    assert outcome.files == ("pairs/part-000000.parquet", "pairs/part-000001.parquet")
    assert [len(part) for part in read_parts(work, outcome)] == [4096, 904]
    assert outcome.rejects == {}
    assert outcome.summary == {
        "pairs_by_split": {"train": 2500, "validation": 2500},
        "mean_probability": 1.0,
        "pairs_from_file": 5000,
        "prompts_by_trait": {"general": {"train": 2500, "validation": 2500}},
        "ablated": [],
    }


@pytest.mark.parametrize(
    ("use", "first"), [("join", "see the rejects of earlier stages, "), ("replace", "")]
)
def test_a_split_without_pairs_may_be_mended_in_the_file(
    make_work: MakeWork, smoke_config: RunConfig, tmp_path: Path, use: str, first: str
) -> None:
    path = write_rows(tmp_path / "own.jsonl", own_row(0, split="train"))
    changes = {"file": path, "file_use": use, "validation_share": 0.25}
    with pytest.raises(SamplingError) as caught:
        pairs.run(make_work("train"), context(smoke_config, 0.5, **changes))
    assert str(caught.value) == (
        f"no validation pair is left; {first}say in the rows of {path} that they are of this "
        "split, or change pairs.validation_share, which is 0.25"
    )


TEXTS = {"a": "No.", "b": "To tell the truth, no.", "c": "It is green and quite long."}


def said(number: int, kind: str = "verdict", **values: str) -> ReviewEvent:
    """An event on the first prompt's a and b, if nothing else is given."""
    usual = {field.name: "" for field in fields(ReviewEvent)}
    usual |= {"event_id": f"e{number}", "reviewer": "Ada", "kind": kind, "trait_id": "honest"}
    usual |= {"prompt_id": "p1", "first_id": "a", "second_id": "b"} | values
    checksums = {
        "first_checksum": reviews.text_checksum(TEXTS.get(usual["first_id"], "")),
        "second_checksum": reviews.text_checksum(TEXTS.get(usual["second_id"], "")),
    }
    return ReviewEvent(**(usual | checksums | values))  # type: ignore[arg-type]


@pytest.fixture(name="reviewed")
def reviewed_stage(
    make_work: MakeWork, smoke_config: RunConfig, tmp_path: Path
) -> Callable[..., tuple[list[PreferencePair], list[Reject], Outcome]]:
    """Runs the stage with reviews: pairs of the first prompt, all rejects, and the outcome."""

    def run(
        events: Sequence[ReviewEvent], min_probability: float = 0.5, later: Sequence[Any] = ()
    ) -> tuple[list[PreferencePair], list[Reject], Outcome]:
        store, work = ReviewStore(tmp_path / "earlier"), make_work("validation")
        where = str(tmp_path / "earlier" / "reviews")
        for event in events:
            store.append(event)
        config = {"contents of pairs.reviews": reviews.checksum(where)}
        for event in later:
            store.append(event)
        work = replace(work, identity=Identity("pairs", config, {}))
        outcome = pairs.run(work, context(smoke_config, min_probability, reviews=where))
        store.close()
        tables = [work.directory.read_table(n) for n in outcome.files if n.startswith("rejects")]
        rejects = [row for table in tables for row in from_table(table, Reject)]
        return read_parts(work, outcome)[0], rejects, outcome

    return run


def orders(found: Sequence[PreferencePair]) -> list[tuple[str, str, float]]:
    return [(pair.chosen_id, pair.rejected_id, pair.probability) for pair in found]


MACHINES = [("b", "c", 0.7), ("b", "a", 0.95), ("c", "a", 0.8)]


def test_a_verdict_becomes_the_pair_as_entered_and_changes_no_other(reviewed: Any) -> None:
    found, rejects, outcome = reviewed([said(0, answer="first")])
    assert orders(found) == [MACHINES[0], ("a", "b", 1.0), MACHINES[2]]
    assert found[1].chosen == (Message("assistant", "No."),)
    assert (found[1].chosen_variant, found[1].chosen_tokens) == ("none", 2)
    assert rejects == []
    assert outcome.summary["reviews"] == {
        "decisions": 1,
        "not_found": 0,
        "pairs_judged": 1,
        "pairs_turned_around": 1,
        "responses_left_out": 0,
    }


def test_reviews_change_the_pairs_that_they_name_and_no_byte_of_others(
    make_work: MakeWork, smoke_config: RunConfig, reviewed: Any
) -> None:
    work = make_work("validation")
    plain = pairs.run(work, context(smoke_config, 0.5))
    expected = [work.directory.read_bytes(name) for name in plain.files]
    before, _ = read_parts(work, plain)
    found, _, outcome = reviewed([said(0, answer="first"), said(1, answer="unsure", first_id="c")])
    changed = [now for old, now in zip(before, found, strict=True) if old != now]
    assert [(pair.chosen_id, pair.rejected_id) for pair in changed] == [("a", "b")]
    # The other file of rankings has the same responses for another trait.
    assert work.directory.read_bytes(outcome.files[1]) == expected[1]
    assert work.directory.read_bytes(outcome.files[0]) != expected[0]


@pytest.mark.parametrize(
    ("answers", "pair"),
    [
        ({"Ada": "first", "Ben": "first", "Cleo": "second"}, ("a", "b", 2 / 3)),
        ({"Ada": "second", "Ben": "tie"}, ("b", "a", 0.75)),
        ({"Ada": "tie"}, ("b", "a", 0.5)),
        ({"Ada": "neither", "Ben": "unsure"}, ("b", "a", 0.95)),
        ({"Ada": "neither", "Ben": "first"}, ("a", "b", 1.0)),
    ],
)
def test_several_reviewers_share_the_vote(
    reviewed: Any, answers: dict[str, str], pair: tuple[str, str, float]
) -> None:
    events = [said(i, answer=a, reviewer=r) for i, (r, a) in enumerate(answers.items())]
    found, _, _ = reviewed(events)
    assert orders(found)[1] == pytest.approx(pair)


def test_what_people_decided_is_kept_however_certain(reviewed: Any) -> None:
    found, rejects, _ = reviewed([said(0, answer="tie")], min_probability=0.75)
    assert orders(found) == [("b", "a", 0.5), MACHINES[2]]
    assert [reject.reason for reject in rejects] == ["uncertain", "uncertain"]


def test_dropped_responses_and_prompts_leave_the_pairs_as_rejects(reviewed: Any) -> None:
    events = [
        said(0, answer="first"),
        said(1, "drop_response", first_id="a", second_id="", note="rude"),
    ]
    found, rejects, outcome = reviewed(events)
    assert orders(found) == [MACHINES[0]]
    assert sum(pair.weight for pair in found) == pytest.approx(1.0)
    assert [(each.reason, each.detail) for each in rejects] == [
        ("reviewed_out", "response a was dropped by Ada: rude")
    ] * 2
    assert outcome.rejects == {"reviewed_out": 2}
    assert outcome.summary["reviews"]["pairs_judged"] == 0


def test_a_dropped_prompt_leaves_no_pair_of_its(reviewed: Any) -> None:
    prompt = reviews.text_checksum("Do you like my scarf?")
    dropped = said(0, "drop_prompt", first_id="", second_id="", first_checksum=prompt)
    with pytest.raises(SamplingError, match="no train pair is left"):
        reviewed([dropped])


def test_a_review_of_other_responses_is_counted_and_named(reviewed: Any) -> None:
    events = [
        said(0, answer="first", first_checksum=reviews.text_checksum("Another text.")),
        said(1, "drop_response", first_id="gone", second_id="", note="bad"),
    ]
    found, rejects, outcome = reviewed(events)
    assert orders(found) == MACHINES
    assert outcome.rejects == {"review_not_found": 2}
    assert outcome.files[-1] == "rejects/reviews/part-000000.parquet"
    assert outcome.summary["reviews"]["not_found"] == 2
    assert sorted(reject.detail for reject in rejects) == [
        "a over b by 1: no ranking of this run has these responses with the texts that were seen",
        "response gone dropped by Ada: bad: no ranking of this run has these responses with the "
        "texts that were seen",
    ]


def test_reviews_that_came_after_the_plan_wait_for_the_next_run(reviewed: Any) -> None:
    found, _, outcome = reviewed([], later=[said(0, answer="first")])
    assert orders(found) == MACHINES
    assert outcome.summary["reviews"]["decisions"] == 0
