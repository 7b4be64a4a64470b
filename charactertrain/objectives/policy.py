"""Losses of the policy: the clipped surrogate, importance weights and estimates of the KL.

Shapes: B responses, T tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from charactertrain.objectives.logprobs import masked_sum, token_mean


@dataclass(frozen=True)
class PolicyTerms:
    """The loss of a micro-batch, and sums that become means when divided by `num_tokens`."""

    loss: Tensor
    """Already divided by `num_tokens`; the only field with a gradient."""
    ratio_sum: Tensor
    """Sum over tokens of pi / pi_behaviour; the mean is 1 when the two agree."""
    clipped_sum: Tensor
    """Number of tokens that clipping has taken the gradient from."""


def clipped_policy_loss(  # noqa: PLR0913  the formula has this many symbols
    logprobs_BT: Tensor,
    behaviour_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    num_tokens: int | Tensor,
) -> PolicyTerms:
    """PPO's clipped surrogate on tokens, eq. 7 of Schulman et al. (2017), negated.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = pi / pi_behaviour of a token.
    https://arxiv.org/abs/1707.06347. Two separate clips after DAPO, Yu et al. (2025), section 3.1,
    https://arxiv.org/abs/2503.14476: a higher `clip_high` lets unlikely tokens become likely.

    Args:
        logprobs_BT: Under the policy being trained, in nats.
        behaviour_logprobs_BT: Under the policy that the responses are credited to: fixed.
        advantages_BT: BT or B1. A response's advantage stands at each of its tokens
            (`advantages_B[:, None]`), times `truncated_importance_weights` where sampler and
            trainer disagree. A weight is positive, so it may as well multiply the whole loss.
        mask_BT: True at the tokens of responses.
        clip_low: At most 1. Common: 0.2.
        clip_high: Common: 0.2 to 0.28.
        num_tokens: Tokens that count in the whole step, over all ranks and micro-batches.
    """
    assert advantages_BT.ndim == 2, f"advantages have shape {tuple(advantages_BT.shape)}, not BT"
    # Before exp: at padding it may overflow, and inf times the mask's 0 is a gradient of nan.
    log_ratios_BT = torch.where(mask_BT, logprobs_BT - behaviour_logprobs_BT.detach(), 0.0)
    ratios_BT = log_ratios_BT.exp()
    plain_BT = ratios_BT * advantages_BT
    clipped_BT = ratios_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_BT
    return PolicyTerms(
        loss=-token_mean(torch.minimum(plain_BT, clipped_BT), mask_BT, num_tokens=num_tokens),
        ratio_sum=masked_sum(ratios_BT.detach(), mask_BT),
        clipped_sum=masked_sum((clipped_BT < plain_BT).float(), mask_BT),
    )


def truncated_importance_weights(
    trainer_logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, *, cap: float
) -> Tensor:
    """min(pi_trainer / pi_sampler, cap) of each token, without gradient.

    Corrects for a sampler that computes other probabilities than the trainer from the same or
    from older weights. V-trace's rho, Espeholt et al. (2018), section 4.1,
    https://arxiv.org/abs/1802.01561; for language models Yao et al. (2025),
    https://fengyao.notion.site/off-policy-rl. Truncation trades a bias for bounded variance.
    """
    log_ratios_BT = trainer_logprobs_BT.detach() - sampler_logprobs_BT.detach()
    return log_ratios_BT.clamp(max=math.log(cap)).exp()


def kl_k1(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
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
    return logprobs_BT - reference_logprobs_BT


def kl_k2(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """Half the squared log-ratio per token: the one to differentiate.

    As a number it is biased, little where the two are close, with low variance, never negative.
    As a loss on policy its gradient is that of KL(pi || ref); see `kl_k1`.
    """
    return 0.5 * (logprobs_BT - reference_logprobs_BT).square()


def kl_k3(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """The estimate ref / pi - 1 - log(ref / pi) per token: the one to report.

    As a number it is unbiased, with low variance, never negative. As a loss on policy its gradient
    is that of KL(ref || pi), which pulls the policy to cover the reference; see `kl_k1`.
    """
    log_ratios_BT = reference_logprobs_BT - logprobs_BT
    # exp(x) - 1 would lose all digits where the two nearly agree.
    return torch.expm1(log_ratios_BT) - log_ratios_BT


def ending_loss(
    end_logprobs_BT: Tensor, reference_end_logprobs_BT: Tensor, *, num_tokens: int | Tensor
) -> Tensor:
    """This micro-batch's share of the mean over tokens of KL(reference || policy) of ending there.

    For responses of a fixed length, which say nothing about where one ends: an objective over the
    other tokens leaves the probability of ending free, and it drifts. This holds it at the
    reference's. By the chain rule it is the part of the KL over the whole vocabulary that is about
    ending or not. Its gradient by the log-odds of ending is the difference of the two
    probabilities: most where ending is likely, and never above 1, so that it does not drown the
    objective where ending is rare.

    Args:
        end_logprobs_BT: Log-probability of ending at a token, under the policy and over the whole
            vocabulary, in nats.
        reference_end_logprobs_BT: The same under the reference.
        num_tokens: Tokens that count in the whole step, over all ranks and micro-batches.
    """
    reference_end_logprobs_BT = reference_end_logprobs_BT.detach()
    probability_BT = reference_end_logprobs_BT.exp()
    go_on_BT = _log_complement(end_logprobs_BT)
    reference_go_on_BT = _log_complement(reference_end_logprobs_BT)
    kl_BT = probability_BT * (reference_end_logprobs_BT - end_logprobs_BT)
    kl_BT = kl_BT + (1 - probability_BT) * (reference_go_on_BT - go_on_BT)
    return token_mean(kl_BT, torch.ones_like(kl_BT, dtype=torch.bool), num_tokens=num_tokens)


def _log_complement(logprobs: Tensor) -> Tensor:
    """log(1 - p) of log p; a p within rounding of 1 counts as 1 - 1e-6."""
    return torch.log(-torch.expm1(logprobs.clamp(max=-1e-6)))
