"""A policy gradient by its names in the config: advantages, losses, corrections, weights.

Shapes: P prompts, G responses per prompt, N response tokens of a microbatch, R its responses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from charactertrain.objectives import advantages as advantage
from charactertrain.objectives import importance, policy
from charactertrain.objectives.advantages import RunningBaseline
from charactertrain.objectives.aggregation import sequence_weights, token_weights

_ADVANTAGE_EPSILON = 1e-4


@dataclass(frozen=True)
class Correction:
    """What is done about tokens that other weights, or another program, have drawn."""

    kind: Literal["truncate", "mask"]
    level: Literal["token", "sequence"]
    cap: float


@dataclass(frozen=True)
class PolicyGradient:
    """What is maximised; `config.objective` says what each is."""

    advantages: Literal["grpo", "centered", "rloo", "reinforce"]
    baseline_decay: float | None
    loss: Literal["clipped", "cispo", "sequence"]
    clip_low: float
    clip_high: float
    dual_clip: float | None
    aggregate: Literal["token", "sequence"]
    correction: Correction | None
    kl_coef: float
    kl_target: float | None
    kl_place: Literal["loss", "reward"]
    kl_estimator: Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class Drawn:
    """The tokens of a microbatch as they were drawn."""

    logprobs_N: Tensor
    """Under the sampler."""
    response_N: Tensor
    """The response of each token."""
    num_responses: int
    """R."""


def advantages_of(kind: str, rewards_PG: Tensor, baseline: RunningBaseline) -> Tensor:
    """Advantages by the objective's name, shape PG."""
    match kind:
        case "grpo":
            return advantage.grpo_advantages(rewards_PG, epsilon=_ADVANTAGE_EPSILON)
        case "centered":
            return advantage.centered_advantages(rewards_PG)
        case "rloo":
            return advantage.leave_one_out_advantages(rewards_PG)
        case "reinforce":
            return baseline.advantages(rewards_PG)
        case _:
            raise AssertionError(f"no advantages called {kind}")


def kl_estimator(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The estimate of the KL per token, by its name."""
    return {"k1": policy.kl_k1, "k2": policy.kl_k2, "k3": policy.kl_k3}[name]


def weights_of(
    objective: PolicyGradient, lengths_PG: Tensor, places: Sequence[int], response_N: Tensor
) -> Tensor:
    """Each token's share of the step, shape N, for the groups at `places` in it."""
    lengths_R = lengths_PG[places].flatten().to(response_N.device)
    if objective.aggregate == "sequence":
        return sequence_weights(lengths_R, response_N, lengths_PG.numel())
    return token_weights(response_N, int(lengths_PG.sum()))


def corrections(objective: PolicyGradient, drawn: Drawn, logprobs_N: Tensor) -> Tensor:
    """The weight of each token for having been drawn by other weights, or another program."""
    mine_N, correction = logprobs_N.detach(), objective.correction
    if correction is None:
        return torch.ones_like(mine_N)
    tokens = (mine_N, drawn.logprobs_N)
    responses = (*tokens, drawn.response_N, drawn.num_responses)
    match correction.kind, correction.level:
        case "truncate", "token":
            return importance.truncated_importance_weights(*tokens, cap=correction.cap)
        case "truncate", _:
            return importance.sequence_importance_weights(*responses, cap=correction.cap)
        case "mask", "token":
            return importance.importance_mask(*tokens, bound=correction.cap)
        case _:
            return importance.sequence_importance_mask(*responses, bound=correction.cap)


def policy_terms(
    objective: PolicyGradient,
    drawn: Drawn,
    logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
) -> policy.PolicyTerms:
    """The loss by the objective's name."""
    # Corrected tokens are credited to the policy as the step found it.
    behaviour_N = drawn.logprobs_N
    if objective.correction is not None:
        behaviour_N = logprobs_N.detach()
    clips = {"clip_low": objective.clip_low, "clip_high": objective.clip_high}
    match objective.loss:
        case "clipped":
            return policy.clipped_policy_loss(
                logprobs_N,
                behaviour_N,
                advantages_N,
                weights_N,
                dual_clip=objective.dual_clip,
                **clips,
            )
        case "cispo":
            return policy.cispo_loss(logprobs_N, behaviour_N, advantages_N, weights_N, **clips)
        case "sequence":
            return policy.sequence_policy_loss(
                logprobs_N,
                behaviour_N,
                advantages_N,
                weights_N,
                drawn.response_N,
                drawn.num_responses,
                **clips,
            )
        case _:
            raise AssertionError(f"no loss called {objective.loss}")
