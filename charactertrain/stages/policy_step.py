"""One policy step: groups of rollouts in, the gradient of their objective added.

Shapes: P prompts, G responses per prompt, R responses of a microbatch, V vocabulary, E tokens that
end a response. A microbatch is one packed row, so B is 1 and T its response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from charactertrain.models.packing import PackedRow, PromptGroup, pack
from charactertrain.models.token_budget import microbatches
from charactertrain.objectives import advantages as advantage
from charactertrain.objectives.logprobs import entropy, masked_sum, token_logprobs, token_mean
from charactertrain.objectives.policy import clipped_policy_loss, ending_loss, kl_k2, kl_k3
from charactertrain.runtime.training_engine import TrainingEngine
from charactertrain.runtime.worker import Worker
from charactertrain.runtime.zero import FrozenModel
from charactertrain.stages.policy_task import PolicyTask
from charactertrain.stages.rollouts import Rollout

_ADVANTAGE_EPSILON = 1e-4


def response_logits(
    model: TrainingEngine | FrozenModel, row: PackedRow, forbidden: Sequence[int]
) -> Tensor:
    """Logits that predict the response tokens, shape BTV; forbidden tokens are impossible."""
    logits: Tensor = model.forward(
        **row.model_inputs(), use_cache=False, logits_to_keep=row.predictor_N
    ).logits
    return impossible(logits, forbidden)


def impossible(logits_BTV: Tensor, token_ids: Sequence[int]) -> Tensor:
    """The logits with the given tokens at probability zero."""
    if not token_ids:
        return logits_BTV
    ids = torch.tensor(list(token_ids), device=logits_BTV.device)
    return logits_BTV.index_fill(-1, ids, float("-inf"))


def end_logprobs(logits_BTV: Tensor, end_ids: Sequence[int]) -> Tensor:
    """Log-probability that one of the ending tokens comes at each place, shape BT."""
    places = logits_BTV.shape[:-1]
    logprobs = [
        token_logprobs(logits_BTV, torch.full(places, end_id, device=logits_BTV.device))
        for end_id in end_ids
    ]
    return torch.stack(logprobs).logsumexp(0)


def ending_share(
    logits_BTV: Tensor, reference_BTV: Tensor, end_ids: Sequence[int], num_tokens: int
) -> Tensor:
    """The microbatch's share of the loss that holds the ending; 0 where responses end freely."""
    if not end_ids:
        return logits_BTV.new_zeros(())
    ends_BT = end_logprobs(logits_BTV, end_ids)
    reference_ends_BT = end_logprobs(reference_BTV, end_ids)
    return ending_loss(ends_BT, reference_ends_BT, num_tokens=num_tokens)


def every_token(values_BT: Tensor) -> Tensor:
    """A mask in which every token counts: a packed row has no padding."""
    return torch.ones_like(values_BT, dtype=torch.bool)


def advantages_of(kind: str, rewards_PG: Tensor) -> Tensor:
    """Advantages by the objective's name, shape PG."""
    match kind:
        case "grpo":
            return advantage.grpo_advantages(rewards_PG, epsilon=_ADVANTAGE_EPSILON)
        case "centered":
            return advantage.centered_advantages(rewards_PG)
        case "rloo":
            return advantage.leave_one_out_advantages(rewards_PG)
        case _:
            raise AssertionError(f"no advantages called {kind}")


@dataclass(frozen=True)
class Models:
    """What the tokens of a policy step pass through."""

    policy: TrainingEngine
    reference: FrozenModel
    forbidden: tuple[int, ...]
    """Tokens that no response can hold: those that would end one."""


