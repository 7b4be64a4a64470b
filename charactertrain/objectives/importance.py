"""Importance weights for a sampler that has other probabilities than the trainer.

The sampler computes otherwise from the same weights, or it has older ones. An importance weight
multiplies its token's advantage. It is 0 or more, without gradient, and leaves the token's share of
the step (`weights_N`) as it is: what is masked or weighs less makes the step smaller.

Shapes: N tokens of the responses of a micro-batch in a row; `response_N` says which of the
`num_responses` responses of the micro-batch a token belongs to. Log-probabilities are of the
sampled tokens, in nats.

The weight of a token corrects the choice of that token and not what the sampler wrote before it: a
bias that grows with the length. The weight of a response corrects both, and its variance grows with
the length (Liu, Li et al. 2025, https://richardli.xyz/rl-collapse).
"""

import math

import torch
from torch import Tensor

from charactertrain.objectives.aggregation import response_sums
from charactertrain.objectives.logprobs import at_least_float32


def truncated_importance_weights(
    trainer_logprobs_N: Tensor, sampler_logprobs_N: Tensor, *, cap: float
) -> Tensor:
    """min(pi_trainer / pi_sampler, cap) of each token.

    V-trace's rho, Espeholt et al. (2018), section 4.1, https://arxiv.org/abs/1802.01561; for
    language models Yao et al. (2025), https://fengyao.notion.site/off-policy-rl. Truncation trades
    a bias for bounded variance. A token on which the two disagree most counts most, `cap` times.

    Args:
        trainer_logprobs_N: Under the trainer's weights as the responses are credited to them.
        sampler_logprobs_N: As the sampler computed them.
        cap: Above 0. Common: 2.
    """
    return _truncated(_log_ratios(trainer_logprobs_N, sampler_logprobs_N), cap)


def sequence_importance_weights(
    trainer_logprobs_N: Tensor,
    sampler_logprobs_N: Tensor,
    response_N: Tensor,
    num_responses: int,
    *,
    cap: float,
) -> Tensor:
    """min(pi_trainer / pi_sampler, cap) of the whole response, shape N: its tokens share it.

    The ratio of a response is the product of its tokens' ratios, not their mean: without the cap,
    the one weight that makes the expectation over responses right. Liu, Li et al. (2025),
    https://richardli.xyz/rl-collapse. Truncated in logarithms, so that no product overflows.
    """
    log_ratios_N = _log_ratios(trainer_logprobs_N, sampler_logprobs_N)
    return _truncated(response_sums(log_ratios_N, response_N, num_responses), cap)[response_N]


def importance_mask(
    trainer_logprobs_N: Tensor, sampler_logprobs_N: Tensor, *, bound: float
) -> Tensor:
    """pi_trainer / pi_sampler of each token where it is within [1 / bound, bound], else 0.

    IcePop's double-sided mask: Zhao et al. (2025), https://ringtech.notion.site/icepop, and Ling
    Team (2025), https://arxiv.org/abs/2510.18855, with one bound where they have two. Truncation
    learns most from the tokens on which trainer and sampler disagree most; this learns nothing from
    them. The bias is another one: what is masked is no longer part of the objective.

    Args:
        trainer_logprobs_N: Under the trainer's weights as the responses are credited to them.
        sampler_logprobs_N: As the sampler computed them.
        bound: Above 1. Common: 2 to 5.
    """
    return _masked(_log_ratios(trainer_logprobs_N, sampler_logprobs_N), bound)


def sequence_importance_mask(
    trainer_logprobs_N: Tensor,
    sampler_logprobs_N: Tensor,
    response_N: Tensor,
    num_responses: int,
    *,
    bound: float,
) -> Tensor:
    """The ratio of the whole response where it is within [1 / bound, bound], else 0; shape N.

    Masked importance sampling over responses: Liu, Li et al. (2025),
    https://richardli.xyz/rl-collapse. A response is learned from as a whole or not at all. Its
    ratio is a product over its tokens: for the same disagreement per token, a long response is
    masked sooner than a short one.
    """
    log_ratios_N = _log_ratios(trainer_logprobs_N, sampler_logprobs_N)
    return _masked(response_sums(log_ratios_N, response_N, num_responses), bound)[response_N]


def _log_ratios(trainer_logprobs_N: Tensor, sampler_logprobs_N: Tensor) -> Tensor:
    assert trainer_logprobs_N.ndim == 1, f"shape {tuple(trainer_logprobs_N.shape)}, not N"
    assert trainer_logprobs_N.shape == sampler_logprobs_N.shape
    trainer_logprobs_N = at_least_float32(trainer_logprobs_N.detach())
    return trainer_logprobs_N - sampler_logprobs_N.detach()


def _truncated(log_ratios: Tensor, cap: float) -> Tensor:
    return log_ratios.clamp(max=math.log(cap)).exp()


def _masked(log_ratios: Tensor, bound: float) -> Tensor:
    assert bound > 1, f"bound {bound} leaves no ratio; it must be above 1"
    return torch.where(log_ratios.abs() <= math.log(bound), log_ratios.exp(), 0.0)
