"""Estimates of the KL and the loss that holds the ending: by hand, and their gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.policy import ending_loss, kl_k1, kl_k2, kl_k3


def test_kl_estimates_by_hand() -> None:
    # pi / ref = 2: log 2, log(2)^2 / 2, and 1/2 - 1 + log 2.
    logprobs, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert kl_k1(logprobs, reference).item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_k2(logprobs, reference).item() == pytest.approx(0.240227, abs=1e-6)
    assert kl_k3(logprobs, reference).item() == pytest.approx(0.193147, abs=1e-6)


def test_kl_k3_keeps_its_digits_where_policy_and_reference_nearly_agree() -> None:
    # x^2 / 2 = 5e-9 for a log-ratio of 1e-4; exp(x) - 1 - x in float32 would be off by 1e-7.
    value = kl_k3(torch.tensor([1e-4]), torch.tensor([0.0])).item()
    assert value == pytest.approx(5e-9, rel=2e-3)


@pytest.mark.parametrize("estimate", [kl_k1, kl_k2, kl_k3])
@pytest.mark.parametrize("difference", [1000.0, -1000.0])
def test_kl_estimates_are_finite_where_policy_and_reference_are_far_apart(
    estimate: Callable[[Tensor, Tensor], Tensor], difference: float
) -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    value = estimate(logprobs, torch.tensor([-1.0 + difference]))
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), logprobs)
    assert gradient.isfinite().all()


def policy_and_reference() -> tuple[Tensor, Tensor]:
    logits = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    return logits, reference


def expected_gradient(estimate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Exact expectation over tokens sampled from the policy of the gradient of an estimate."""
    logits, reference = policy_and_reference()
    logprobs = logits.log_softmax(-1)
    # Sampling is not differentiated through, hence the detached probabilities.
    average = (logprobs.detach().exp() * estimate(logprobs, reference)).sum()
    (gradient,) = torch.autograd.grad(average, logits)
    return gradient


def reverse_kl() -> tuple[Tensor, Tensor]:
    logits, reference = policy_and_reference()
    logprobs = logits.log_softmax(-1)
    return (logprobs.exp() * (logprobs - reference)).sum(), logits


def forward_kl() -> tuple[Tensor, Tensor]:
    logits, reference = policy_and_reference()
    return (reference.exp() * (reference - logits.log_softmax(-1))).sum(), logits


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    logits, reference = policy_and_reference()
    logprobs = logits.log_softmax(-1)
    truth = reverse_kl()[0].item()
    estimates = (kl_k1, kl_k2, kl_k3)
    mean = {e: (logprobs.exp() * e(logprobs, reference)).sum().item() for e in estimates}
    assert mean[kl_k1] == pytest.approx(truth, abs=1e-12)
    assert mean[kl_k3] == pytest.approx(truth, abs=1e-12)
    assert abs(mean[kl_k2] - truth) > 0.01


def test_gradient_of_k1_has_mean_zero() -> None:
    torch.testing.assert_close(expected_gradient(kl_k1), torch.zeros(4, dtype=torch.float64))


def test_gradient_of_k2_is_that_of_the_reverse_kl() -> None:
    (truth,) = torch.autograd.grad(*reverse_kl())
    assert truth.abs().max() > 0.1
    torch.testing.assert_close(expected_gradient(kl_k2), truth)


def test_gradient_of_k3_is_that_of_the_forward_kl_and_not_of_the_reverse() -> None:
    (forward,) = torch.autograd.grad(*forward_kl())
    (reverse,) = torch.autograd.grad(*reverse_kl())
    torch.testing.assert_close(expected_gradient(kl_k3), forward)
    assert (forward - reverse).abs().max() > 0.05


def test_descending_k2_brings_the_policy_to_the_reference() -> None:
    logits, reference = policy_and_reference()
    for _ in range(200):
        logprobs = logits.log_softmax(-1)
        loss = (logprobs.detach().exp() * kl_k2(logprobs, reference)).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    torch.testing.assert_close(logits.log_softmax(-1), reference, atol=1e-4, rtol=0.0)


def test_ending_loss_by_hand() -> None:
    # An end of probability 1/4 under the policy and 1/2 under the reference, and one where they
    # agree: 1/2 log(1/2 : 1/4) + 1/2 log(1/2 : 3/4), over 4 tokens, two of them elsewhere.
    policy = torch.tensor([0.25, 0.9]).log().requires_grad_()
    reference = torch.tensor([0.5, 0.9]).log()
    loss = ending_loss(policy, reference, torch.full((2,), 0.25))
    assert loss.item() == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 4)


@pytest.mark.parametrize("reference", [1e-4, 0.3, 0.9999])
def test_ending_loss_pulls_the_log_odds_by_the_difference_of_probabilities(
    reference: float,
) -> None:
    log_odds = torch.tensor([-12.0, -1.0, 0.5, 9.0], requires_grad=True)
    end_logprobs = torch.nn.functional.logsigmoid(log_odds)
    target = torch.full_like(log_odds, reference)
    ending_loss(end_logprobs, target.log(), torch.ones(4)).backward()
    torch.testing.assert_close(log_odds.grad, log_odds.sigmoid() - target, atol=1e-4, rtol=1e-3)


def test_ending_loss_is_finite_where_ending_is_certain_or_impossible() -> None:
    ends = torch.tensor([0.0, -1000.0], requires_grad=True)
    loss = ending_loss(ends, ends.detach().flip(-1), torch.full((2,), 0.5))
    loss.backward()
    assert loss.isfinite()
    assert ends.grad is not None
    assert ends.grad.isfinite().all()
    assert ending_loss(ends, ends.detach(), torch.full((2,), 0.5)).item() == 0.0