def policy_step(
    models: Models,
    task: PolicyTask,
    groups: list[list[Rollout]],
    worker: Worker,
) -> dict[str, Any]:
    """Add the gradient of one step; returns its metrics."""
    rewards_PG = torch.tensor([[rollout.reward for rollout in group] for group in groups])
    advantages_PG = advantages_of(task.optimise.advantages, rewards_PG)
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
    spread = microbatches(
        [prompt_group(group).num_tokens for group in groups],
        num_workers=worker.num_workers,
        budget=task.token_budget,
    )
    sums = torch.zeros(5, dtype=torch.float64, device=models.policy.device)
    for indices in spread[worker.rank]:
        # A worker with nothing left still passes through the model, with weight zero.
        weight, places = (1.0, indices) if indices else (0.0, [0])
        share, statistics = microbatch_loss(
            models,
            task,
            [groups[index] for index in places],
            advantages_PG[places].flatten(),
            num_tokens,
        )
        names = ", ".join(groups[index][0].prompt_id for index in places)
        models.policy.backward(share * weight, f"prompts {names}")
        sums += statistics * weight
    torch.distributed.all_reduce(sums)
    loss, kl_sum, entropy_sum, ratio_sum, clipped_sum = sums.tolist()
    return {
        "loss": loss,
        "reward": float(rewards_PG.mean()),
        "reward_std": float(rewards_PG.std()),
        "disagreement": fmean(rollout.disagreement for group in groups for rollout in group),
        "kl": kl_sum / num_tokens,
        "entropy": entropy_sum / num_tokens,
        "ratio": ratio_sum / num_tokens,
        "clip_fraction": clipped_sum / num_tokens,
        "zero_variance_fraction": float(advantage.zero_variance_groups(rewards_PG).float().mean()),
        "length_tokens": num_tokens / rewards_PG.numel(),
    }


def microbatch_loss(
    models: Models,
    task: PolicyTask,
    groups: Sequence[list[Rollout]],
    advantages_R: Tensor,
    num_tokens: int,
) -> tuple[Tensor, Tensor]:
    """The microbatch's share of the loss, and sums of (loss, KL, entropy, ratio, clipped)."""
    row = pack([prompt_group(group) for group in groups]).to(models.policy.device)
    token_ids_BT = row.token_ids_N[None]
    sampled = [logprob for group in groups for rollout in group for logprob in rollout.logprobs]
    sampler_logprobs_BT = torch.tensor([sampled]).to(token_ids_BT.device)
    with torch.no_grad():
        reference_BTV = response_logits(models.reference, row, ())
        reference_logprobs_BT = token_logprobs(
            impossible(reference_BTV, models.forbidden), token_ids_BT
        )
    free_BTV = response_logits(models.policy, row, ())
    logits_BTV = impossible(free_BTV, models.forbidden)
    logprobs_BT = token_logprobs(logits_BTV, token_ids_BT)
    mask_BT = every_token(logprobs_BT)
    terms = clipped_policy_loss(
        logprobs_BT,
        sampler_logprobs_BT,
        advantages_R.to(mask_BT.device)[row.response_N][None],
        mask_BT,
        clip_low=task.optimise.clip_low,
        clip_high=task.optimise.clip_high,
        num_tokens=num_tokens,
    )
    kl_loss = token_mean(kl_k2(logprobs_BT, reference_logprobs_BT), mask_BT, num_tokens=num_tokens)
    share = (
        terms.loss
        + task.optimise.kl_coef * kl_loss
        + ending_share(free_BTV, reference_BTV, models.forbidden, num_tokens)
    )
    with torch.no_grad():
        kl_sum = masked_sum(kl_k3(logprobs_BT, reference_logprobs_BT), mask_BT)
        entropy_sum = masked_sum(entropy(logits_BTV), mask_BT)
    statistics = torch.stack(
        [share.detach(), kl_sum, entropy_sum, terms.ratio_sum, terms.clipped_sum]
    )
    return share, statistics.double()


def prompt_group(rollouts: Sequence[Rollout]) -> PromptGroup:
    """The rollouts of one prompt as token ids."""
    return PromptGroup(
        rollouts[0].prompt_token_ids, tuple(rollout.token_ids for rollout in rollouts)
    )
