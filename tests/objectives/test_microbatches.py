"""A step cut into any micro-batches, in any order, has the same losses and gradients.

Shapes: N tokens of a micro-batch, R responses.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.aggregation import sequence_weights, token_weights
from charactertrain.objectives.policy import (
    PolicyTerms,
    cispo_loss,
    clipped_policy_loss,
    ending_loss,
    sequence_policy_loss,
)
from charactertrain.objectives.warm_start import supervised_loss

LENGTHS = [3, 0, 5, 1, 2, 4, 0, 1]
NUM_RESPONSES, NUM_TOKENS = len(LENGTHS), sum(LENGTHS)


@dataclass(frozen=True)
class MicroBatch:
    logprobs_N: Tensor
    behaviour_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor
    response_N: Tensor
    num_responses: int


LOSSES: dict[str, Callable[[MicroBatch], PolicyTerms | Tensor]] = {
    "clipped": lambda m: clipped_policy_loss(
        m.logprobs_N,
        m.behaviour_N,
        m.advantages_N,
        m.weights_N,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=2.0,
    ),
    "cispo": lambda m: cispo_loss(
        m.logprobs_N, m.behaviour_N, m.advantages_N, m.weights_N, clip_low=1.0, clip_high=0.3
    ),
    "sequence": lambda m: sequence_policy_loss(
        m.logprobs_N,
        m.behaviour_N,
        m.advantages_N,
        m.weights_N,
        m.response_N,
        m.num_responses,
        clip_low=0.2,
        clip_high=0.3,
    ),
    "ending": lambda m: ending_loss(m.logprobs_N, m.behaviour_N, m.weights_N),
    "supervised": lambda m: supervised_loss(m.logprobs_N, m.weights_N),
}


def step_values() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities under policy and behaviour by response and token, and advantages."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_RESPONSES, max(LENGTHS))
    logprobs = -0.1 - torch.rand(shape, generator=generator, dtype=torch.float64)
    behaviour = -0.1 - torch.rand(shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(NUM_RESPONSES, generator=generator, dtype=torch.float64)
    return logprobs.requires_grad_(), behaviour, advantages


def micro_batch(
    responses: Sequence[int], values: tuple[Tensor, Tensor, Tensor], *, by_token: bool
) -> MicroBatch:
    logprobs, behaviour, advantages = values
    lengths_R = torch.tensor([LENGTHS[response] for response in responses])
    response_N = torch.arange(len(responses)).repeat_interleave(lengths_R)
    if by_token:
        weights_N = token_weights(response_N, NUM_TOKENS)
    else:
        weights_N = sequence_weights(lengths_R, response_N, NUM_RESPONSES)
    return MicroBatch(
        torch.cat([logprobs[response, : LENGTHS[response]] for response in responses]),
        torch.cat([behaviour[response, : LENGTHS[response]] for response in responses]),
        advantages[list(responses)][response_N],
        weights_N,
        response_N,
        len(responses),
    )


def step_sums(name: str, cuts: Sequence[Sequence[int]], *, by_token: bool) -> tuple[Tensor, Tensor]:
    """Loss, ratio and clipped sums over all micro-batches, and the gradient of the loss."""
    values = step_values()
    sums, gradient = torch.zeros(3, dtype=torch.float64), torch.zeros_like(values[0])
    for responses in cuts:
        terms = LOSSES[name](micro_batch(responses, values, by_token=by_token))
        if isinstance(terms, Tensor):
            terms = PolicyTerms(terms, torch.zeros(()), torch.zeros(()))
        gradient += torch.autograd.grad(terms.loss, values[0])[0]
        sums += torch.stack([terms.loss.detach(), terms.ratio_sum, terms.clipped_sum]).double()
    return sums, gradient


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("by_token", [True, False])
def test_losses_do_not_depend_on_how_a_step_is_cut(name: str, by_token: bool) -> None:
    whole, gradient = step_sums(name, [range(NUM_RESPONSES)], by_token=by_token)
    assert whole[0].abs() > 0.01
    assert (gradient != 0).sum() > NUM_TOKENS / 4
    chance = random.Random(0)
    for num_cuts in (1, 2, 3, 5, NUM_RESPONSES):
        order = chance.sample(range(NUM_RESPONSES), NUM_RESPONSES)
        cuts = [order[first::num_cuts] for first in range(num_cuts)]
        sums, cut_gradient = step_sums(name, cuts, by_token=by_token)
        torch.testing.assert_close(sums, whole)
        torch.testing.assert_close(cut_gradient, gradient)
