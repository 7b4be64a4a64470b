"""Differences over runs and prompts: by hand, in the limits, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from charactertrain.statistics.bootstrap import cluster_bootstrap_difference
from charactertrain.statistics.several_runs import Run, RunsDifference, difference_over_runs


def runs_of(differences_SK: np.ndarray) -> list[Run]:
    base = {f"p{k}": [0.0] for k in range(differences_SK.shape[1])}
    return [(base, {f"p{k}": [value] for k, value in enumerate(row)}) for row in differences_SK]


def test_difference_over_runs_by_hand() -> None:
    # Means of runs 2 and 4, of prompts 2 and 4, of all 3: runs vary by 2 / 2, prompts by 2 / 2,
    # and nothing is left. V = 2, of 2^2 / (1 + 1) = 2 degrees of freedom.
    found = difference_over_runs(runs_of(np.array([[1.0, 3.0], [3.0, 5.0]])))
    assert (found.base, found.arm, found.difference) == (0.0, 3.0, 3.0)
    assert found.by_run == (2.0, 4.0)
    assert found.degrees_of_freedom == pytest.approx(2.0)
    half_width = 4.302653 * math.sqrt(2)
    assert (found.ci_low, found.ci_high) == pytest.approx((3 - half_width, 3 + half_width))
    assert found.run_deviation == pytest.approx(math.sqrt(2))
    # Student's t of 2 degrees of freedom has a closed form: 1 - t / sqrt(2 + t^2).
    t = 3 / math.sqrt(2)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert (found.num_runs, found.num_clusters, found.num_responses) == (2, 2, 8)


def test_runs_that_are_alike_leave_the_interval_of_prompts() -> None:
    changes = np.random.default_rng(0).normal(0.5, 1.0, size=30)
    found = difference_over_runs(runs_of(np.stack([changes] * 3)))
    low, high = ttest_1samp(changes, 0.0).confidence_interval()
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(float(ttest_1samp(changes, 0.0).pvalue))
    assert found.run_deviation == 0.0


def test_prompts_that_are_alike_leave_the_interval_of_runs() -> None:
    changes = np.array([0.2, 0.5, 0.9])
    found = difference_over_runs(runs_of(np.repeat(changes[:, None], 20, axis=1)))
    low, high = ttest_1samp(changes, 0.0).confidence_interval()
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high))
    assert found.run_deviation == pytest.approx(float(changes.std(ddof=1)))
    assert found.degrees_of_freedom == pytest.approx(2.0)


def test_what_a_prompt_does_to_both_arms_cancels() -> None:
    base = {f"p{i}": [100.0 * i, 100.0 * i] for i in range(8)}
    runs = [
        (base, {prompt: [value + change for value in values] for prompt, values in base.items()})
        for change in (1.0, 2.0)
    ]
    found = difference_over_runs(runs)
    half_width = 12.7062 * 0.5
    assert found.difference == pytest.approx(1.5)
    assert (found.ci_low, found.ci_high) == pytest.approx((1.5 - half_width, 1.5 + half_width))


@pytest.mark.parametrize(("change", "p_value"), [(0.0, 1.0), (1.0, 0.25)])
def test_runs_that_changed_every_prompt_by_as_much(change: float, p_value: float) -> None:
    found = difference_over_runs(runs_of(np.full((3, 10), change)))
    assert (found.ci_low, found.ci_high) == (change, change)
    assert found.p_value == p_value


def test_means_are_over_responses_of_each_run_and_then_over_runs() -> None:
    base = {"p": [0.0], "q": [0.0]}
    found = difference_over_runs(
        [(base, {"p": [1.0, 1.0, 1.0], "q": [5.0]}), (base, {"p": [1.0], "q": [3.0]})]
    )
    assert found.by_run == (2.0, 2.0)
    assert found.difference == 2.0
    assert found.num_responses == 10


def drawn(rng: np.random.Generator, num_runs: int, run: float, prompt: float) -> list[Run]:
    """Runs of 40 prompts, two responses each, that differ from a base by 0.5 in the mean."""
    shared_K = rng.normal(size=40)
    base = {f"p{k}": list(value + rng.normal(0, 0.7, 2)) for k, value in enumerate(shared_K)}
    change_K = 0.5 + rng.normal(0, prompt, 40)
    return [
        (base, {f"p{k}": list(mean + rng.normal(0, 0.7, 2)) for k, mean in enumerate(means_K)})
        for means_K in shared_K + change_K + rng.normal(0, run, (num_runs, 1))
    ]


def coverage(num_runs: int, run: float, prompt: float) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    held = of_prompts = 0
    for number in range(500):
        runs = drawn(rng, num_runs, run, prompt)
        found = difference_over_runs(runs)
        held += found.ci_low <= 0.5 <= found.ci_high
        one = cluster_bootstrap_difference(*runs[0], num_resamples=200, seed=number)
        of_prompts += one.ci_low <= 0.5 <= one.ci_high
    return held / 500, of_prompts / 500


# What runs differ by: nothing, as much as the mean over prompts does by chance, or far more.
@pytest.mark.parametrize("run", [0.0, 0.15, 0.5])
@pytest.mark.parametrize(("num_runs", "least"), [(3, 0.91), (5, 0.93)])
def test_intervals_over_runs_hold_the_truth(num_runs: int, least: float, run: float) -> None:
    # Of 500 studies the share has a standard deviation of 0.01.
    held, of_prompts = coverage(num_runs, run, prompt=0.5)
    assert least <= held <= 0.985
    if run == 0.5:
        # Of what the method does, the interval of one run knows little.
        assert of_prompts < 0.6


@pytest.mark.parametrize("run", [0.0, 0.15, 0.5])
def test_p_values_over_three_runs_without_a_difference(run: float) -> None:
    rng = np.random.default_rng(1)
    p_values = np.array(
        [
            difference_over_runs(
                runs_of(
                    rng.normal(0, run, (3, 1)) + rng.normal(0, 0.5, 40) + rng.normal(size=(3, 40))
                )
            ).p_value
            for _ in range(500)
        ]
    )
    assert 0.01 <= (p_values < 0.05).mean() <= 0.09


def test_more_runs_narrow_the_interval_where_runs_differ() -> None:
    rng = np.random.default_rng(2)

    def width(found: RunsDifference) -> float:
        return found.ci_high - found.ci_low

    widths = [
        np.mean([width(difference_over_runs(drawn(rng, n, 0.5, 0.5))) for _ in range(30)])
        for n in (2, 3, 5)
    ]
    assert widths[0] > 1.5 * widths[1] > 1.5 * 1.5 * widths[2]


def test_difference_over_runs_refuses_one_run_and_other_prompts() -> None:
    runs = runs_of(np.ones((2, 3)))
    with pytest.raises(ValueError, match="1 run: how much runs differ"):
        difference_over_runs(runs[:1])
    with pytest.raises(ValueError, match=r"run 1 and run 2 .* 1 are in one of them only.* p2"):
        difference_over_runs([runs[0], *runs_of(np.ones((1, 2)))])
