"""The clipped surrogate, importance weights and KL estimates: by hand, and their gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.policy import (
    clipped_policy_loss,
    ending_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    truncated_importance_weights,
)

CLIP_LOW, CLIP_HIGH = 0.2, 0.3


def test_clipped_policy_loss_by_hand() -> None:
    ratios = torch.tensor([[1.2, 2.0, 0.5, 1.4], [2.0, 0.5, 3.0, 3.0]])
    advantages = torch.tensor([[1.0], [-1.0]])
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    behaviour = torch.full((2, 4), -1.5)
    terms = clipped_policy_loss(
        behaviour + ratios.log(),
        behaviour,
        advantages,
        mask,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        num_tokens=10,
    )
    # min(r A, clip(r) A): 1.2, 1.3 (clipped), 0.5, 1.3 (clipped), -2, -0.8 (clipped): 1.5 in all.
    assert terms.loss.item() == pytest.approx(-1.5 / 10)
    assert terms.ratio_sum.item() == pytest.approx(1.2 + 2 + 0.5 + 1.4 + 2 + 0.5)
    assert terms.clipped_sum.item() == 3.0


def test_clipping_takes_the_gradient_only_from_moves_that_have_gone_too_far() -> None:
    ratios = torch.tensor([[1.2, 2.0, 0.5], [2.0, 0.5, 1.0]])
    advantages = torch.tensor([[1.0], [-1.0]])
    logprobs = ratios.log().requires_grad_()
    clipped_policy_loss(
        logprobs,
        torch.zeros(2, 3),
        advantages,
        torch.ones(2, 3, dtype=torch.bool),
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        num_tokens=1,
    ).loss.backward()
    # d(-r A)/d logprob = -r A where it counts, 0 where the clipped side is the smaller one.
    expected = torch.tensor([[-1.2, 0.0, -0.5], [2.0, 0.0, 1.0]])
    torch.testing.assert_close(logprobs.grad, expected)


def test_policy_loss_with_equal_logprobs_is_the_mean_advantage_negated() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    advantages = torch.tensor([[2.0], [-0.5]])
    mask = torch.tensor([[True, True], [True, False]])
    terms = clipped_policy_loss(
        logprobs,
        logprobs.detach(),
        advantages,
        mask,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        num_tokens=3,
    )
    assert terms.loss.item() == pytest.approx(-(2.0 + 2.0 - 0.5) / 3)
    assert terms.ratio_sum.item() == 3.0
    assert terms.clipped_sum.item() == 0.0
    terms.loss.backward()
    # A step down this gradient makes the good response likelier and the bad one less likely.
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-2.0, -2.0], [0.5, 0.0]]) / 3)


def test_policy_loss_gives_the_behaviour_no_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    # On policy the same tensor may stand for both.
    clipped_policy_loss(
        logprobs,
        logprobs,
        torch.ones(1, 1),
        torch.ones(1, 2, dtype=torch.bool),
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        num_tokens=2,
    ).loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.5, -0.5]]))


def test_policy_loss_ignores_whatever_padding_holds() -> None:
    behaviour = torch.tensor([[-1.0, -1.0, -1000.0, torch.nan]])
    logprobs = torch.tensor([[-1.1, -0.9, 0.0, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, 1.0, torch.nan, torch.inf]])
    mask = torch.tensor([[True, True, False, False]])
    padded = clipped_policy_loss(
        logprobs, behaviour, advantages, mask, clip_low=CLIP_LOW, clip_high=CLIP_HIGH, num_tokens=2
    )
    short = clipped_policy_loss(
        logprobs[:, :2],
        behaviour[:, :2],
        advantages[:, :2],
        mask[:, :2],
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        num_tokens=2,
    )
    torch.testing.assert_close(padded.loss, short.loss)
    torch.testing.assert_close(padded.ratio_sum, short.ratio_sum)
    (padded_gradient,) = torch.autograd.grad(padded.loss, logprobs)
    (short_gradient,) = torch.autograd.grad(short.loss, logprobs)
    torch.testing.assert_close(padded_gradient, short_gradient)


def test_policy_micro_batches_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(4, 5, generator=generator)
    behaviour = -torch.rand(4, 5, generator=generator)
    advantages = torch.randn(4, 1, generator=generator)
    mask = torch.rand(4, 5, generator=generator) > 0.4
    tensors = (logprobs, behaviour, advantages, mask)
    whole = clipped_policy_loss(
        *tensors, clip_low=CLIP_LOW, clip_high=CLIP_HIGH, num_tokens=mask.sum()
    )
    parts = [
        clipped_policy_loss(
            *(t[part] for t in tensors),
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            num_tokens=mask.sum(),
        )
        for part in (slice(0, 1), slice(1, 4))
    ]
    for name in ("loss", "ratio_sum", "clipped_sum"):
        torch.testing.assert_close(
            sum(getattr(part, name) for part in parts), getattr(whole, name), msg=name
        )


def test_importance_weights_scale_the_policy_gradient_through_the_advantages() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    advantages = torch.tensor([[2.0]]) * torch.tensor([[0.5, 1.5]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    clipped_policy_loss(
        logprobs,
        logprobs.detach(),
        advantages,
        mask,
        clip_low=CLIP_LOW,
        clip_high=CLIP_HIGH,
        num_tokens=1,
    ).loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-1.0, -3.0]]))


def test_policy_loss_refuses_advantages_without_a_token_axis() -> None:
    # With as many tokens as responses, B would broadcast along the wrong axis.
    with pytest.raises(AssertionError, match="not BT"):
        clipped_policy_loss(
            torch.zeros(2, 2),
            torch.zeros(2, 2),
            torch.zeros(2),
            torch.ones(2, 2, dtype=torch.bool),
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            num_tokens=4,
        )


def test_truncated_importance_weights_by_hand() -> None:
    trainer = torch.tensor([[0.2, 0.05, 0.9]]).log().requires_grad_()
    sampler = torch.tensor([[0.1, 0.2, 0.1]]).log()
    weights = truncated_importance_weights(trainer, sampler, cap=3.0)
    # 2, 1/4, and 9 cut to 3: small weights are not cut.
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.25, 3.0]]))
    assert not weights.requires_grad


def test_truncated_importance_weights_of_a_token_the_sampler_found_impossible() -> None:
    weights = truncated_importance_weights(
        torch.tensor([[-1.0, -1.0]]), torch.tensor([[-torch.inf, -1000.0]]), cap=2.0
    )
    torch.testing.assert_close(weights, torch.tensor([[2.0, 2.0]]))


def test_kl_estimates_by_hand() -> None:
    # pi / ref = 2: log 2, log(2)^2 / 2, and 1/2 - 1 + log 2.
    logprobs, reference = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    assert kl_k1(logprobs, reference).item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_k2(logprobs, reference).item() == pytest.approx(0.240227, abs=1e-6)
    assert kl_k3(logprobs, reference).item() == pytest.approx(0.193147, abs=1e-6)


def test_kl_k3_keeps_its_digits_where_policy_and_reference_nearly_agree() -> None:
    # x^2 / 2 = 5e-9 for a log-ratio of 1e-4; exp(x) - 1 - x in float32 would be off by 1e-7.
    value = kl_k3(torch.tensor([[1e-4]]), torch.tensor([[0.0]])).item()
    assert value == pytest.approx(5e-9, rel=2e-3)


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
    policy = torch.tensor([[0.25, 0.9]]).log().requires_grad_()
    reference = torch.tensor([[0.5, 0.9]]).log()
    loss = ending_loss(policy, reference, num_tokens=4)
    assert loss.item() == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 4)


@pytest.mark.parametrize("reference", [1e-4, 0.3, 0.9999])
def test_ending_loss_pulls_the_log_odds_by_the_difference_of_probabilities(
    reference: float,
) -> None:
    log_odds = torch.tensor([[-12.0, -1.0, 0.5, 9.0]], requires_grad=True)
    end_logprobs = torch.nn.functional.logsigmoid(log_odds)
    target = torch.full_like(log_odds, reference)
    ending_loss(end_logprobs, target.log(), num_tokens=1).backward()
    torch.testing.assert_close(log_odds.grad, log_odds.sigmoid() - target, atol=1e-4, rtol=1e-3)


def test_ending_loss_is_finite_where_ending_is_certain_or_impossible() -> None:
    ends = torch.tensor([[0.0, -200.0]], requires_grad=True)
    loss = ending_loss(ends, ends.detach().flip(-1), num_tokens=2)
    loss.backward()
    assert loss.isfinite()
    assert ends.grad is not None
    assert ends.grad.isfinite().all()
    assert ending_loss(ends, ends.detach(), num_tokens=2).item() == 0.0
