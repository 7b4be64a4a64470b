"""Importance weights: by hand, no gradient, and disagreements beyond measure."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.importance import (
    importance_mask,
    sequence_importance_mask,
    sequence_importance_weights,
    truncated_importance_weights,
)

# Ratios 2, 1/4, 9 | 1/2, 3 | and a response without tokens.
TRAINER = torch.tensor([0.2, 0.05, 0.9, 0.2, 0.9]).log()
SAMPLER = torch.tensor([0.1, 0.2, 0.1, 0.4, 0.3]).log()
RESPONSE = torch.tensor([0, 0, 0, 2, 2])

KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "truncated": lambda t, s: truncated_importance_weights(t, s, cap=3.0),
    "masked": lambda t, s: importance_mask(t, s, bound=3.5),
    "sequence truncated": lambda t, s: sequence_importance_weights(t, s, RESPONSE, 3, cap=3.0),
    "sequence masked": lambda t, s: sequence_importance_mask(t, s, RESPONSE, 3, bound=3.5),
}

every_kind = pytest.mark.parametrize("weights_of", KINDS.values(), ids=KINDS.keys())


def test_truncated_importance_weights_by_hand() -> None:
    # 9 is cut to 3; small weights are not cut.
    weights = truncated_importance_weights(TRAINER, SAMPLER, cap=3.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.25, 3.0, 0.5, 3.0]))


def test_importance_mask_by_hand() -> None:
    # 1/4 is below 1/3.5 and 9 above 3.5.
    weights = importance_mask(TRAINER, SAMPLER, bound=3.5)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.0, 0.0, 0.5, 3.0]))


def test_sequence_importance_weights_by_hand() -> None:
    # Products 2 * 1/4 * 9 = 4.5, cut to 3, and 1/2 * 3 = 1.5.
    weights = sequence_importance_weights(TRAINER, SAMPLER, RESPONSE, 3, cap=3.0)
    torch.testing.assert_close(weights, torch.tensor([3.0, 3.0, 3.0, 1.5, 1.5]))


def test_sequence_importance_mask_by_hand() -> None:
    wide = sequence_importance_mask(TRAINER, SAMPLER, RESPONSE, 3, bound=5.0)
    torch.testing.assert_close(wide, torch.tensor([4.5, 4.5, 4.5, 1.5, 1.5]))
    narrow = sequence_importance_mask(TRAINER, SAMPLER, RESPONSE, 3, bound=4.0)
    torch.testing.assert_close(narrow, torch.tensor([0.0, 0.0, 0.0, 1.5, 1.5]))
    # The other way round the first ratio is 1/4.5, below 1/4.
    inverse = sequence_importance_mask(SAMPLER, TRAINER, RESPONSE, 3, bound=4.0)
    torch.testing.assert_close(inverse, torch.tensor([0.0, 0.0, 0.0, 2 / 3, 2 / 3]))


@every_kind
def test_weights_are_one_where_trainer_and_sampler_agree(
    weights_of: Callable[[Tensor, Tensor], Tensor],
) -> None:
    torch.testing.assert_close(weights_of(TRAINER, TRAINER), torch.ones(5))


@every_kind
def test_weights_have_no_gradient(weights_of: Callable[[Tensor, Tensor], Tensor]) -> None:
    trainer, sampler = TRAINER.clone().requires_grad_(), SAMPLER.clone().requires_grad_()
    assert not weights_of(trainer, sampler).requires_grad


@every_kind
def test_weights_are_finite_however_far_the_two_are_apart(
    weights_of: Callable[[Tensor, Tensor], Tensor],
) -> None:
    for difference in (1000.0, -1000.0, torch.inf, -torch.inf):
        weights = weights_of(TRAINER, TRAINER - difference)
        assert weights.isfinite().all()
        assert (weights <= 3.0).all()


@every_kind
def test_weights_of_narrow_floats_are_in_float32(
    weights_of: Callable[[Tensor, Tensor], Tensor],
) -> None:
    trainer, sampler = TRAINER.half(), SAMPLER.half()
    weights = weights_of(trainer, sampler)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, weights_of(trainer.float(), sampler.float()))


def test_a_response_of_many_tokens_has_a_product_that_would_overflow() -> None:
    trainer, response = torch.zeros(2000), torch.arange(2).repeat_interleave(1000)
    sampler = torch.cat([torch.full((1000,), -1.0), torch.full((1000,), 1.0)])
    weights = sequence_importance_weights(trainer, sampler, response, 2, cap=2.0)
    torch.testing.assert_close(weights[::1000], torch.tensor([2.0, 0.0]))
    masked = sequence_importance_mask(trainer, sampler, response, 2, bound=2.0)
    assert torch.equal(masked, torch.zeros(2000))


def test_sequence_weights_make_the_expectation_over_responses_right() -> None:
    # All four responses of two tokens of two kinds, drawn with the sampler's probabilities.
    trainer = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    sampler = torch.tensor([0.6, 0.4], dtype=torch.float64).log()
    tokens = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    response = torch.arange(4).repeat_interleave(2)
    weights = sequence_importance_weights(
        trainer[tokens].flatten(), sampler[tokens].flatten(), response, 4, cap=100.0
    )
    drawn = sampler[tokens].sum(1).exp()
    values = torch.tensor([1.0, 5.0, -2.0, 3.0], dtype=torch.float64)
    expected = (trainer[tokens].sum(1).exp() * values).sum()
    torch.testing.assert_close((drawn * weights[::2] * values).sum(), expected)


def test_importance_mask_refuses_a_bound_that_masks_all() -> None:
    with pytest.raises(AssertionError, match="above 1"):
        importance_mask(TRAINER, SAMPLER, bound=1.0)
