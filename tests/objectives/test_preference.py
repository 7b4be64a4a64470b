"""The losses of the preference model: by hand, their invariances and their gradients."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.preference import (
    bradley_terry_loss,
    label_margins,
    plackett_luce_loss,
    reward_centering,
)

LOG_4_3 = math.log(4 / 3)
LOG_4 = math.log(4)


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Differences log 3, -log 3, 0, log 3: sigma is 3/4, 1/4, 1/2, 3/4. No margins.
    rewards = torch.tensor([math.log(3.0), 1.0, 2.0, math.log(3.0) - 5.0])
    other_rewards = torch.tensor([0.0, 1.0 + math.log(3.0), 2.0, -5.0])
    probabilities = torch.tensor([1.0, 0.75, 0.25, 0.5])
    weights = torch.tensor([1.0, 2.0, 4.0, 8.0])
    return rewards, other_rewards, probabilities, weights, torch.zeros(4)


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
    torch.testing.assert_close(terms.differences_B, torch.tensor([log_3, -log_3, 0.0, log_3]))


def test_bradley_terry_accuracy_counts_agreement_with_a_label_below_one_half() -> None:
    # Rejected is the better one by label and by reward; the weight of the pair is 3.
    terms = bradley_terry_loss(
        torch.tensor([0.0]),
        torch.tensor([2.0]),
        torch.tensor([0.1]),
        torch.tensor([3.0]),
        torch.zeros(1),
    )
    assert terms.accuracy_sum.item() == 3.0


def test_bradley_terry_accuracy_leaves_out_an_undecided_pair_of_equal_rewards() -> None:
    terms = bradley_terry_loss(
        torch.ones(1), torch.ones(1), torch.tensor([0.5]), torch.ones(1), torch.zeros(1)
    )
    assert terms.accuracy_sum.item() == 0.0


def test_bradley_terry_depends_on_the_difference_only() -> None:
    chosen, rejected, *labels = pairs()
    shifted = bradley_terry_loss(chosen + 7.0, rejected + 7.0, *labels)
    plain = bradley_terry_loss(chosen, rejected, *labels)
    torch.testing.assert_close(shifted.loss_sum, plain.loss_sum)


def test_bradley_terry_is_the_same_for_a_pair_told_the_other_way_round() -> None:
    chosen, rejected, probabilities, weights, _ = pairs()
    margins = torch.tensor([0.5, -1.5, 2.0, 0.25])
    plain = bradley_terry_loss(chosen, rejected, probabilities, weights, margins)
    swapped = bradley_terry_loss(rejected, chosen, 1 - probabilities, weights, -margins)
    torch.testing.assert_close(swapped.loss_sum, plain.loss_sum)
    torch.testing.assert_close(swapped.accuracy_sum, plain.accuracy_sum)
    torch.testing.assert_close(swapped.differences_B, -plain.differences_B)
    # What the margins ask for is in the loss of both.
    without = bradley_terry_loss(chosen, rejected, probabilities, weights, torch.zeros(4))
    assert abs(plain.loss_sum.item() - without.loss_sum.item()) > 1.0


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
    chosen, rejected, *labels = pairs()
    chosen.requires_grad_()
    rejected.requires_grad_()
    bradley_terry_loss(chosen, rejected, *labels).loss_sum.backward()
    # sigma - p: 3/4 - 1, 1/4 - 3/4, 1/2 - 1/4, 3/4 - 1/2, times 1, 2, 4, 8.
    expected = torch.tensor([-0.25, -1.0, 1.0, 2.0])
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


def test_bradley_terry_is_stable_for_large_differences() -> None:
    chosen = torch.tensor([1e4, -1e4, 1e4], requires_grad=True)
    terms = bradley_terry_loss(
        chosen, torch.zeros(3), torch.tensor([1.0, 1.0, 0.25]), torch.ones(3), torch.zeros(3)
    )
    # Right by far: 0. Wrong by far: the difference. A quarter wrong: 3/4 of the difference.
    assert terms.loss_sum.item() == pytest.approx(0.0 + 1e4 + 0.75e4)
    terms.loss_sum.backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([0.0, -1.0, 0.75]))


def test_bradley_terry_differences_of_bfloat16_rewards_are_taken_in_float32() -> None:
    # 10.0625 and 0.0078125 are bfloat16 numbers; their difference 10.0546875 is not.
    chosen = torch.tensor([10.0625], dtype=torch.bfloat16)
    rejected = torch.tensor([0.0078125], dtype=torch.bfloat16)
    terms = bradley_terry_loss(chosen, rejected, torch.ones(1), torch.ones(1), torch.zeros(1))
    assert terms.differences_B.item() == 10.0546875


def test_bradley_terry_refuses_a_column_of_rewards() -> None:
    # As a sequence classifier returns them: the difference of B1 and B would be BB.
    column, labels = torch.zeros(2, 1), torch.ones(2)
    with pytest.raises(AssertionError, match="not B"):
        bradley_terry_loss(column, column, labels, labels, labels)


def test_bradley_terry_margin_takes_the_place_of_reward_by_hand() -> None:
    # Pair 1: d - m = 2 log 3 - log 3, sigma 3/4, p = 1. Pair 2: 0 - log 3, sigma 1/4, p = 3/4.
    # Pair 3: -log 3 + 2 log 3, sigma 3/4, p = 1/4.
    log_3 = math.log(3)
    chosen = torch.tensor([2 * log_3, 0.0, -log_3], requires_grad=True)
    terms = bradley_terry_loss(
        chosen,
        torch.zeros(3),
        torch.tensor([1.0, 0.75, 0.25]),
        torch.tensor([1.0, 2.0, 4.0]),
        torch.tensor([log_3, log_3, -2 * log_3]),
    )
    expected = LOG_4_3 + 2 * (0.75 * LOG_4 + 0.25 * LOG_4_3) + 4 * (0.25 * LOG_4_3 + 0.75 * LOG_4)
    assert terms.loss_sum.item() == pytest.approx(expected, rel=1e-6)
    terms.loss_sum.backward()
    # sigma - p: 3/4 - 1, 1/4 - 3/4, 3/4 - 1/4, times 1, 2, 4.
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.25, -1.0, 2.0]))


def test_bradley_terry_statistics_leave_margins_out() -> None:
    # Ahead by 1 where 3 are asked for: right all the same, and the difference is 1.
    terms = bradley_terry_loss(
        torch.tensor([1.0]),
        torch.tensor([0.0]),
        torch.tensor([0.9]),
        torch.tensor([2.0]),
        torch.tensor([3.0]),
    )
    assert terms.accuracy_sum.item() == 2.0
    assert terms.differences_B.item() == 1.0


def test_label_margins_by_hand() -> None:
    probabilities = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    expected = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    torch.testing.assert_close(label_margins(probabilities, 2.0), expected)
    assert label_margins(probabilities, 0.0).tolist() == [0.0] * 5


def permutation_loss(rewards_K: Tensor, utilities_K: Tensor) -> Tensor:
    """The cross-entropy of two distributions over permutations, by going through all of them."""
    num_responses = len(rewards_K)

    def logprob(order: tuple[int, ...], values_K: Tensor) -> Tensor:
        chosen = values_K[list(order)]
        return sum(
            (chosen[i] - chosen[i:].logsumexp(0) for i in range(num_responses - 1)),
            start=torch.zeros((), dtype=torch.float64),
        )

    orders = list(permutations(range(num_responses)))
    terms = [logprob(order, utilities_K).exp() * logprob(order, rewards_K) for order in orders]
    return -torch.stack(terms).sum() / (num_responses - 1)


@pytest.mark.parametrize("difference", [-30.0, -2.0, -0.3, 0.0, 0.7, 5.0])
@pytest.mark.parametrize("label", [-40.0, -1.5, 0.0, 0.4, 3.0])
def test_plackett_luce_of_two_is_bradley_terry(difference: float, label: float) -> None:
    rewards = torch.tensor([[difference + 0.5, 0.5]], requires_grad=True)
    loss = plackett_luce_loss(rewards, torch.tensor([[label - 1.0, -1.0]]))
    loss.sum().backward()
    pair = torch.tensor([difference + 0.5, 0.5], requires_grad=True)
    probability = torch.tensor([label]).sigmoid()
    terms = bradley_terry_loss(pair[:1], pair[1:], probability, torch.ones(1), torch.zeros(1))
    terms.loss_sum.backward()
    torch.testing.assert_close(loss[0], terms.loss_sum)
    assert rewards.grad is not None
    torch.testing.assert_close(rewards.grad[0], pair.grad)


def test_plackett_luce_of_a_certain_order_by_hand() -> None:
    # The order is 1, 0, 2: -log softmax of 1 among three, then of 0 among 0 and 2.
    rewards = torch.tensor([[0.5, -1.0, 2.0]])
    loss = plackett_luce_loss(rewards, torch.tensor([[40.0, 80.0, 0.0]]))
    first = math.log(math.exp(0.5) + math.exp(-1.0) + math.exp(2.0)) + 1.0
    second = math.log(math.exp(0.5) + math.exp(2.0)) - 0.5
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)


@pytest.mark.parametrize("num_responses", [2, 3, 4, 5])
def test_plackett_luce_is_the_cross_entropy_over_all_permutations(num_responses: int) -> None:
    generator = torch.Generator().manual_seed(num_responses)
    rewards = 2 * torch.randn(6, num_responses, generator=generator)
    utilities = 2 * torch.randn(6, num_responses, generator=generator)
    rewards.requires_grad_()
    losses = plackett_luce_loss(rewards, utilities)
    losses.sum().backward()
    exact = rewards.detach().double().requires_grad_()
    expected = [permutation_loss(*of_one) for of_one in zip(exact, utilities.double(), strict=True)]
    torch.stack(expected).sum().backward()
    torch.testing.assert_close(losses.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert rewards.grad is not None
    torch.testing.assert_close(rewards.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_plackett_luce_of_a_tie_is_the_mean_over_both_orders() -> None:
    rewards = torch.tensor([[1.0, -0.5, 1.5, 0.5]])

    def loss(*utilities: float) -> float:
        return plackett_luce_loss(rewards, torch.tensor([utilities])).item()

    # Responses 1 and 2 are tied behind 0 and before 3.
    both = (loss(120.0, 80.0, 40.0, 0.0) + loss(120.0, 40.0, 80.0, 0.0)) / 2
    assert loss(80.0, 40.0, 40.0, 0.0) == pytest.approx(both, rel=1e-6)
    assert loss(120.0, 80.0, 40.0, 0.0) != pytest.approx(both, rel=1e-2)


def test_plackett_luce_of_ten_equal_responses_by_hand() -> None:
    # Each choice among k costs log k, for k from 10 down to 2.
    loss = plackett_luce_loss(torch.full((1, 10), 3.0), torch.full((1, 10), -1.0))
    assert loss.item() == pytest.approx(math.log(math.factorial(10)) / 9, rel=1e-5)


def test_plackett_luce_does_not_depend_on_the_order_of_responses() -> None:
    rewards, utilities = torch.tensor([0.3, -1.2, 2.0, 0.9]), torch.tensor([1.5, 0.2, -0.7, 1.4])
    plain = plackett_luce_loss(rewards[None], utilities[None])
    for order in permutations(range(4)):
        again = plackett_luce_loss(rewards[list(order)][None], utilities[list(order)][None])
        torch.testing.assert_close(again, plain)


def test_plackett_luce_depends_on_differences_only() -> None:
    rewards = torch.tensor([[0.25, -1.25, 2.0, 0.75]])
    utilities = torch.tensor([[1.5, 0.25, -0.75, 1.25]])
    plain = plackett_luce_loss(rewards, utilities)
    torch.testing.assert_close(plackett_luce_loss(rewards + 5.0, utilities), plain)
    torch.testing.assert_close(plackett_luce_loss(rewards, utilities - 50.0), plain)


def test_plackett_luce_is_lowest_where_rewards_are_the_utilities() -> None:
    generator = torch.Generator().manual_seed(5)
    utilities = 1.5 * torch.randn(6, 4, generator=generator)
    rewards = (utilities + 2.5).requires_grad_()
    lowest = plackett_luce_loss(rewards, utilities)
    lowest.sum().backward()
    torch.testing.assert_close(rewards.grad, torch.zeros(6, 4), rtol=0, atol=1e-6)
    for _ in range(20):
        elsewhere = utilities + 0.5 * torch.randn(6, 4, generator=generator)
        assert (plackett_luce_loss(elsewhere, utilities) > lowest).all()


def test_plackett_luce_of_several_prompts_is_that_of_each_alone() -> None:
    generator = torch.Generator().manual_seed(6)
    rewards = torch.randn(5, 3, generator=generator)
    utilities = torch.randn(5, 3, generator=generator)
    losses = plackett_luce_loss(rewards, utilities)
    assert losses.shape == (5,)
    alone = [plackett_luce_loss(rewards[g : g + 1], utilities[g : g + 1]) for g in range(5)]
    torch.testing.assert_close(losses, torch.cat(alone))


def test_plackett_luce_is_stable_for_large_rewards_and_utilities() -> None:
    rewards = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    loss = plackett_luce_loss(rewards, torch.tensor([[-1e6, 0.0, 1e6]]))
    # The order is 2, 1, 0: 2e4 for the first choice and 1e4 for the second.
    assert loss.item() == pytest.approx(1.5e4)
    loss.sum().backward()
    torch.testing.assert_close(rewards.grad, torch.tensor([[1.0, -0.5, -0.5]]))


def test_plackett_luce_of_a_right_order_by_far_costs_nothing() -> None:
    rewards = torch.tensor([[1e4, 0.0, -1e4, -2e4]], requires_grad=True)
    loss = plackett_luce_loss(rewards, torch.tensor([[1e6, 1e5, 0.0, -1e30]]))
    assert loss.item() == 0.0
    loss.sum().backward()
    torch.testing.assert_close(rewards.grad, torch.zeros(1, 4))


def test_plackett_luce_of_bfloat16_rewards_is_computed_in_float32() -> None:
    rewards = torch.tensor([[10.0625, 0.0078125, 3.0]], dtype=torch.bfloat16)
    utilities = torch.tensor([[0.0, 1.0, 2.0]])
    loss = plackett_luce_loss(rewards, utilities)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plackett_luce_loss(rewards.float(), utilities))


@pytest.mark.parametrize("num_responses", [1, 11])
def test_plackett_luce_refuses_lists_that_are_too_short_or_too_long(num_responses: int) -> None:
    values = torch.zeros(2, num_responses)
    with pytest.raises(ValueError, match=rf"2 to 10 responses, found {num_responses}"):
        plackett_luce_loss(values, values)


def test_plackett_luce_refuses_a_single_list() -> None:
    with pytest.raises(AssertionError, match="not GK"):
        plackett_luce_loss(torch.zeros(3), torch.zeros(3))


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
