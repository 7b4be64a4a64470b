"""The Bradley-Terry loss: by hand, its invariances and its gradient."""

import math

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.preference import bradley_terry_loss, reward_centering

LOG_4_3 = math.log(4 / 3)
LOG_4 = math.log(4)


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Margins log 3, -log 3, 0, log 3: sigma is 3/4, 1/4, 1/2, 3/4.
    rewards = torch.tensor([math.log(3.0), 1.0, 2.0, math.log(3.0) - 5.0])
    other_rewards = torch.tensor([0.0, 1.0 + math.log(3.0), 2.0, -5.0])
    probabilities = torch.tensor([1.0, 0.75, 0.25, 0.5])
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0])
    return rewards, other_rewards, probabilities, weights


def test_bradley_terry_loss_by_hand() -> None:
    # Pair 1: p = 1, sigma = 3/4: log(4/3).
    # Pair 2: p = 3/4, sigma = 1/4: 3/4 log 4 + 1/4 log(4/3), twice.
    # Pair 3: sigma = 1/2: log 2 for any p, four times.
    # Pair 4: p = 1/2, sigma = 3/4: half log(4/3) + half log 4, eight times.
    expected = (
        LOG_4_3
        + 2 * (0.75 * LOG_4 + 0.25 * LOG_4_3)
        + 4 * math.log(2)
        + 8 * (0.5 * LOG_4_3 + 0.5 * LOG_4)
    )
    assert bradley_terry_loss(*pairs()).loss_sum.item() == pytest.approx(expected, rel=1e-6)


def test_bradley_terry_statistics_by_hand() -> None:
    terms = bradley_terry_loss(*pairs())
    assert terms.weight_sum.item() == 15.0
    # Pair 1 agrees. Pair 2 is wrong, pair 3 has no sign, pair 4 has no label.
    assert terms.accuracy_sum.item() == 1.0
    assert terms.undecided_weight_sum.item() == 8.0
    log_3 = math.log(3)
    torch.testing.assert_close(terms.margins_B, torch.tensor([log_3, -log_3, 0.0, log_3]))


def test_bradley_terry_accuracy_counts_agreement_with_a_label_below_one_half() -> None:
    # Rejected is the better one by label and by reward; the weight of the pair is 3.
    terms = bradley_terry_loss(
        torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([0.1]), torch.tensor([3.0])
    )
    assert terms.accuracy_sum.item() == 3.0


def test_bradley_terry_accuracy_leaves_out_an_undecided_pair_of_equal_rewards() -> None:
    terms = bradley_terry_loss(torch.ones(1), torch.ones(1), torch.tensor([0.5]), torch.ones(1))
    assert terms.accuracy_sum.item() == 0.0


def test_bradley_terry_depends_on_the_margin_only() -> None:
    chosen, rejected, probabilities, weights = pairs()
    shifted = bradley_terry_loss(chosen + 7.0, rejected + 7.0, probabilities, weights)
    plain = bradley_terry_loss(chosen, rejected, probabilities, weights)
    torch.testing.assert_close(shifted.loss_sum, plain.loss_sum)


def test_bradley_terry_is_the_same_for_a_pair_told_the_other_way_round() -> None:
    chosen, rejected, probabilities, weights = pairs()
    plain = bradley_terry_loss(chosen, rejected, probabilities, weights)
    swapped = bradley_terry_loss(rejected, chosen, 1 - probabilities, weights)
    torch.testing.assert_close(swapped.loss_sum, plain.loss_sum)
    torch.testing.assert_close(swapped.accuracy_sum, plain.accuracy_sum)
    torch.testing.assert_close(swapped.margins_B, -plain.margins_B)


def test_bradley_terry_micro_batches_add_up() -> None:
    whole = bradley_terry_loss(*pairs())
    parts = [
        bradley_terry_loss(*(tensor[part] for tensor in pairs()))
        for part in (slice(0, 1), slice(1, 4))
    ]
    for name in ("loss_sum", "weight_sum", "accuracy_sum", "undecided_weight_sum"):
        torch.testing.assert_close(
            sum(getattr(part, name) for part in parts), getattr(whole, name), msg=name
        )


def test_bradley_terry_gradient_is_weight_times_sigma_minus_label() -> None:
    chosen, rejected, probabilities, weights = pairs()
    chosen.requires_grad_()
    rejected.requires_grad_()
    bradley_terry_loss(chosen, rejected, probabilities, weights).loss_sum.backward()
    # sigma - p: 3/4 - 1, 1/4 - 3/4, 1/2 - 1/4, 3/4 - 1/2, times 1, 2, 4, 8.
    expected = torch.tensor([-0.25, -1.0, 1.0, 2.0])
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


def test_bradley_terry_is_stable_for_large_margins() -> None:
    chosen = torch.tensor([1e4, -1e4, 1e4], requires_grad=True)
    terms = bradley_terry_loss(
        chosen, torch.zeros(3), torch.tensor([1.0, 1.0, 0.25]), torch.ones(3)
    )
    # Right by far: 0. Wrong by far: the margin. A quarter wrong: 3/4 of the margin.
    assert terms.loss_sum.item() == pytest.approx(0.0 + 1e4 + 0.75e4)
    terms.loss_sum.backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([0.0, -1.0, 0.75]))


def test_bradley_terry_margins_of_bfloat16_rewards_are_taken_in_float32() -> None:
    # 10.0625 and 0.0078125 are bfloat16 numbers; their difference 10.0546875 is not.
    chosen = torch.tensor([10.0625], dtype=torch.bfloat16)
    rejected = torch.tensor([0.0078125], dtype=torch.bfloat16)
    terms = bradley_terry_loss(chosen, rejected, torch.ones(1), torch.ones(1))
    assert terms.margins_B.item() == 10.0546875


def test_bradley_terry_refuses_a_column_of_rewards() -> None:
    # As a sequence classifier returns them: the difference of B1 and B would be BB.
    with pytest.raises(AssertionError, match="not B"):
        bradley_terry_loss(torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2), torch.ones(2))


def test_reward_centering_by_hand() -> None:
    # (1 + 2)^2 + 3 (0.5 - 1.5)^2 = 9 + 3.
    value = reward_centering(
        torch.tensor([1.0, 0.5]), torch.tensor([2.0, -1.5]), torch.tensor([1.0, 3.0])
    )
    assert value.item() == 12.0


def test_reward_centering_says_nothing_about_the_margin() -> None:
    chosen = torch.tensor([1.0, 0.5], requires_grad=True)
    rejected = torch.tensor([2.0, -1.0], requires_grad=True)
    reward_centering(chosen, rejected, torch.ones(2)).backward()
    torch.testing.assert_close(chosen.grad, rejected.grad)
    torch.testing.assert_close(chosen.grad, torch.tensor([6.0, -1.0]))
