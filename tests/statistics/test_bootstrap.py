"""Intervals over prompts: by hand, and how often they hold the truth."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from charactertrain.statistics.bootstrap import (
    Difference,
    Interval,
    SetStatistic,
    cluster_bootstrap_difference,
    cluster_bootstrap_mean,
    cluster_jackknife_statistic,
    fall_from_best,
    values_by_cluster,
)
from charactertrain.statistics.resampling import MAX_RESAMPLED, resampled
from charactertrain.texts.measures import distinct_n

BASE = {"p": [0.0, 1.0], "q": [2.0], "r": [5.0, 3.0, 4.0]}
POLICY = {"p": [2.0], "q": [3.0, 5.0], "r": [6.0]}


def left_out_in_turn(statistic: Callable[[list[Any]], float]) -> SetStatistic[Any]:
    """Any statistic, computed anew without each group: as often as there are groups, and once."""

    def evaluate(groups: Sequence[Sequence[Any]]) -> tuple[float, list[float]]:
        def without(left_out: int | None) -> float:
            return statistic([v for i, group in enumerate(groups) if i != left_out for v in group])

        return without(None), [without(index) for index in range(len(groups))]

    return evaluate


def test_values_by_cluster_gathers_in_order() -> None:
    gathered = values_by_cluster([1.0, 2.0, 3.0], ["q", "p", "q"])
    assert gathered == {"q": [1.0, 3.0], "p": [2.0]}


def test_values_by_cluster_refuses_values_without_a_prompt() -> None:
    with pytest.raises(ValueError, match="zip"):
        values_by_cluster([1.0, 2.0], ["p"])


def test_difference_by_hand() -> None:
    # Means over responses, not over prompts: 15/6 and 16/4.
    found = cluster_bootstrap_difference(BASE, POLICY, num_resamples=100, seed=0)
    assert (found.base, found.arm, found.difference) == (2.5, 4.0, 1.5)
    assert (found.num_clusters, found.num_responses) == (3, 10)


def test_mean_by_hand() -> None:
    found = cluster_bootstrap_mean(BASE, num_resamples=100, seed=0)
    assert (found.estimate, found.num_clusters, found.num_responses) == (2.5, 3, 6)


def test_bootstrap_interval_by_hand() -> None:
    # Two prompts with means 0 and 1: resamples have the mean 0, 1/2 or 1 with probability 1/4,
    # 1/2, 1/4, so the quantiles at 2.5 and 97.5 % are 0 and 1.
    found = cluster_bootstrap_mean({"p": [0.0], "q": [1.0]}, num_resamples=1000, seed=0)
    assert found == Interval(estimate=0.5, ci_low=0.0, ci_high=1.0, num_clusters=2, num_responses=2)


def test_bootstrap_agrees_with_the_normal_interval_of_many_prompts() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = cluster_bootstrap_mean(
        {f"p{i}": [value] for i, value in enumerate(values)}, num_resamples=4000, seed=0
    )
    half_width = 1.96 * values.std() / math.sqrt(400)
    assert found.ci_low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert found.ci_high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_bootstrap_of_very_many_prompts_is_of_groups_of_them() -> None:
    # Prompts of one sign come together, as traits do: groups are not of neighbours.
    num_prompts = 3 * MAX_RESAMPLED + 17
    values = np.random.default_rng(1).normal(size=num_prompts)
    values.sort()
    found = cluster_bootstrap_mean(
        {f"p{i:05d}": [value] for i, value in enumerate(values)}, num_resamples=2000, seed=0
    )
    half_width = 1.96 * values.std() / math.sqrt(num_prompts)
    assert (found.num_clusters, found.estimate) == (num_prompts, pytest.approx(values.mean()))
    assert found.ci_low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert found.ci_high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_resampled_groups_hold_every_cluster_once() -> None:
    sums_2K = np.stack([np.arange(2.0 * MAX_RESAMPLED), np.ones(2 * MAX_RESAMPLED)])
    sums_2R = resampled(sums_2K, num_resamples=50, seed=0)
    assert sums_2R.shape == (2, 50)
    # Each group holds two clusters, so every resample has as many as there are.
    assert (sums_2R[1] == 2 * MAX_RESAMPLED).all()


def test_more_copies_of_a_response_do_not_narrow_the_interval() -> None:
    once = {"p": [0.0], "q": [1.0], "r": [3.0], "s": [4.0]}
    many = {prompt: values * 50 for prompt, values in once.items()}
    first = cluster_bootstrap_mean(once, num_resamples=500, seed=0)
    second = cluster_bootstrap_mean(many, num_resamples=500, seed=0)
    assert (first.ci_low, first.ci_high) == (second.ci_low, second.ci_high)


def test_intervals_weigh_prompts_by_their_responses_as_the_mean_does() -> None:
    # 20 prompts with one response of 0, 20 with nine of 1: the mean is 0.9, of prompts' means 0.5.
    uneven = {f"a{i}": [0.0] for i in range(20)} | {f"b{i}": [1.0] * 9 for i in range(20)}
    zero = {prompt: [0.0] for prompt in uneven}
    mean = cluster_bootstrap_mean(uneven, num_resamples=500, seed=0)
    change = cluster_bootstrap_difference(zero, uneven, num_resamples=500, seed=0)
    assert mean.estimate == change.difference == 0.9
    assert 0.75 < mean.ci_low < 0.9 < mean.ci_high < 1.0
    assert (change.ci_low, change.ci_high) == pytest.approx((mean.ci_low, mean.ci_high))


def test_pairing_removes_what_a_prompt_does_to_both_arms() -> None:
    # Prompts differ by hundreds, the arms by exactly 1 on each.
    base = {f"p{i}": [100.0 * i, 100.0 * i] for i in range(12)}
    policy = {prompt: [value + 1 for value in values] for prompt, values in base.items()}
    found = cluster_bootstrap_difference(base, policy, num_resamples=200, seed=0)
    assert found.difference == pytest.approx(1.0)
    assert (found.ci_low, found.ci_high) == pytest.approx((1.0, 1.0))
    # Twelve of twelve prompts moved the same way, and the sign test knows no more.
    assert found.p_value == 2.0**-11


def test_bootstrap_depends_on_the_seed_and_not_on_the_order_of_prompts() -> None:
    rng = np.random.default_rng(0)
    noisy = {f"p{i}": [float(rng.normal())] for i in range(30)}
    backwards = dict(reversed(noisy.items()))
    first = cluster_bootstrap_mean(noisy, num_resamples=300, seed=5)
    assert first == cluster_bootstrap_mean(backwards, num_resamples=300, seed=5)
    assert first != cluster_bootstrap_mean(noisy, num_resamples=300, seed=6)


def test_swapping_the_arms_mirrors_the_interval() -> None:
    there = cluster_bootstrap_difference(BASE, POLICY, num_resamples=1000, seed=0)
    back = cluster_bootstrap_difference(POLICY, BASE, num_resamples=1000, seed=0)
    assert there.difference == -back.difference
    assert (there.ci_low, there.ci_high) == pytest.approx((-back.ci_high, -back.ci_low))


@pytest.mark.parametrize(("policy", "p_value"), [(0.0, 1.0), (1.0, 0.25)])
def test_p_value_without_any_spread_is_that_of_the_sign_test(policy: float, p_value: float) -> None:
    # Three prompts without a change, or three that rise: of 8 outcomes 2 are as one-sided.
    base, arm = ({prompt: [value] for prompt in "pqr"} for value in (0.0, policy))
    change = cluster_bootstrap_difference(base, arm, num_resamples=100, seed=0)
    statistic = cluster_jackknife_statistic(base, arm, left_out_in_turn(mean))
    assert change.p_value == statistic.p_value == p_value


def test_p_value_is_that_of_the_t_test_of_prompts() -> None:
    changes = np.random.default_rng(3).normal(0.3, 1.0, size=25)
    base = {f"p{i}": [0.0] for i in range(25)}
    arm = {f"p{i}": [value] for i, value in enumerate(changes)}
    expected = float(ttest_1samp(changes, 0.0).pvalue)
    assert 0.01 < expected < 0.5
    found = cluster_bootstrap_difference(base, arm, num_resamples=20_000, seed=0)
    assert found.p_value == pytest.approx(expected, rel=0.05)
    exact = cluster_jackknife_statistic(base, arm, left_out_in_turn(mean))
    assert exact.p_value == pytest.approx(expected)


def test_p_value_of_a_large_change_is_smaller_than_resamples_can_count() -> None:
    rng = np.random.default_rng(0)
    base = {f"p{i}": [value] for i, value in enumerate(rng.normal(size=60))}
    arm = {prompt: [value + rng.normal(2.0)] for prompt, (value,) in base.items()}
    found = cluster_bootstrap_difference(base, arm, num_resamples=500, seed=0)
    assert 0 < found.p_value < 1e-12


Arms = tuple[dict[str, list[float]], dict[str, list[float]]]
Study = Callable[[np.random.Generator, int], Arms]


def measured(rng: np.random.Generator, effects: np.ndarray, shift: float) -> dict[str, list[float]]:
    # Prompts differ as much as responses to one prompt do, and move both arms.
    return {
        f"p{i}": list(effect + shift + rng.normal(size=rng.integers(2, 6)))
        for i, effect in enumerate(effects)
    }


def study_of_scores(rng: np.random.Generator, num_prompts: int) -> Arms:
    """Base has the mean 0, and the policy 0.5 more."""
    effects = rng.normal(size=num_prompts)
    return measured(rng, effects, 0.0), measured(
        rng, effects + rng.normal(0, 0.5, num_prompts), 0.5
    )


def study_of_detections(rng: np.random.Generator, num_prompts: int) -> Arms:
    """Base shows the trait in a quarter of its responses, and the policy in half."""
    rates = rng.beta(2, 2, num_prompts)
    return (
        {f"p{i}": list((rng.random(3) < rate / 2).astype(float)) for i, rate in enumerate(rates)},
        {f"p{i}": list((rng.random(3) < rate).astype(float)) for i, rate in enumerate(rates)},
    )


@pytest.mark.parametrize("num_prompts", [10, 40])
@pytest.mark.parametrize(
    ("study", "mean", "difference"),
    [(study_of_scores, 0.0, 0.5), (study_of_detections, 0.25, 0.25)],
)
def test_bootstrap_intervals_hold_the_truth_in_95_of_100_studies(
    study: Study, mean: float, difference: float, num_prompts: int
) -> None:
    # An interval over responses would hold the mean of scores in 80 %, one of unpaired prompts the
    # difference in more than 99 %, and one between the plain quantiles both in 88 to 91 % of
    # studies with 10 prompts. Of 500 studies the share has a standard deviation of 0.01.
    rng = np.random.default_rng(0)
    held_mean = held_difference = 0
    for number in range(500):
        base, policy = study(rng, num_prompts)
        found = cluster_bootstrap_mean(base, num_resamples=500, seed=number)
        change = cluster_bootstrap_difference(base, policy, num_resamples=500, seed=number)
        held_mean += found.ci_low <= mean <= found.ci_high
        held_difference += change.ci_low <= difference <= change.ci_high
    assert 0.93 <= held_mean / 500 <= 0.97
    assert 0.93 <= held_difference / 500 <= 0.97


def null_of_scores(rng: np.random.Generator, num_prompts: int) -> Arms:
    effects = rng.normal(size=num_prompts)
    return measured(rng, effects, 0.0), measured(
        rng, effects + rng.normal(0, 0.5, num_prompts), 0.0
    )


def null_of_detections(rng: np.random.Generator, num_prompts: int) -> Arms:
    rates = rng.beta(2, 2, num_prompts)
    base, arm = (
        {f"p{i}": list((rng.random(3) < rate).astype(float)) for i, rate in enumerate(rates)}
        for _ in range(2)
    )
    return base, arm


@pytest.mark.parametrize("num_prompts", [10, 40])
@pytest.mark.parametrize("study", [null_of_scores, null_of_detections])
def test_p_values_of_no_difference_are_near_uniform(study: Study, num_prompts: int) -> None:
    # Of 500 studies the share below 0.05 has a standard deviation of 0.01, that below 0.5 of 0.022.
    rng = np.random.default_rng(0)
    p_values = np.array(
        [
            cluster_bootstrap_difference(
                *study(rng, num_prompts), num_resamples=500, seed=number
            ).p_value
            for number in range(500)
        ]
    )
    assert 0.03 <= (p_values < 0.05).mean() <= 0.07
    assert 0.44 <= (p_values < 0.5).mean() <= 0.56
    assert p_values.max() <= 1.0


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_jackknife_of_a_mean_is_the_textbook_standard_error() -> None:
    base = {"p": [0.0], "q": [0.0], "r": [0.0], "s": [0.0]}
    policy = {"p": [1.0], "q": [2.0], "r": [3.0], "s": [6.0]}
    found = cluster_jackknife_statistic(base, policy, left_out_in_turn(mean))
    # Mean 3, variance of the sample (4 + 1 + 0 + 9) / 3, standard error sqrt(14 / 3 / 4), Student's
    # t of 3 degrees of freedom.
    half_width = 3.182446 * math.sqrt(14 / 12)
    assert (found.base, found.arm, found.difference) == (0.0, 3.0, 3.0)
    assert (found.ci_low, found.ci_high) == pytest.approx((3.0 - half_width, 3.0 + half_width))
    assert (found.num_clusters, found.num_responses) == (4, 8)
    # A t of 2.777 lies between the table's 2.353 (p = 0.1) and 3.182 (p = 0.05).
    assert found.p_value == pytest.approx(0.0691, abs=1e-4)


def test_jackknife_leaves_a_prompt_out_of_both_arms() -> None:
    # Prompts move both arms alike; leaving one out of one arm only would move the difference.
    base = {f"p{i}": [float(i**2)] for i in range(5)}
    policy = {prompt: [values[0] + 1] for prompt, values in base.items()}
    found = cluster_jackknife_statistic(base, policy, left_out_in_turn(mean))
    assert (found.ci_low, found.ci_high) == pytest.approx((1.0, 1.0))


def test_jackknife_of_many_prompts_leaves_groups_of_them_out() -> None:
    rng = np.random.default_rng(4)
    base = {f"p{i}": [0.0] for i in range(2050)}
    policy = {
        prompt: [float(value)] for prompt, value in zip(base, rng.normal(size=2050), strict=True)
    }
    sizes: list[int] = []

    def counted(values: list[float]) -> float:
        sizes.append(len(values))
        return mean(values)

    found = cluster_jackknife_statistic(base, policy, left_out_in_turn(counted))
    # All, and without each of 100 groups, in both arms; every prompt is left out once.
    assert sizes.count(2050) == 2
    assert set(sizes) == {2050, 2029, 2030}
    assert sum(2050 - size for size in sizes) == 2 * 2050
    textbook = 1.96 / math.sqrt(2050)
    assert (found.ci_high - found.ci_low) / 2 == pytest.approx(textbook, rel=0.3)
    assert found.num_clusters == 2050


def random_texts(rng: np.random.Generator, concentration: float) -> dict[str, list[list[int]]]:
    # Each prompt has words of its own, the more even the higher the concentration.
    return {
        f"p{i}": rng.choice(30, size=(3, 12), p=rng.dirichlet(np.full(30, concentration))).tolist()
        for i in range(15)
    }


def test_jackknife_intervals_of_distinct_2_hold_the_truth() -> None:
    # A bootstrap of such experiments holds it in less than half.
    rng = np.random.default_rng(0)

    def difference() -> Difference:
        return cluster_jackknife_statistic(
            random_texts(rng, 0.1),
            random_texts(rng, 0.3),
            left_out_in_turn(lambda texts: distinct_n(texts, 2)),
        )

    found = [difference() for _ in range(80)]
    truth = sum(one.difference for one in found) / len(found)
    assert truth > 0.05
    held = sum(one.ci_low <= truth <= one.ci_high for one in found) / len(found)
    assert held >= 0.9
    # Not by being far too wide.
    width = sum(one.ci_high - one.ci_low for one in found) / len(found)
    assert width < 1.6 * 3.92 * float(np.std([one.difference for one in found]))


def test_statistics_refuse_a_prompt_that_is_not_in_both_arms() -> None:
    with pytest.raises(ValueError, match=r"2 of 4 prompts lack a response in one arm: r, s\."):
        cluster_bootstrap_difference(
            {"p": [1.0], "q": [1.0], "r": [1.0]},
            {"p": [1.0], "q": [1.0], "r": [], "s": [1.0]},
            num_resamples=10,
            seed=0,
        )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_statistics_refuse_a_value_that_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="'q'"):
        cluster_bootstrap_mean({"p": [1.0], "q": [1.0, value]}, num_resamples=10, seed=0)
    with pytest.raises(ValueError, match="'q'"):
        cluster_bootstrap_difference(
            {"p": [1.0], "q": [1.0]}, {"p": [1.0], "q": [value]}, num_resamples=10, seed=0
        )
    with pytest.raises(ValueError, match="statistic"):
        cluster_jackknife_statistic(
            {"p": [1.0], "q": [value]}, {"p": [1.0], "q": [1.0]}, left_out_in_turn(sum)
        )


def test_statistics_refuse_a_single_prompt() -> None:
    with pytest.raises(ValueError, match="more prompts"):
        cluster_bootstrap_mean({"p": [1.0, 2.0, 3.0]}, num_resamples=10, seed=0)
    with pytest.raises(ValueError, match="more prompts"):
        cluster_jackknife_statistic({"p": [1.0]}, {"p": [2.0]}, left_out_in_turn(sum))


def test_fall_from_best_by_hand() -> None:
    series = [
        {"a": [0.0], "b": [2.0]},
        {"a": [2.0], "b": [4.0]},
        {"a": [1.0, 1.0], "b": [3.0, 3.0]},
    ]
    found = fall_from_best(series, num_resamples=200, seed=0)
    assert (found.best, found.fall) == (1, 1.0)
    # Both prompts fell by as much, so that no resample differs.
    assert found.limit == pytest.approx(0.0, abs=1e-12)
    assert found.is_established


def test_fall_from_best_is_negative_where_the_last_is_best() -> None:
    found = fall_from_best(
        [{"a": [0.0], "b": [1.0]}, {"a": [1.0], "b": [2.0]}], num_resamples=200, seed=0
    )
    assert (found.best, found.fall, found.is_established) == (0, -1.0, False)


def test_fall_from_the_best_of_more_measurements_has_a_higher_limit() -> None:
    rng = np.random.default_rng(0)
    series = [{f"p{i}": [value] for i, value in enumerate(rng.normal(size=50))} for _ in range(12)]
    limits = [
        fall_from_best([*series[:count], series[-1]], num_resamples=2000, seed=0).limit
        for count in (1, 4, 11)
    ]
    assert limits == sorted(limits)
    assert limits[2] > 1.2 * limits[0]


def test_fall_from_best_needs_the_same_prompts_and_one_before() -> None:
    with pytest.raises(ValueError, match="1 measurement: a fall needs one before"):
        fall_from_best([{"a": [0.0], "b": [1.0]}], num_resamples=200, seed=0)
    with pytest.raises(ValueError, match="lack a response in one arm: c"):
        fall_from_best(
            [{"a": [0.0], "b": [1.0], "c": [1.0]}, {"a": [0.0], "b": [1.0]}],
            num_resamples=200,
            seed=0,
        )
