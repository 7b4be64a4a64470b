"""Picking: the same order for all, half of it by chance, hard pairs first in the rest."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from reviewed_run import commit_rewards, make_run

from charactertrain.records import ReviewEvent
from charactertrain.review.picking import MODEL, PairIndex, Pick, is_first_on_the_left, pick
from charactertrain.review.run_view import RunView
from charactertrain.storage import Directory

TRAITS = ("honest", "curious", "brief")
Make = Callable[..., ReviewEvent]


def index_of(view: RunView, seed: int = 1) -> PairIndex:
    tables = (("rankings", "rankings"), ("preference_model", "held_out_rewards"))
    return PairIndex(*(view.table(stage, name) for stage, name in tables), seed=seed)


@pytest.fixture(name="view")
def view_of_run(run: Directory) -> RunView:
    return RunView(run)


@pytest.fixture(name="index")
def pair_index(view: RunView) -> PairIndex:
    return index_of(view)


def as_judged(found: Pick, number: int, verdict: Make) -> ReviewEvent:
    trait_id = TRAITS[int(found.prompt_id[1:]) % 3]
    return replace(
        verdict(f"e{number}", answer="tie", left_id=found.first_id, picked_by=found.way),
        prompt_id=found.prompt_id,
        trait_id=trait_id,
        first_id=found.first_id,
        second_id=found.second_id,
    )


def judged(index: PairIndex, count: int, verdict: Make, left_out: Any = ()) -> list[Pick]:
    history: list[ReviewEvent] = []
    picks: list[Pick] = []
    for number in range(count):
        found = pick(index, history, "Ada", trait_ids=TRAITS, left_out=left_out)
        if found is None:
            break
        picks.append(found)
        history.append(as_judged(found, number, verdict))
    return picks


def test_every_pair_comes_once_besides_repeats(index: PairIndex, verdict: Make) -> None:
    picks = judged(index, 100, verdict)
    fresh = [(p.first_id, p.second_id) for p in picks if p.way != "repeat"]
    assert len(index) == len(fresh) == len(set(fresh)) == 36
    repeats = [(p.first_id, p.second_id) for p in picks if p.way == "repeat"]
    assert len(repeats) >= 5
    assert len(set(repeats)) == len(repeats)
    assert set(repeats) <= set(fresh)


def test_a_repeat_comes_some_time_after_the_first(index: PairIndex, verdict: Make) -> None:
    picks = judged(index, 30, verdict)
    for place, found in enumerate(picks):
        if found.way == "repeat":
            first = next(
                i
                for i, p in enumerate(picks)
                if p.first_id == found.first_id and p.second_id == found.second_id
            )
            assert place - first > 5


def test_half_of_what_is_new_is_drawn_at_random(index: PairIndex, verdict: Make) -> None:
    ways = Counter(found.way for found in judged(index, 24, verdict))
    assert ways["repeat"] >= 3
    fresh = 24 - ways["repeat"]
    assert ways["random"] >= fresh / 2
    assert ways["uncertain"] >= 4


def test_traits_are_taken_in_turn(index: PairIndex, verdict: Make) -> None:
    picks = [found for found in judged(index, 14, verdict) if found.way != "repeat"]
    counts = Counter(int(found.prompt_id[1:]) % 3 for found in picks)
    assert max(counts.values()) - min(counts.values()) <= 2


def test_the_least_certain_pairs_come_first(index: PairIndex) -> None:
    seen: set[str] = set()
    certainties = []
    while (found := index.next_pair("uncertain", "honest", seen)) is not None:
        probability = index.probability(found.prompt_id, found.first_id, found.second_id)
        assert probability is not None
        certainties.append(abs(probability - 0.5))
        seen.add(f"{found.first_id} {found.second_id}")
    assert len(certainties) == 12
    assert certainties == sorted(certainties)


def test_where_rankers_disagree_most_comes_first(index: PairIndex, view: RunView) -> None:
    found = index.next_pair("rankers", "curious", ())
    assert found is not None
    ranking = view.ranking(found.prompt_id)
    assert ranking is not None
    # 0, 1/3, 2/3 or 1 of the pairs alike, on prompts with odd numbers.
    assert ranking.opinions[0].same_winner == pytest.approx(1 / 3)
    # Prompts without another's opinion are not in this order.
    seen: set[str] = set()
    while (found := index.next_pair("rankers", "curious", seen)) is not None:
        assert int(found.prompt_id[1:]) % 2 == 1
        seen.add(f"{found.first_id} {found.second_id}")
    assert len(seen) == 6


# Of both prompts' pairs a-c, a-b, c-b the ranking says 0.85, 0.9, 0.8 and 0.65, 0.9, 0.9.
AGREED = {"p3-a": (2.0, 2.0), "p3-c": (0.0, 0.0), "p3-b": (-2.0, -2.0)}
SPLIT = {"p9-a": (2.0, -2.0), "p9-c": (0.0, 0.0), "p9-b": (-2.0, 2.0)}


def surprises(index: PairIndex, trait_id: str) -> list[tuple[str, str]]:
    """Pairs in the order in which the preference model's disagreement brings them."""
    seen: set[str] = set()
    found = []
    while (pick := index.next_pair(MODEL, trait_id, seen)) is not None:
        found.append((pick.first_id, pick.second_id))
        seen.add(f"{pick.first_id} {pick.second_id}")
    return found


