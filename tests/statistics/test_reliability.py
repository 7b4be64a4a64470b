"""How far an order can be trusted: by hand, and what must not matter."""

import math

import numpy as np
import pytest

from charactertrain.ranking import luce_probabilities
from charactertrain.statistics.bootstrap import cluster_bootstrap_mean
from charactertrain.statistics.reliability import (
    PromptReliability,
    cyclic_triad_share,
    kendall_tau,
    same_winner_share,
    summarise,
    within_group_correlation,
)

CYCLE = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.6], [0.8, 0.4, 0.5]]
"""0 over 1 over 2 over 0."""

NOTHING_KNOWN = ([0.0], [5.0])
"""Utility and token count of a single response."""


def reliability(
    prompt_id: str,
    swap_consistency: float | None = None,
    cyclic_triads: float | None = None,
    split_half: float | None = None,
) -> PromptReliability:
    return PromptReliability("calm", prompt_id, swap_consistency, cyclic_triads, split_half)


def test_cyclic_triad_share_by_hand() -> None:
    assert cyclic_triad_share(CYCLE) == 1.0
    # Candidate 3 loses to all: of 012, 013, 023 and 123 only the first is a cycle.
    with_loser = np.full((4, 4), 0.5)
    with_loser[:3, :3] = CYCLE
    with_loser[:3, 3], with_loser[3, :3] = 0.7, 0.3
    assert cyclic_triad_share(with_loser) == 1 / 4
    # One pair undecided: 013 and 023 stay, and are no cycles.
    with_loser[1, 2] = with_loser[2, 1] = 0.5
    assert cyclic_triad_share(with_loser) == 0.0


def test_cyclic_triad_share_of_utilities_is_zero() -> None:
    assert cyclic_triad_share(luce_probabilities([0.1, 0.4, 0.2, 0.25, 0.05])) == 0.0


def test_cyclic_triad_share_follows_winners_only() -> None:
    rng = np.random.default_rng(5)
    upper = np.triu(rng.uniform(size=(7, 7)), 1)
    probabilities = upper + np.tril(1 - upper.T, -1)
    share = cyclic_triad_share(probabilities)
    assert share is not None
    assert 0 < share < 1
    order = rng.permutation(7)
    assert cyclic_triad_share(probabilities[np.ix_(order, order)]) == share
    assert cyclic_triad_share(probabilities.T) == share
    assert cyclic_triad_share((probabilities > 0.5).astype(float)) == share


def test_cyclic_triad_share_of_winners_by_chance_is_a_quarter() -> None:
    upper = np.triu(np.random.default_rng(0).uniform(size=(60, 60)), 1)
    share = cyclic_triad_share(upper + np.tril(1 - upper.T, -1))
    # 34,220 triads, pairwise uncorrelated: a standard deviation of 0.0023.
    assert share == pytest.approx(0.25, abs=0.01)


def test_cyclic_triad_share_without_a_decided_triad_is_none() -> None:
    assert cyclic_triad_share([[0.5, 0.9], [0.1, 0.5]]) is None
    assert cyclic_triad_share(np.full((4, 4), 0.5)) is None
    not_compared = np.array(CYCLE)
    not_compared[0, 2] = not_compared[2, 0] = math.nan
    assert cyclic_triad_share(not_compared) is None


def test_cyclic_triad_share_refuses_what_is_not_square() -> None:
    with pytest.raises(ValueError, match="square"):
        cyclic_triad_share([[0.5, 0.8, 0.1], [0.2, 0.5, 0.1]])


def test_kendall_tau_by_hand() -> None:
    # Of six pairs one, (3, 2), is turned round: (5 - 1) / 6.
    assert kendall_tau([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]) == pytest.approx(4 / 6)
    # a ties one pair of six and b two others. Of the three left one agrees: (1 - 2) / sqrt(5 * 4).
    tau = kendall_tau([1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 2.0, 1.0])
    assert tau == pytest.approx(-1 / math.sqrt(20))


