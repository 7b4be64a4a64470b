"""Advantages: by hand, the level that must not matter, and a baseline that looks back only."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.advantages import (
    RunningBaseline,
    centered_advantages,
    grpo_advantages,
    leave_one_out_advantages,
    zero_variance_groups,
)

REWARDS = torch.tensor([[1.0, 2.0, 6.0], [-1.0, 0.0, 1.0]])


def test_centered_advantages_by_hand() -> None:
    # Means 3 and 0.
    expected = torch.tensor([[-2.0, -1.0, 3.0], [-1.0, 0.0, 1.0]])
    torch.testing.assert_close(centered_advantages(REWARDS), expected)


def test_grpo_advantages_by_hand() -> None:
    # Standard deviations of the sample: sqrt((4 + 1 + 9) / 2) = sqrt 7, and 1; epsilon 0.5.
    scale = torch.tensor([[math.sqrt(7) + 0.5], [1.5]])
    expected = torch.tensor([[-2.0, -1.0, 3.0], [-1.0, 0.0, 1.0]]) / scale
    torch.testing.assert_close(grpo_advantages(REWARDS, epsilon=0.5), expected)


def test_leave_one_out_advantages_by_hand() -> None:
    # 1 - (2 + 6)/2 = -3, 2 - (1 + 6)/2 = -1.5, 6 - (1 + 2)/2 = 4.5; -1 - 1/2, 0 - 0, 1 + 1/2.
    expected = torch.tensor([[-3.0, -1.5, 4.5], [-1.5, 0.0, 1.5]])
    torch.testing.assert_close(leave_one_out_advantages(REWARDS), expected)


@pytest.mark.parametrize(
    "advantages",
    [centered_advantages, leave_one_out_advantages, lambda r: grpo_advantages(r, epsilon=1e-4)],
)
def test_advantages_sum_to_zero_and_ignore_the_level_of_a_prompt(
    advantages: Callable[[Tensor], Tensor],
) -> None:
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = torch.tensor([[0.0], [1.0], [-3.0], [50.0], [1e4]], dtype=torch.float64)
    torch.testing.assert_close(advantages(rewards).sum(-1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(advantages(rewards + levels), advantages(rewards))


def test_only_grpo_advantages_ignore_the_scale_of_a_prompt() -> None:
    torch.testing.assert_close(
        grpo_advantages(9 * REWARDS, epsilon=0.0), grpo_advantages(REWARDS, epsilon=0.0)
    )
    torch.testing.assert_close(centered_advantages(9 * REWARDS), 9 * centered_advantages(REWARDS))


def test_equal_rewards_give_exactly_zero_even_where_a_mean_rounds() -> None:
    # In float32 the mean of three numbers 1000.1 is not 1000.1, and the rest over a standard
    # deviation of the same size would be an advantage near 1.
    rewards = torch.full((1, 3), 1000.1)
    assert (rewards - rewards.mean(-1, keepdim=True)).abs().max() > 0
    assert torch.equal(grpo_advantages(rewards, epsilon=1e-6), torch.zeros(1, 3))


def test_zero_variance_groups() -> None:
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2], [-1.0, 1.0, 0.0]])
    assert zero_variance_groups(rewards).tolist() == [True, False, False]


def test_advantages_refuse_a_group_of_one() -> None:
    with pytest.raises(AssertionError, match="baseline"):
        leave_one_out_advantages(torch.zeros(4, 1))


def test_advantages_refuse_a_flat_batch() -> None:
    with pytest.raises(AssertionError, match="not PG"):
        centered_advantages(torch.zeros(4))


def test_running_baseline_by_hand() -> None:
    # Step means 3 and 0 at decay 1/2: (1/4 * 3 + 1/2 * 0) / (3/4) = 1.
    baseline = RunningBaseline()
    for row in REWARDS.split(1):
        baseline = baseline.updated(row, decay=0.5)
    assert baseline == RunningBaseline(mean=1.0, weight=0.75)
    torch.testing.assert_close(
        baseline.advantages(REWARDS), torch.tensor([[0.0, 1.0, 5.0], [-2.0, -1.0, 0.0]])
    )


def test_running_baseline_is_that_of_earlier_steps() -> None:
    baseline = RunningBaseline().updated(REWARDS, decay=0.9)
    # 1.5 after one step, whatever the decay: what the average starts from counts for nothing.
    assert baseline.mean == pytest.approx(1.5)
    rewards = torch.tensor([[10.0, 20.0]])
    torch.testing.assert_close(baseline.advantages(rewards), torch.tensor([[8.5, 18.5]]))
    # A reward moves no advantage but its own.
    moved = baseline.advantages(rewards + torch.tensor([[0.0, 7.0]]))
    torch.testing.assert_close(moved, torch.tensor([[8.5, 25.5]]))


def test_running_baseline_leaves_one_out_where_there_is_no_earlier_step() -> None:
    torch.testing.assert_close(
        RunningBaseline().advantages(REWARDS), leave_one_out_advantages(REWARDS)
    )


def test_running_baseline_is_the_weighted_mean_of_all_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [5 + torch.randn(3, 4, generator=generator) for _ in range(20)]
    baseline = RunningBaseline()
    for rewards in steps:
        baseline = baseline.updated(rewards, decay=0.8)
    weights = [0.8 ** (19 - step) for step in range(20)]
    means = [rewards.double().mean().item() for rewards in steps]
    expected = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
    assert baseline.mean == pytest.approx(expected, rel=1e-12)
    assert baseline.weight == pytest.approx(1 - 0.8**20, rel=1e-12)


def test_running_baseline_without_decay_is_the_last_step() -> None:
    baseline = RunningBaseline(mean=-50.0, weight=1.0).updated(REWARDS, decay=0.0)
    assert baseline == RunningBaseline(mean=1.5, weight=1.0)


def test_running_baseline_comes_back_from_json() -> None:
    baseline = RunningBaseline().updated(REWARDS / 3, decay=0.9)
    assert RunningBaseline(**json.loads(json.dumps(asdict(baseline)))) == baseline


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_running_baseline_refuses_a_decay_out_of_range(decay: float) -> None:
    with pytest.raises(AssertionError, match="decay"):
        RunningBaseline().updated(REWARDS, decay=decay)
