"""The policy's surrogates: by hand, their gradients, and log-ratios beyond measure."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.aggregation import sequence_weights, token_weights
from charactertrain.objectives.policy import (
    PolicyTerms,
    cispo_loss,
    clipped_policy_loss,
    sequence_policy_loss,
)

clipped = partial(clipped_policy_loss, clip_low=0.2, clip_high=0.3, dual_clip=None)
dual_clipped = partial(clipped_policy_loss, clip_low=0.2, clip_high=0.3, dual_clip=2.5)
cispo = partial(cispo_loss, clip_low=0.2, clip_high=0.3)

RATIOS = torch.tensor([1.2, 2.0, 0.5, 1.4, 2.0, 0.5, 4.0])
ADVANTAGES = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -2.0])
TENTHS = torch.full((7,), 0.1)
BEHAVIOUR = torch.full((7,), -1.5)


def gradient_of(
    loss: Callable[..., PolicyTerms], ratios: Tensor, advantages: Tensor, *rest: object
) -> Tensor:
    """Of the loss by the log-probabilities, all weights 1."""
    logprobs = (ratios.log() - 1.5).requires_grad_()
    behaviour = torch.full_like(ratios, -1.5)
    terms = loss(logprobs, behaviour, advantages, torch.ones_like(ratios), *rest)
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    return gradient


def test_clipped_policy_loss_by_hand() -> None:
    terms = clipped(BEHAVIOUR + RATIOS.log(), BEHAVIOUR, ADVANTAGES, TENTHS)
    # min(r A, clip(r) A): 1.2, 1.3 (clipped), 0.5, 1.3 (clipped), -2, -0.8 (clipped), -8: -6.5.
    assert terms.loss.item() == pytest.approx(6.5 / 10)
    assert terms.ratio_sum.item() == pytest.approx(1.2 + 2 + 0.5 + 1.4 + 2 + 0.5 + 4)
    assert terms.clipped_sum.item() == 3.0


def test_clipping_takes_the_gradient_only_from_moves_that_have_gone_too_far() -> None:
    # d(-r A)/d logprob = -r A where it counts, 0 where the clipped side is the smaller one.
    expected = torch.tensor([-1.2, 0.0, -0.5, 0.0, 2.0, 0.0, 8.0])
    torch.testing.assert_close(gradient_of(clipped, RATIOS, ADVANTAGES), expected)


def test_dual_clip_by_hand() -> None:
    terms = dual_clipped(BEHAVIOUR + RATIOS.log(), BEHAVIOUR, ADVANTAGES, TENTHS)
    # As above, but max(-8, 2.5 * -2) = -5 for the last; -2 is above 2.5 * -1 already.
    assert terms.loss.item() == pytest.approx(3.5 / 10)
    assert terms.clipped_sum.item() == 4.0
    expected = torch.tensor([-1.2, 0.0, -0.5, 0.0, 2.0, 0.0, 0.0])
    torch.testing.assert_close(gradient_of(dual_clipped, RATIOS, ADVANTAGES), expected)


def test_dual_clip_leaves_good_responses_alone() -> None:
    ratios = torch.tensor([0.01, 0.9, 5.0])
    tensors = (ratios.log(), torch.zeros(3), torch.ones(3), torch.ones(3))
    assert dual_clipped(*tensors) == clipped(*tensors)


def test_dual_clip_bounds_a_loss_that_nothing_else_does() -> None:
    ratios, advantages = torch.tensor([100.0, 1e6]), torch.tensor([-1.0, -1.0])
    tensors = (ratios.log(), torch.zeros(2), advantages, torch.ones(2))
    assert clipped(*tensors).loss.item() == pytest.approx(1000100.0)
    assert dual_clipped(*tensors).loss.item() == pytest.approx(5.0)


def test_dual_clip_refuses_a_ratio_of_one() -> None:
    with pytest.raises(AssertionError, match="above 1"):
        clipped_policy_loss(
            BEHAVIOUR, BEHAVIOUR, ADVANTAGES, TENTHS, clip_low=0.2, clip_high=0.3, dual_clip=1.0
        )


@pytest.mark.parametrize("loss", [clipped, dual_clipped])
def test_clipped_policy_loss_has_the_gradient_of_its_formula(
    loss: Callable[..., PolicyTerms],
) -> None:
    # No ratio is within 1e-6 of a bound, where the slope jumps.
    logprobs = (BEHAVIOUR + RATIOS.log()).double().requires_grad_()
    weights = torch.linspace(0.1, 0.7, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: loss(x, BEHAVIOUR.double(), ADVANTAGES.double(), weights).loss, (logprobs,)
    )


def test_cispo_loss_by_hand() -> None:
    terms = cispo(BEHAVIOUR + RATIOS.log(), BEHAVIOUR, ADVANTAGES, TENTHS)
    # clip(r): 1.2, 1.3, 0.8, 1.3, 1.3, 0.8, 1.3; times A times log pi = log r - 1.5.
    importance = torch.tensor([1.2, 1.3, 0.8, 1.3, 1.3, 0.8, 1.3])
    expected = -(importance * ADVANTAGES * (RATIOS.log() - 1.5)).sum() / 10
    torch.testing.assert_close(terms.loss, expected)
    assert terms.ratio_sum.item() == pytest.approx(11.6)
    assert terms.clipped_sum.item() == 6.0


def test_cispo_gives_every_token_the_gradient_of_its_clipped_weight() -> None:
    expected = torch.tensor([-1.2, -1.3, -0.8, -1.3, 1.3, 0.8, 2.6])
    torch.testing.assert_close(gradient_of(cispo, RATIOS, ADVANTAGES), expected)


def test_cispo_without_a_lower_bound_keeps_small_weights() -> None:
    unbounded = partial(cispo_loss, clip_low=1.0, clip_high=0.3)
    ratios = torch.tensor([0.01, 0.5, 2.0])
    torch.testing.assert_close(
        gradient_of(unbounded, ratios, torch.ones(3)), torch.tensor([-0.01, -0.5, -1.3])
    )


def test_cispo_within_its_bounds_has_the_gradient_of_the_clipped_surrogate() -> None:
    ratios, advantages = torch.tensor([0.9, 1.0, 1.2]), torch.tensor([1.0, -2.0, -0.5])
    torch.testing.assert_close(
        gradient_of(cispo, ratios, advantages), gradient_of(clipped, ratios, advantages)
    )


# Two responses of 3 and 1 tokens, and one without any between them.
LENGTHS = torch.tensor([3, 0, 1])
RESPONSE = torch.tensor([0, 0, 0, 2])
# Geometric means 1.2 * 2.0 * 0.9 = 1.292..^3, and 0.5.
TOKEN_RATIOS = torch.tensor([1.2, 2.0, 0.9, 0.5])
MEAN_RATIO = 2.16 ** (1 / 3)


def sequence_terms(
    logprobs: Tensor, advantages: Tensor, weights: Tensor, *, clip_high: float = 0.3
) -> PolicyTerms:
    return sequence_policy_loss(
        logprobs,
        torch.zeros_like(logprobs),
        advantages,
        weights,
        RESPONSE,
        3,
        clip_low=0.2,
        clip_high=clip_high,
    )


def test_sequence_policy_loss_by_hand() -> None:
    weights = sequence_weights(LENGTHS, RESPONSE, 4)
    terms = sequence_terms(TOKEN_RATIOS.log(), torch.tensor([2.0, 2.0, 2.0, 1.0]), weights)
    # Neither is clipped: (2 * 1.292 + 0.5) / 4, the fourth response on another rank.
    assert terms.loss.item() == pytest.approx(-(2 * MEAN_RATIO + 0.5) / 4)
    assert terms.ratio_sum.item() == pytest.approx(3 * MEAN_RATIO + 0.5)
    assert terms.clipped_sum.item() == 0.0


def test_sequence_policy_loss_clips_a_response_as_a_whole() -> None:
    weights = sequence_weights(LENGTHS, RESPONSE, 2)
    logprobs = TOKEN_RATIOS.log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, 2.0, -1.0])
    terms = sequence_terms(logprobs, advantages, weights, clip_high=0.25)
    # 2 * 1.25 and -0.8; 0.9 is within the bounds, but not its response.
    assert terms.loss.item() == pytest.approx(-(2.5 - 0.8) / 2)
    assert terms.clipped_sum.item() == 4.0
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    assert torch.equal(gradient, torch.zeros(4))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        # Of a step with five responses, and of one with five tokens.
        (sequence_weights(LENGTHS, RESPONSE, 5), (1 / 5, 1 / 5)),
        (token_weights(RESPONSE, 5), (3 / 5, 1 / 5)),
    ],
)
def test_sequence_policy_loss_spreads_the_gradient_over_the_response(
    weights: Tensor, shares: tuple[float, float]
) -> None:
    logprobs = TOKEN_RATIOS.log().requires_grad_()
    terms = sequence_terms(logprobs, torch.tensor([2.0, 2.0, 2.0, 1.0]), weights)
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    # -w s A / L, w the response's share.
    first, last = -shares[0] * MEAN_RATIO * 2 / 3, -shares[1] * 0.5
    torch.testing.assert_close(gradient, torch.tensor([first, first, first, last]))


def test_sequence_policy_loss_gives_a_response_one_gradient_for_all_its_tokens() -> None:
    logprobs = TOKEN_RATIOS.log().requires_grad_()
    terms = sequence_terms(logprobs, torch.tensor([3.0, 0.0, -1.5, 1.0]), torch.ones(4))
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    # Advantages of 3 + 0 - 1.5 in all, a third of them at each token.
    each = -MEAN_RATIO * 0.5
    torch.testing.assert_close(gradient, torch.tensor([each, each, each, -0.5]))


def test_sequence_policy_loss_has_the_gradient_of_its_formula() -> None:
    advantages = torch.tensor([-2.0, -2.0, -2.0, 1.0], dtype=torch.float64)
    weights = sequence_weights(LENGTHS, RESPONSE, 2).double()
    assert torch.autograd.gradcheck(
        lambda x: sequence_terms(x, advantages, weights).loss,
        (TOKEN_RATIOS.double().log().requires_grad_(),),
    )


def test_sequence_policy_loss_of_single_tokens_is_that_of_tokens() -> None:
    logprobs = BEHAVIOUR + RATIOS.log()
    terms = sequence_policy_loss(
        logprobs,
        BEHAVIOUR,
        ADVANTAGES,
        TENTHS,
        torch.randperm(7, generator=torch.Generator().manual_seed(0)),
        7,
        clip_low=0.2,
        clip_high=0.3,
    )
    assert terms == clipped(logprobs, BEHAVIOUR, ADVANTAGES, TENTHS)


def sequence_of_seven(
    logprobs: Tensor, behaviour: Tensor, advantages: Tensor, weights: Tensor
) -> PolicyTerms:
    return sequence_policy_loss(
        logprobs,
        behaviour,
        advantages,
        weights,
        torch.zeros(7, dtype=torch.long),
        1,
        clip_low=0.2,
        clip_high=0.3,
    )


every_loss = pytest.mark.parametrize(
    "loss",
    [clipped, dual_clipped, cispo, sequence_of_seven],
    ids=["clipped", "dual clip", "cispo", "sequence"],
)


@every_loss
def test_losses_have_the_plain_policy_gradient_where_the_two_policies_agree(
    loss: Callable[..., PolicyTerms],
) -> None:
    logprobs = torch.linspace(-3.0, -0.1, 7).requires_grad_()
    advantages = torch.full((7,), -0.5)
    # On policy the same tensor may stand for both: the behaviour has no gradient.
    terms = loss(logprobs, logprobs, advantages, TENTHS)
    assert terms.ratio_sum.item() == pytest.approx(7.0)
    assert terms.clipped_sum.item() == 0.0
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    torch.testing.assert_close(gradient, torch.full((7,), 0.05))


@every_loss
def test_importance_weights_scale_the_gradient_through_the_advantages(
    loss: Callable[..., PolicyTerms],
) -> None:
    plain = gradient_of(loss, RATIOS, ADVANTAGES)
    torch.testing.assert_close(gradient_of(loss, RATIOS, 0.25 * ADVANTAGES), 0.25 * plain)
    assert torch.equal(gradient_of(loss, RATIOS, 0.0 * ADVANTAGES), torch.zeros(7))


@every_loss
@pytest.mark.parametrize("difference", [1000.0, -1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_losses_and_gradients_are_finite_where_the_policies_are_far_apart(
    loss: Callable[..., PolicyTerms], difference: float, advantage: float
) -> None:
    logprobs = torch.full((7,), -1000.0, requires_grad=True)
    terms = loss(logprobs, logprobs - difference, torch.full((7,), advantage), TENTHS)
    (gradient,) = torch.autograd.grad(terms.loss, logprobs)
    assert gradient.isfinite().all()
    assert terms.loss.isfinite()
    assert terms.ratio_sum.isfinite()


@every_loss
def test_losses_of_narrow_floats_are_in_float32(loss: Callable[..., PolicyTerms]) -> None:
    # Ratios up to e^11.5 = 98716, beyond float16.
    logprobs = torch.linspace(-0.5, 0.0, 7).half()
    behaviour = torch.linspace(-12.0, 0.0, 7).half()
    advantages = torch.full((7,), -1.0).half()
    narrow = loss(logprobs, behaviour, advantages, TENTHS)
    wide = loss(logprobs.float(), behaviour.float(), advantages.float(), TENTHS)
    assert narrow.loss.dtype == torch.float32
    assert narrow.loss.isfinite()
    torch.testing.assert_close(narrow.loss, wide.loss)
    torch.testing.assert_close(narrow.ratio_sum, wide.ratio_sum)


@every_loss
def test_losses_of_no_tokens_are_zero(loss: Callable[..., PolicyTerms]) -> None:
    if loss is sequence_of_seven:
        loss = partial(
            sequence_policy_loss,
            response_N=torch.empty(0, dtype=torch.long),
            num_responses=2,
            clip_low=0.2,
            clip_high=0.3,
        )
    logprobs = torch.empty(0, requires_grad=True)
    terms = loss(logprobs, torch.empty(0), torch.empty(0), torch.empty(0))
    assert terms.loss.item() == terms.ratio_sum.item() == terms.clipped_sum.item() == 0.0
    terms.loss.backward()


@every_loss
def test_losses_refuse_shapes_that_would_broadcast(loss: Callable[..., PolicyTerms]) -> None:
    with pytest.raises(AssertionError):
        loss(BEHAVIOUR, BEHAVIOUR, torch.ones(1), TENTHS)
    with pytest.raises(AssertionError):
        loss(BEHAVIOUR, BEHAVIOUR, ADVANTAGES, torch.tensor([0.1]))
    with pytest.raises(AssertionError, match="not N"):
        loss(BEHAVIOUR[None], BEHAVIOUR[None], ADVANTAGES[None], TENTHS[None])