def test_kendall_tau_sees_the_order_only() -> None:
    a, b = [0.1, 0.7, -0.4, 0.3], [2.0, 0.5, -1.0, 0.6]
    tau = kendall_tau(a, b)
    assert tau is not None
    assert kendall_tau([math.exp(value) for value in a], b) == tau
    assert kendall_tau(b, a) == tau
    assert kendall_tau(a, [-value for value in b]) == -tau
    assert kendall_tau(a[::-1], b[::-1]) == tau


def test_kendall_tau_of_an_order_with_itself_and_its_reverse() -> None:
    values = [0.3, 0.3, 1.0, -2.0]
    assert kendall_tau(values, values) == 1.0
    assert kendall_tau(values, [-value for value in values]) == -1.0


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 3.0])]
)
def test_kendall_tau_of_what_does_not_vary_is_none(a: list[float], b: list[float]) -> None:
    assert kendall_tau(a, b) is None


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0])])
def test_kendall_tau_refuses_what_has_no_order(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        kendall_tau(a, b)


def test_same_winner_share_by_hand() -> None:
    # Both the first; both the second; apart; then one undecided, and one not compared.
    first = [0.9, 0.2, 0.6, 0.5, math.nan]
    second = [0.51, 0.4, 0.1, 0.9, 0.9]
    assert same_winner_share(first, second) == pytest.approx(2 / 3)
    assert same_winner_share(second, first) == pytest.approx(2 / 3)


def test_same_winner_share_does_not_depend_on_which_response_is_first() -> None:
    first, second = [0.9, 0.25, 0.6], [0.75, 0.4, 0.1]
    turned = same_winner_share([1 - p for p in first], [1 - p for p in second])
    assert turned == same_winner_share(first, second)


def test_same_winner_share_without_a_decided_pair_is_none() -> None:
    assert same_winner_share([], []) is None
    assert same_winner_share([0.5, 0.9], [0.9, 0.5]) is None


def test_same_winner_share_refuses_other_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        same_winner_share([0.9], [0.9, 0.8])


def test_within_group_correlation_by_hand() -> None:
    # Deviations (-1, 1) with (-2, 2), and (-1, 0, 1) with (1, 0, -1): S_xy = 4 - 2 = 2,
    # S_xx = 2 + 2 = 4, S_yy = 8 + 2 = 10.
    groups = [([0.0, 2.0], [10.0, 14.0]), ([5.0, 6.0, 7.0], [3.0, 2.0, 1.0])]
    assert within_group_correlation(groups) == pytest.approx(2 / math.sqrt(40))


def test_within_group_correlation_of_one_group_is_pearsons() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=9), rng.normal(size=9)
    expected = float(np.corrcoef(x, y)[0, 1])
    assert within_group_correlation([(x.tolist(), y.tolist())]) == pytest.approx(expected)


def test_within_group_correlation_ignores_what_differs_between_groups() -> None:
    groups = [([0.0, 2.0], [10.0, 14.0]), ([5.0, 6.0, 7.0], [3.0, 2.0, 1.0])]
    moved = [([x + 100 for x in groups[0][0]], [y + 7 for y in groups[0][1]]), groups[1]]
    expected = within_group_correlation(groups)
    assert within_group_correlation(moved) == pytest.approx(expected)
    in_other_units = [([2 * x for x in xs], [0.1 * y for y in ys]) for xs, ys in groups]
    assert within_group_correlation(in_other_units) == pytest.approx(expected)
    assert within_group_correlation([*groups, NOTHING_KNOWN]) == expected


def test_within_group_correlation_of_what_does_not_vary_is_none() -> None:
    assert within_group_correlation([]) is None
    assert within_group_correlation([NOTHING_KNOWN, NOTHING_KNOWN]) is None
    # The mean of three times 0.1 is not 0.1, nor is its deviation 0.
    assert within_group_correlation([([0.1, 0.1, 0.1], [1.0, 2.0, 4.0])]) is None


def test_within_group_correlation_refuses_other_responses() -> None:
    with pytest.raises(ValueError, match="same responses"):
        within_group_correlation([([1.0, 2.0], [1.0])])


