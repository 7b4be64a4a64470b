"""Holm's correction by hand and under the null, and numbers of prompts."""

import math

import numpy as np
import pytest

from charactertrain.statistics.bootstrap import Difference, cluster_bootstrap_difference
from charactertrain.statistics.significance import holm, prompts_needed, smallest_visible


def test_holm_by_hand() -> None:
    # In order 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and the last no less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_one_p_value_is_that_p_value_and_of_none_none() -> None:
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_is_never_above_one() -> None:
    assert holm([0.9, 0.6, 0.5]) == [1.0, 1.0, 1.0]


def test_holm_of_equal_p_values_is_equal() -> None:
    assert holm([0.01, 0.01, 0.5]) == pytest.approx([0.03, 0.03, 0.5])


def test_holm_finds_nothing_in_95_of_100_studies_of_nothing() -> None:
    p_values = np.random.default_rng(0).uniform(size=(1000, 12))
    # Of 1,000 the share has a standard deviation of 0.007. Uncorrected it would be 0.46.
    share = np.mean([min(holm(row)) < 0.05 for row in p_values.tolist()])
    assert 0.03 < share < 0.07


@pytest.mark.parametrize("p_value", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(p_value: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.5, p_value])


def found(half_width: float, num_prompts: int) -> Difference:
    return Difference(
        base=0.0,
        arm=1.0,
        difference=1.0,
        ci_low=1.0 - half_width,
        ci_high=1.0 + half_width,
        p_value=0.5,
        num_clusters=num_prompts,
        num_responses=2 * num_prompts,
    )


def test_smallest_visible_is_half_the_interval() -> None:
    assert smallest_visible(found(0.3, 20)) == pytest.approx(0.3)


def test_prompts_needed_by_hand() -> None:
    # A spread of 0.5 over prompts; for +-0.05: (1.96 * 0.5 / 0.05)^2 = 384.1 by the normal
    # distribution, and t(386) = 1.966 asks for 387.
    present = found(1.96 * 0.5 / math.sqrt(100_000), 100_000)
    assert prompts_needed(present, half_width=0.05) == 387


def test_prompts_needed_for_what_is_there_are_those_that_are_there() -> None:
    for num_prompts in (2, 5, 30):
        assert prompts_needed(found(0.3, num_prompts), half_width=0.3 + 1e-9) == num_prompts


def test_prompts_needed_without_spread_are_two() -> None:
    assert prompts_needed(found(0.0, 12), half_width=0.1) == 2


@pytest.mark.parametrize("half_width", [0.0, -1.0, math.nan])
def test_prompts_needed_refuses_a_width_that_no_number_reaches(half_width: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        prompts_needed(found(0.3, 20), half_width=half_width)


def test_as_many_prompts_as_needed_give_the_width() -> None:
    rng = np.random.default_rng(0)

    def study(num_prompts: int) -> Difference:
        base = {f"p{i}": list(rng.normal(size=2)) for i in range(num_prompts)}
        arm = {prompt: list(rng.normal(0.3, size=2)) for prompt in base}
        return cluster_bootstrap_difference(base, arm, num_resamples=2000, seed=0)

    num_prompts = prompts_needed(study(400), half_width=0.25)
    assert 50 < num_prompts < 90
    widths = [smallest_visible(study(num_prompts)) for _ in range(20)]
    assert np.mean(widths) == pytest.approx(0.25, rel=0.1)
