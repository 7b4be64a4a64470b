"""Losses of the policy: clipped surrogates, estimates of the KL, and what holds the ending.

Shapes: N tokens of the responses of a micro-batch in a row, without padding. `weights_N` is each
token's share of the whole optimizer step, over all ranks and micro-batches (`aggregation`): a loss
is the sum of values times weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from charactertrain.objectives.aggregation import response_means, weighted_sum
from charactertrain.objectives.logprobs import at_least_float32

_MAX_LOG_RATIO = 20.0
"""Larger log-ratios count as this, without gradient: exp overflows at 88, and inf * 0 is nan.

The mean of a ratio over what the sampler draws is 1: one above e^20 comes at most once in 5e8
tokens, unless something else is wrong."""


@dataclass(frozen=True)
class PolicyTerms:
    """The loss of a micro-batch, and sums that become means when divided by the step's tokens."""

    loss: Tensor
    """The micro-batch's share of the step's loss; the only field with a gradient."""
    ratio_sum: Tensor
    """Sum over tokens of pi / pi_behaviour; the mean is 1 when the two agree."""
    clipped_sum: Tensor
    """Number of tokens whose gradient clipping has taken away (or, in CISPO, made another)."""


def clipped_policy_loss(  # noqa: PLR0913  the formula has this many symbols
    logprobs_N: Tensor,
    behaviour_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> PolicyTerms:
    """PPO's clipped surrogate on tokens, eq. 7 of Schulman et al. (2017), negated.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = pi / pi_behaviour of a token.
    https://arxiv.org/abs/1707.06347. Two separate clips after DAPO, Yu et al. (2025), section 3.1,
    https://arxiv.org/abs/2503.14476: a higher `clip_high` lets unlikely tokens become likely.

    Where A < 0 nothing bounds r from above. The dual clip does, eq. 5 of Ye et al. (2020),
    https://arxiv.org/abs/1912.09729: max(min(...), dual_clip A) in place of min(...).

    Args:
        logprobs_N: Under the policy being trained, in nats.
        behaviour_logprobs_N: Under the policy that the responses are credited to: fixed.
        advantages_N: A response's advantage stands at each of its tokens
            (`advantages_R[response_N]`), times a weight of `importance` where sampler and trainer
            disagree. A weight is not negative, so it may as well multiply the whole loss.
        weights_N: Each token's share of the step.
        clip_low: At most 1. Common: 0.2.
        clip_high: Common: 0.2 to 0.28.
        dual_clip: A ratio above 1, sensibly above 1 + `clip_high`; common: 3. None: no dual clip.
    """
    return _clipped_terms(
        _log_ratios(logprobs_N, behaviour_logprobs_N),
        advantages_N,
        weights_N,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
    )


def sequence_policy_loss(  # noqa: PLR0913  the formula has this many symbols
    logprobs_N: Tensor,
    behaviour_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    response_N: Tensor,
    num_responses: int,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyTerms:
    """The clipped surrogate on responses: GSPO, Zheng et al. (2025), eq. 5 and 7, negated.

    https://arxiv.org/abs/2507.18071. As in `clipped_policy_loss`, with the ratio of the response at
    each of its tokens: s = exp(mean over its tokens of log(pi / pi_behaviour)). A response is
    clipped as a whole. The gradient goes through s: each of the L tokens of a response gets
    s A / L times the response's weight, whatever its own ratio.

    A response weighs what its tokens' weights add up to. With `sequence_weights` that is the same
    for all: the paper's objective. With `token_weights` a response weighs as much as it is long.

    Args:
        logprobs_N: Under the policy being trained, in nats.
        behaviour_logprobs_N: Under the policy that the responses are credited to: fixed.
        advantages_N: `advantages_R[response_N]`, times the weight of the *response* (as from
            `sequence_importance_weights`) where sampler and trainer disagree. Within a response s
            spreads the gradient evenly, whatever they are at its tokens.
        weights_N: Each token's share of the step.
        response_N: The response of each token, 0 to R - 1.
        num_responses: R, of this micro-batch.
        clip_low: At most 1. A mean of log-ratios varies little: the paper has 3e-4.
        clip_high: The paper has 4e-4.
    """
    log_ratios_N = _log_ratios(logprobs_N, behaviour_logprobs_N)
    return _clipped_terms(
        response_means(log_ratios_N, response_N, num_responses)[response_N],
        advantages_N,
        weights_N,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=None,
    )


def cispo_loss(
    logprobs_N: Tensor,
    behaviour_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyTerms:
    """REINFORCE with clipped importance weights: CISPO, MiniMax (2025), eq. 4 and 5, negated.

    -clip(r, 1 - clip_low, 1 + clip_high) A log pi, the weight without gradient.
    https://arxiv.org/abs/2506.13585. Clipping bounds a token's gradient and takes none away: rare
    tokens that have become much likelier are still learned from. As a number the loss says nothing;
    only its gradient counts. The paper divides by the number of tokens: `token_weights`.

    Args:
        logprobs_N: Under the policy being trained, in nats.
        behaviour_logprobs_N: Under the policy that the responses are credited to: fixed.
        advantages_N: As in `clipped_policy_loss`.
        weights_N: Each token's share of the step.
        clip_low: 1 or more is no lower bound, since a ratio is positive: the paper has none.
        clip_high: The paper tunes this one.
    """
    log_ratios_N = _log_ratios(logprobs_N, behaviour_logprobs_N).detach()
    assert advantages_N.shape == log_ratios_N.shape, (advantages_N.shape, log_ratios_N.shape)
    ratios_N = log_ratios_N.clamp(max=_MAX_LOG_RATIO).exp()
    importance_N = ratios_N.clamp(1 - clip_low, 1 + clip_high)
    return PolicyTerms(
        loss=-weighted_sum(importance_N * advantages_N * logprobs_N, weights_N),
        ratio_sum=ratios_N.sum(),
        clipped_sum=(importance_N != ratios_N).float().sum(),
    )


def kl_k1(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """The estimate log(pi / ref) of KL(pi || ref) per token: unbiased and noisy.

    All three estimates are Schulman's (2020), http://joschu.net/blog/kl-approx.html, for tokens
    sampled from pi. What an estimate is worth as a number and what its *gradient* is worth are two
    questions (Tang and Munos 2025, https://arxiv.org/abs/2506.09477). With s = grad log pi, on
    policy, where E[s] = 0:

        grad KL(pi || ref) = E[log(pi / ref) s]
        E[grad k1] = E[s] = 0                          no force at all
        E[grad k2] = E[log(pi / ref) s]                the KL's gradient
        E[grad k3] = E[(1 - ref / pi) s] = grad KL(ref || pi)      the other KL's gradient

    So: report k1 or k3, subtract k1 (detached) from a reward, and differentiate k2 only. As a
    per-token loss each holds the states fixed: a token is not charged for the KL of later ones.
    """
    return logprobs_N - reference_logprobs_N


def kl_k2(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Half the squared log-ratio per token: the one to differentiate.

    As a number it is biased, little where the two are close, with low variance, never negative.
    As a loss on policy its gradient is that of KL(pi || ref); see `kl_k1`.
    """
    return 0.5 * (logprobs_N - reference_logprobs_N).square()


def kl_k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """The estimate ref / pi - 1 - log(ref / pi) per token: the one to report.

    As a number it is unbiased, with low variance, never negative. As a loss on policy its gradient
    is that of KL(ref || pi), which pulls the policy to cover the reference; see `kl_k1`.
    """
    log_ratios_N = (reference_logprobs_N - logprobs_N).clamp(max=_MAX_LOG_RATIO)
    # exp(x) - 1 would lose all digits where the two nearly agree.
    return torch.expm1(log_ratios_N) - log_ratios_N


def ending_loss(
    end_logprobs_N: Tensor, reference_end_logprobs_N: Tensor, weights_N: Tensor
) -> Tensor:
    """This micro-batch's share of the mean over tokens of KL(reference || policy) of ending there.

    For responses of a fixed length, which say nothing about where one ends: an objective over the
    other tokens leaves the probability of ending free, and it drifts. This holds it at the
    reference's. By the chain rule it is the part of the KL over the whole vocabulary that is about
    ending or not. Its gradient by the log-odds of ending is the difference of the two
    probabilities: most where ending is likely, and never above 1, so that it does not drown the
    objective where ending is rare.

    Args:
        end_logprobs_N: Log-probability of ending at a token, under the policy and over the whole
            vocabulary, in nats.
        reference_end_logprobs_N: The same under the reference.
        weights_N: Each token's share of the step.
    """
    reference_end_logprobs_N = reference_end_logprobs_N.detach()
    probability_N = reference_end_logprobs_N.exp()
    go_on_N = _log_complement(end_logprobs_N)
    reference_go_on_N = _log_complement(reference_end_logprobs_N)
    kl_N = probability_N * (reference_end_logprobs_N - end_logprobs_N)
    kl_N = kl_N + (1 - probability_N) * (reference_go_on_N - go_on_N)
    return weighted_sum(kl_N, weights_N)


def _log_complement(logprobs: Tensor) -> Tensor:
    """log(1 - p) of log p; a p within rounding of 1 counts as 1 - 1e-6."""
    return torch.log(-torch.expm1(logprobs.clamp(max=-1e-6)))


def _log_ratios(logprobs_N: Tensor, behaviour_logprobs_N: Tensor) -> Tensor:
    assert logprobs_N.ndim == 1, f"log-probabilities have shape {tuple(logprobs_N.shape)}, not N"
    assert logprobs_N.shape == behaviour_logprobs_N.shape
    return at_least_float32(logprobs_N) - behaviour_logprobs_N.detach()


def _clipped_terms(
    log_ratios_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> PolicyTerms:
    assert advantages_N.shape == log_ratios_N.shape, (advantages_N.shape, log_ratios_N.shape)
    ratios_N = log_ratios_N.clamp(max=_MAX_LOG_RATIO).exp()
    plain_N = ratios_N * advantages_N
    clipped_N = ratios_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    objective_N = torch.minimum(plain_N, clipped_N)
    if dual_clip is not None:
        assert dual_clip > 1, f"dual clip {dual_clip} is not above 1"
        floored_N = torch.maximum(objective_N, dual_clip * advantages_N)
        objective_N = torch.where(advantages_N < 0, floored_N, objective_N)
    stopped_N = (objective_N != plain_N) | (log_ratios_N > _MAX_LOG_RATIO)
    return PolicyTerms(
        loss=-weighted_sum(objective_N, weights_N),
        ratio_sum=ratios_N.detach().sum(),
        clipped_sum=stopped_N.float().sum(),
    )