def test_summary_by_hand() -> None:
    prompts = [
        reliability("p", swap_consistency=1.0, cyclic_triads=0.25, split_half=0.5),
        reliability("q", swap_consistency=0.5, split_half=1.0),
        reliability("r", split_half=-0.6),
    ]
    lengths = [([0.0, 2.0], [10.0, 14.0]), ([5.0, 6.0, 7.0], [3.0, 2.0, 1.0]), NOTHING_KNOWN]
    found = summarise(prompts, lengths, num_resamples=1000, seed=0)
    assert found.num_prompts == 3
    assert found.swap_consistency == cluster_bootstrap_mean(
        {"p": [1.0], "q": [0.5]}, num_resamples=1000, seed=0
    )
    assert found.cyclic_triads is None
    assert found.split_half is not None
    assert found.split_half.estimate == pytest.approx(0.3)
    # Resamples draw p twice, q twice, or both, with probability 1/4, 1/4, 1/2: 1, -1 or the
    # estimate, so the quantiles at 2.5 and 97.5 % are -1 and 1.
    length = found.length_correlation
    assert length is not None
    assert length.estimate == pytest.approx(2 / math.sqrt(40))
    assert (length.ci_low, length.ci_high) == pytest.approx((-1.0, 1.0))
    assert (length.num_clusters, length.num_responses) == (2, 5)


def test_summary_does_not_depend_on_the_order_of_prompts() -> None:
    rng = np.random.default_rng(4)
    prompts = [reliability(f"p{i}", swap_consistency=float(rng.uniform())) for i in range(12)]
    lengths = [(rng.normal(size=4).tolist(), rng.normal(size=4).tolist()) for _ in range(12)]
    expected = summarise(prompts, lengths, num_resamples=200, seed=1)
    assert summarise(prompts[::-1], lengths[::-1], num_resamples=200, seed=1) == expected


def test_summary_resamples_a_prompt_with_all_its_traits() -> None:
    # Two traits of one prompt are one cluster, and one has no interval.
    prompts = [reliability("p", swap_consistency=0.0), reliability("p", swap_consistency=1.0)]
    lengths = [([0.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [1.0, 0.0])]
    found = summarise(prompts, lengths, num_resamples=100, seed=0)
    assert found.swap_consistency is None
    assert found.length_correlation is None
    assert found.num_prompts == 1


def test_length_interval_agrees_with_fishers_of_many_pairs() -> None:
    # Groups of two leave one free deviation each: 600 independent pairs with the correlation 0.6.
    rng = np.random.default_rng(3)
    x = rng.normal(size=(600, 2))
    y = 0.6 * x + 0.8 * rng.normal(size=(600, 2))
    prompts = [reliability(f"p{i}") for i in range(600)]
    lengths = [(x[i].tolist(), y[i].tolist()) for i in range(600)]
    found = summarise(prompts, lengths, num_resamples=4000, seed=0).length_correlation
    assert found is not None
    half_width = 1.96 / math.sqrt(600)
    centre = math.atanh(found.estimate)
    assert math.atanh(found.ci_low) == pytest.approx(centre - half_width, abs=0.15 * half_width)
    assert math.atanh(found.ci_high) == pytest.approx(centre + half_width, abs=0.15 * half_width)


def test_length_interval_leaves_out_resamples_in_which_nothing_varies() -> None:
    # q's utilities are all equal: of p, q and p with q only the first and third have a
    # correlation, 1 and 2 / sqrt(2 * (2 + 8)).
    prompts = [reliability("p"), reliability("q")]
    lengths = [([0.0, 2.0], [0.0, 2.0]), ([1.0, 1.0], [3.0, 7.0])]
    found = summarise(prompts, lengths, num_resamples=500, seed=0).length_correlation
    assert found is not None
    assert found.estimate == pytest.approx(2 / math.sqrt(20))
    assert (found.ci_low, found.ci_high) == pytest.approx((2 / math.sqrt(20), 1.0))


def test_summary_of_no_prompts_is_empty() -> None:
    found = summarise([], [], num_resamples=100, seed=0)
    assert found.num_prompts == 0
    assert found.swap_consistency is found.split_half is found.length_correlation is None


def test_summary_refuses_lengths_of_other_prompts() -> None:
    with pytest.raises(ValueError, match="zip"):
        summarise([reliability("p")], [], num_resamples=100, seed=0)
