"""Win rates: by hand, planted lengths, and what a swap of the arms does."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from charactertrain.evaluation.win_rates import (
    Comparison,
    LengthControlledWinRate,
    WinRate,
    length_controlled_win_rate,
    win_rate,
)

BY_HAND = [
    Comparison("p", 0.9, 0.6, 10.0),  # wins twice
    Comparison("p", 0.8, 0.3, 10.0),  # the first shown wins
    Comparison("q", 0.5, 0.7, -5.0),  # half a tie
    Comparison("q", 0.5, 0.5, 0.0),  # a tie
    Comparison("r", 0.1, 0.2, 30.0),  # loses twice
    Comparison("r", None, 0.9, 30.0),
    Comparison("s", 0.9, None, 30.0),
    Comparison("s", None, None, 30.0),
]


def rated(comparisons: Sequence[Comparison]) -> WinRate:
    return win_rate(comparisons, num_resamples=500, seed=0)


def controlled(comparisons: Sequence[Comparison], seed: int = 0) -> LengthControlledWinRate:
    return length_controlled_win_rate(comparisons, num_resamples=200, seed=seed)


def test_win_rate_by_hand() -> None:
    found = rated(BY_HAND)
    assert (found.rate.base, found.rate.arm) == (0.5, pytest.approx((1 + 0.5 + 0.75 + 0.5) / 5))
    assert found.soft_rate.arm == pytest.approx((0.75 + 0.55 + 0.6 + 0.5 + 0.15) / 5)
    assert found.swap_consistency.estimate == pytest.approx(2 / 5)
    counts = (found.num_comparisons, found.num_unscored, found.num_ties, found.num_inconsistent)
    assert counts == (8, 3, 2, 1)
    assert (found.rate.num_clusters, found.rate.num_responses) == (3, 10)


def test_a_judge_that_goes_by_the_place_alone_rates_both_alike() -> None:
    found = rated([Comparison(f"p{i}", 0.9, 0.1, 0.0) for i in range(10)])
    assert (found.rate.arm, found.rate.difference, found.rate.p_value) == (0.5, 0.0, 1.0)
    assert (found.swap_consistency.estimate, found.num_inconsistent) == (0.0, 10)


def test_win_rate_has_the_interval_of_prompts_and_not_of_comparisons() -> None:
    rng = np.random.default_rng(0)
    wins = rng.random(40).round()
    once = [Comparison(f"p{i}", win, win, 0.0) for i, win in enumerate(wins)]
    first, second = rated(once).rate, rated(once * 20).rate
    assert (first.ci_low, first.ci_high) == pytest.approx((second.ci_low, second.ci_high))
    # 1.96 * sqrt(0.25 / 40), and t for the normal quantile.
    assert first.ci_high - first.ci_low == pytest.approx(2 * 2.02 * 0.08, rel=0.1)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_length_controlled_rate_by_hand() -> None:
    # Lengths of +-1 have the deviation 1. Two rates fit two parameters: logit 0.9 = theta + phi x
    # and logit 0.6 = theta - phi x, with x = tanh(1).
    longer = [Comparison("p", win, win, 1.0) for win in [0.8] * 9 + [0.2]]
    shorter = [Comparison("q", win, win, -1.0) for win in [0.9] * 6 + [0.3] * 4]
    found = controlled([*longer, *shorter])
    theta = (logit(0.9) + logit(0.6)) / 2
    # As near as the prior on the length allows.
    assert found.rate.arm == pytest.approx(1 / (1 + math.exp(-theta)), abs=0.005)
    assert found.length_effect.estimate == pytest.approx(
        (logit(0.9) - logit(0.6)) / 2 / math.tanh(1), rel=0.02
    )
    assert found.num_longer == 10


def drawn(
    rng: np.random.Generator, theta: float, phi: float, *, num_prompts: int = 60
) -> list[Comparison]:
    """Two comparisons to a prompt that tend to come out alike, the arm 40 tokens longer."""
    comparisons = []
    for number in range(num_prompts):
        thresholds = rng.random(2)  # of the two orders
        for length in rng.normal(40, 80, size=2):
            p = 1 / (1 + math.exp(-theta - phi * math.tanh(length / 80)))
            first, second = (thresholds < p).astype(float)
            comparisons.append(Comparison(f"p{number}", first, second, length))
    return comparisons


def test_length_controlled_rate_holds_the_planted_rate_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    truth = 1 / (1 + math.exp(-0.4)) - 0.5
    held = plain_held = 0
    for number in range(300):
        comparisons = drawn(rng, theta=0.4, phi=1.5)
        found = controlled(comparisons, seed=number).rate
        plain = win_rate(comparisons, num_resamples=200, seed=number).rate
        held += found.ci_low <= truth <= found.ci_high
        plain_held += plain.ci_low <= truth <= plain.ci_high
    # Of 300 studies the share has a standard deviation of 0.013.
    assert 0.92 <= held / 300 <= 0.98
    # Length does matter here.
    assert plain_held / 300 < 0.75


def test_length_controlled_rate_is_even_where_only_length_wins() -> None:
    rng = np.random.default_rng(1)
    comparisons = drawn(rng, theta=0.0, phi=2.0, num_prompts=400)
    found = controlled(comparisons)
    assert found.rate.arm == pytest.approx(0.5, abs=0.05)
    assert found.rate.p_value > 0.05
    assert found.length_effect.ci_low > 0.5
    assert rated(comparisons).rate.arm > 0.6


def test_without_an_effect_of_length_the_rates_are_nearly_the_same() -> None:
    rng = np.random.default_rng(2)
    comparisons = drawn(rng, theta=0.8, phi=0.0, num_prompts=500)
    found = controlled(comparisons)
    assert found.rate.arm == pytest.approx(rated(comparisons).soft_rate.arm, abs=0.02)
    assert found.length_effect.ci_low < 0 < found.length_effect.ci_high


def test_equal_lengths_leave_the_win_rate() -> None:
    comparisons = [replace(c, length_difference=0.0) for c in BY_HAND]
    found = controlled(comparisons)
    assert found.rate.arm == pytest.approx(rated(comparisons).rate.arm, abs=1e-5)
    assert found.length_effect.estimate == 0.0


def test_swapping_the_arms_mirrors_every_rate() -> None:
    comparisons = drawn(np.random.default_rng(3), theta=0.5, phi=0.7)
    swapped = [
        Comparison(c.cluster, 1 - c.shown_second, 1 - c.shown_first, -c.length_difference)
        for c in comparisons
        if c.shown_first is not None and c.shown_second is not None
    ]
    there, back = rated(comparisons), rated(swapped)
    assert there.rate.arm == pytest.approx(1 - back.rate.arm)
    assert there.soft_rate.arm == pytest.approx(1 - back.soft_rate.arm)
    assert there.swap_consistency == back.swap_consistency
    one, other = controlled(comparisons), controlled(swapped)
    assert one.rate.arm == pytest.approx(1 - other.rate.arm)
    assert (one.rate.ci_low, one.rate.ci_high) == pytest.approx(
        (-other.rate.ci_high, -other.rate.ci_low)
    )
    assert one.length_effect.estimate == pytest.approx(other.length_effect.estimate)


def test_an_arm_that_wins_everything_has_a_rate_near_one() -> None:
    comparisons = [Comparison(f"p{i}", 1.0, 1.0, float(i - 5)) for i in range(12)]
    found = controlled(comparisons).rate
    assert found.arm == pytest.approx(1.0, abs=1e-4)
    # Twelve prompts, all the same way.
    assert found.p_value == rated(comparisons).rate.p_value == 2.0**-11


def test_lengths_that_decide_everything_have_a_finite_effect() -> None:
    comparisons = [Comparison(f"p{i}", float(i > 6), float(i > 6), i - 6.5) for i in range(14)]
    found = controlled(comparisons)
    assert found.rate.arm == pytest.approx(0.5, abs=1e-6)
    assert 2 < found.length_effect.estimate < 20


def test_win_rates_refuse_what_cannot_be_rated() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1 of prompt 'p', found 1.2 and None"):
        rated([Comparison("p", 1.2, None, 0.0)])
    with pytest.raises(ValueError, match="none of 3 comparisons has a verdict in both orders"):
        rated(BY_HAND[5:])
    for measure in (rated, controlled):
        with pytest.raises(ValueError, match="1 prompt"):
            measure(BY_HAND[:2])


def test_length_controlled_rate_refuses_lengths_that_tell_nothing() -> None:
    with pytest.raises(ValueError, match=r"differs in length by 7.0 tokens"):
        controlled([Comparison(f"p{i}", 0.9, 0.7, 7.0) for i in range(5)])
    with pytest.raises(ValueError, match="finite differences"):
        controlled([Comparison(f"p{i}", 0.9, 0.7, math.nan) for i in range(5)])
