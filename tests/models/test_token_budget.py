"""Microbatches: every item once, as many for each worker, within the budget, even."""

import math
import random
from collections.abc import Sequence

import pytest

from charactertrain.models.token_budget import microbatches


def draw_case(seed: int) -> tuple[list[int], int, int]:
    """Lengths, workers and a budget, which some items may pass."""
    draw = random.Random(seed)
    longest = draw.choice([1, 10, 1000])
    lengths = [draw.randint(1, longest) for _ in range(draw.randint(0, 40))]
    return lengths, draw.randint(1, 6), draw.randint(1, 3 * longest)


def loads(lengths: Sequence[int], spread: list[list[list[int]]]) -> list[list[int]]:
    return [[sum(lengths[index] for index in batch) for batch in of_one] for of_one in spread]


def test_microbatches_of_any_lengths() -> None:
    for seed in range(300):
        lengths, num_workers, budget = draw_case(seed)
        spread = microbatches(lengths, num_workers=num_workers, budget=budget)
        assert len(spread) == num_workers
        # As many for each, or some would wait for the others for ever.
        assert len({len(of_one) for of_one in spread}) == 1
        # Empty ones are passes through the model for nothing: one for each item is enough.
        assert 1 <= len(spread[0]) <= max(1, math.ceil(len(lengths) / num_workers))
        held = [index for of_one in spread for batch in of_one for index in batch]
        assert sorted(held) == list(range(len(lengths)))
        found = loads(lengths, spread)
        for of_one, of_one_loads in zip(spread, found, strict=True):
            for batch, load in zip(of_one, of_one_loads, strict=True):
                assert load <= budget or len(batch) == 1
        flat = [load for of_one in found for load in of_one]
        assert max(flat) - min(flat) <= max(lengths, default=0)
        assert microbatches(lengths, num_workers=num_workers, budget=budget) == spread


def test_microbatches_that_run_together_are_as_long_as_they_get() -> None:
    for seed in range(100):
        lengths, num_workers, budget = draw_case(seed)
        found = loads(lengths, microbatches(lengths, num_workers=num_workers, budget=budget))
        # Sorted by load, and dealt out in turn.
        in_turn = [load for at_a_time in zip(*found, strict=True) for load in at_a_time]
        assert in_turn == sorted(in_turn, reverse=True)


def test_items_that_fit_together_are_one_microbatch() -> None:
    (only,) = microbatches([3, 5, 2], num_workers=1, budget=10)
    assert [sorted(batch) for batch in only] == [[0, 1, 2]]


def test_one_token_more_than_the_budget_makes_a_second_microbatch() -> None:
    (only,) = microbatches([3, 5, 2], num_workers=1, budget=9)
    assert sorted(sorted(batch) for batch in only) == [[0, 2], [1]]


def test_an_item_that_is_longer_than_the_budget_is_alone() -> None:
    (only,) = microbatches([2, 100, 3], num_workers=1, budget=10)
    assert [sorted(batch) for batch in only] == [[1], [0, 2]]


def test_equal_items_fill_the_fewest_microbatches() -> None:
    # Twelve items of 4 tokens, three to a microbatch of 12, for two workers.
    spread = microbatches([4] * 12, num_workers=2, budget=12)
    assert [[len(batch) for batch in of_one] for of_one in spread] == [[3, 3], [3, 3]]
    # With a budget of 11 only two fit: six microbatches.
    spread = microbatches([4] * 12, num_workers=2, budget=11)
    assert [[len(batch) for batch in of_one] for of_one in spread] == [[2, 2, 2], [2, 2, 2]]


def test_the_longest_goes_with_the_shortest() -> None:
    # 9 and 1, 8 and 2, 7 and 3: ten each.
    (only,) = microbatches([1, 2, 3, 7, 8, 9], num_workers=1, budget=10)
    assert sorted(sorted(batch) for batch in only) == [[0, 5], [1, 4], [2, 3]]


def test_fewer_items_than_workers_leave_some_with_an_empty_microbatch() -> None:
    assert microbatches([5, 7], num_workers=4, budget=100) == [[[1]], [[0]], [[]], [[]]]


def test_no_items_are_one_empty_microbatch_for_each_worker() -> None:
    assert microbatches([], num_workers=3, budget=10) == [[[]], [[]], [[]]]


@pytest.mark.parametrize(("num_workers", "budget"), [(0, 10), (2, 0)])
def test_no_worker_or_no_budget_is_refused(num_workers: int, budget: int) -> None:
    with pytest.raises(AssertionError):
        microbatches([1], num_workers=num_workers, budget=budget)