def test_where_the_preference_model_is_against_the_ranking_comes_first(run: Directory) -> None:
    commit_rewards(run, {name: (-found[0],) for name, found in AGREED.items()})
    index = index_of(RunView(run))
    assert index.has_model
    # sigmoid(-4) against 0.9, then sigmoid(-2) against 0.85 and 0.8.
    assert surprises(index, "honest") == [("p3-a", "p3-b"), ("p3-a", "p3-c"), ("p3-b", "p3-c")]
    assert surprises(index, "curious") == []


def test_members_that_are_apart_come_before_those_that_agree_with_the_ranking(
    run: Directory,
) -> None:
    commit_rewards(run, AGREED | SPLIT)
    found = surprises(index_of(RunView(run)), "honest")
    # Of p9 0.63, 0.55 and 0.41, of p3 0.08, 0.08 and 0.03.
    assert found == [
        *(("p9-a", "p9-b"), ("p9-b", "p9-c"), ("p9-a", "p9-c")),
        *(("p3-a", "p3-b"), ("p3-b", "p3-c"), ("p3-a", "p3-c")),
    ]


def test_with_a_preference_model_half_is_drawn_at_random_all_the_same(
    run: Directory, verdict: Make
) -> None:
    commit_rewards(run, AGREED | SPLIT)
    ways = Counter(found.way for found in judged(index_of(RunView(run)), 24, verdict))
    fresh = 24 - ways["repeat"]
    assert ways["random"] >= fresh / 2
    assert ways[MODEL] >= 1
    assert ways["uncertain"] >= 2
    assert ways["rankers"] >= 1


def test_a_prompt_without_the_rewards_of_all_its_responses_is_passed_over(run: Directory) -> None:
    kept = {name: found for name, found in (AGREED | SPLIT).items() if name != "p3-a"}
    commit_rewards(run, kept | {"x1-a": (1.0, 1.0)})
    found = surprises(index_of(RunView(run)), "honest")
    assert {first[:2] for first, _ in found} == {"p9"}


def test_the_ranking_s_probability_is_of_the_response_that_is_named(index: PairIndex) -> None:
    assert index.probability("p1", "p1-a", "p1-c") == pytest.approx(0.65)
    assert index.probability("p1", "p1-c", "p1-a") == pytest.approx(0.35)
    assert index.probability("p1", "p1-b", "p1-a") == pytest.approx(0.1)
    assert index.probability("p1", "p1-a", "p2-a") is None
    assert index.probability("p99", "p1-a", "p1-b") is None


@pytest.mark.parametrize("left_out", ["p3", "p3-a"])
def test_what_is_dropped_is_passed_over(index: PairIndex, verdict: Make, left_out: str) -> None:
    picks = judged(index, 100, verdict, {left_out})
    assert not any(left_out in (p.prompt_id, p.first_id, p.second_id) for p in picks)
    assert len({(p.first_id, p.second_id) for p in picks}) == (33 if left_out == "p3" else 34)


def test_the_same_seed_gives_the_same_order(
    run: Directory, index: PairIndex, verdict: Make
) -> None:
    again, other = (index_of(RunView(run), seed) for seed in (1, 2))
    assert judged(again, 20, verdict) == judged(index, 20, verdict)
    assert judged(other, 20, verdict) != judged(index, 20, verdict)


def test_sides_are_a_fair_coin_of_reviewer_and_item() -> None:
    picks = [Pick("p", f"a{n}", f"b{n}", "random") for n in range(400)]
    ada, ben, again = (
        [is_first_on_the_left(name, each, time) for each in picks]
        for name, time in (("Ada", 0), ("Ben", 0), ("Ada", 1))
    )
    for sides in (ada, ben, again):
        assert 160 <= sum(sides) <= 240
    assert 150 <= sum(one == other for one, other in zip(ada, ben, strict=True)) <= 250
    assert 150 <= sum(one == other for one, other in zip(ada, again, strict=True)) <= 250


def test_a_run_without_rankings_has_nothing_to_judge(tmp_path: Any) -> None:
    run = make_run(tmp_path / "empty", num_prompts=0)
    index = index_of(RunView(run))
    assert len(index) == 0
    assert not index.has_model
    assert pick(index, [], "Ada", trait_ids=(), left_out=()) is None
