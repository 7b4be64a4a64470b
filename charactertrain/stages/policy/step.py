"""One policy step: groups of rollouts in, the gradient of their objective added.

Shapes: P prompts, G responses per prompt, N response tokens of a microbatch, R its responses, V
vocabulary. A microbatch is one packed row.
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
from charactertrain.objectives import policy
from charactertrain.objectives.advantages import RunningBaseline
from charactertrain.objectives.aggregation import response_sums, weighted_sum
from charactertrain.objectives.logprobs import entropy, token_logprobs
from charactertrain.runtime.worker import Worker
from charactertrain.stages.policy.objective import (
    Drawn,
    PolicyGradient,
    advantages_of,
    corrections,
    kl_estimator,
    policy_terms,
    weights_of,
)
from charactertrain.stages.policy.rollouts import Rollout
from charactertrain.stages.response_logits import (
    Models,
    end_logprobs,
    impossible,
    response_logits,
)

Groups = Sequence[Sequence[Rollout]]


@dataclass(frozen=True)
class Microbatch:
    """Groups that pass through the model together, on this worker."""

    groups: Groups
    places: list[int]
    """Of the groups in the step."""
    weight: float
    """0 for a worker that has nothing left, and passes through the model all the same."""
    row: PackedRow
    sampler_logprobs_N: Tensor
    reference_logprobs_N: Tensor | None
    reference_ends_N: Tensor | None
    """Log-probability of ending, under the reference; None where responses end freely."""

    @property
    def num_responses(self) -> int:
        """R."""
        return len(self.row.last_R)


def policy_step(
    models: Models,
    objective: PolicyGradient,
    groups: Groups,
    worker: Worker,
    *,
    token_budget: int,
    baseline: RunningBaseline,
) -> dict[str, Any]:
    """Add the gradient of one step; returns its metrics, the same on every rank."""
    batches = cut(models, groups, worker, token_budget)
    rewards_PG = torch.tensor([[rollout.reward for rollout in group] for group in groups])
    costs_PG = _kl_costs(objective, batches, rewards_PG)
    advantages_PG = advantages_of(objective.advantages, rewards_PG - costs_PG, baseline)
    lengths_PG = torch.tensor([[len(rollout.token_ids) for rollout in group] for group in groups])
    sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=models.policy.device)
    for batch in batches:
        share, statistics = microbatch_loss(
            models, objective, batch, advantages_PG[batch.places].flatten(), lengths_PG
        )
        names = ", ".join(group[0].prompt_id for group in batch.groups)
        models.policy.backward(share * batch.weight, f"prompts {names}")
        sums += statistics * batch.weight
    torch.distributed.all_reduce(sums)
    num_tokens = int(lengths_PG.sum())
    found = dict(zip(_SUMS, sums.tolist(), strict=True))
    per_token = {name: found[name] / max(num_tokens, 1) for name in _SUMS[1:]}
    if models.reference is None:
        del per_token["kl"]
    return {
        "loss": found["loss"],
        "reward": float(rewards_PG.mean()),
        "reward_std": float(rewards_PG.std()),
        "kl_cost": float(costs_PG.mean()),
        "disagreement": fmean(rollout.disagreement for group in groups for rollout in group),
        **per_token,
        "zero_variance_fraction": float(advantage.zero_variance_groups(rewards_PG).float().mean()),
        "length_tokens": num_tokens / rewards_PG.numel(),
    }


def cut(models: Models, groups: Groups, worker: Worker, token_budget: int) -> list[Microbatch]:
    """This worker's microbatches, with what the reference says of them."""
    spread = microbatches(
        [prompt_group(group).num_tokens for group in groups],
        num_workers=worker.num_workers,
        budget=token_budget,
    )
    batches = []
    for indices in spread[worker.rank]:
        places = indices or [0]
        chosen = [groups[place] for place in places]
        row = pack([prompt_group(group) for group in chosen]).to(models.policy.device)
        sampled = [value for group in chosen for rollout in group for value in rollout.logprobs]
        logprobs_N, ends_N = _of_reference(models, row)
        batches.append(
            Microbatch(
                groups=chosen,
                places=places,
                weight=1.0 if indices else 0.0,
                row=row,
                sampler_logprobs_N=torch.tensor(sampled).to(row.token_ids_N.device),
                reference_logprobs_N=logprobs_N,
                reference_ends_N=ends_N,
            )
        )
    return batches


@torch.no_grad()
def distance_and_entropy(
    models: Models, groups: Groups, worker: Worker, *, token_budget: int
) -> tuple[float, float]:
    """Sums over the groups' tokens, in nats: k3 of the KL to the reference, and entropy.

    The same on every rank.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=models.policy.device)
    for batch in cut(models, groups, worker, token_budget):
        assert batch.reference_logprobs_N is not None, "a distance is to a reference"
        logits_NV = impossible(response_logits(models.policy, batch.row), models.forbidden)
        logprobs_N = token_logprobs(logits_NV, batch.row.token_ids_N)
        kl = policy.kl_k3(logprobs_N, batch.reference_logprobs_N).sum()
        sums += batch.weight * torch.stack([kl, entropy(logits_NV).sum()]).double()
    torch.distributed.all_reduce(sums)
    kl_sum, entropy_sum = sums.tolist()
    return kl_sum, entropy_sum


@torch.no_grad()
def _of_reference(models: Models, row: PackedRow) -> tuple[Tensor | None, Tensor | None]:
    if models.reference is None:
        return None, None
    logits_NV = response_logits(models.reference, row)
    logprobs_N = token_logprobs(impossible(logits_NV, models.forbidden), row.token_ids_N)
    return logprobs_N, end_logprobs(logits_NV, models.forbidden) if models.forbidden else None


def _kl_costs(
    objective: PolicyGradient, batches: Sequence[Microbatch], rewards_PG: Tensor
) -> Tensor:
    """What each response's distance to the reference takes off its reward, shape PG."""
    costs_PG = torch.zeros_like(rewards_PG)
    if objective.kl_place != "reward" or objective.kl_coef == 0:
        return costs_PG
    # Of the sampler's own probabilities: the cost is part of what was sampled.
    for batch in batches:
        assert batch.reference_logprobs_N is not None, "a KL needs a reference"
        kl_N = kl_estimator(objective.kl_estimator)(
            batch.sampler_logprobs_N, batch.reference_logprobs_N
        )
        kl_R = response_sums(kl_N, batch.row.response_N, batch.num_responses)
        shape = (len(batch.places), -1)
        costs_PG[batch.places] += batch.weight * objective.kl_coef * kl_R.view(shape).cpu()
    costs_PG = costs_PG.to(batches[0].row.input_ids.device)
    torch.distributed.all_reduce(costs_PG)
    return costs_PG.cpu()


_SUMS = ("loss", "kl", "sampler_kl", "entropy", "ratio", "clip_fraction", "correction")
"""What a microbatch adds up over its tokens: the loss, and what becomes means over tokens.

`kl` is to the reference, `sampler_kl` the sampler's to the trainer; `correction` the weight of
tokens that others drew.
"""


def microbatch_loss(
    models: Models,
    objective: PolicyGradient,
    batch: Microbatch,
    advantages_R: Tensor,
    lengths_PG: Tensor,
) -> tuple[Tensor, Tensor]:
    """The microbatch's share of the loss, and its sums."""
    row = batch.row
    free_NV = response_logits(models.policy, row)
    logits_NV = impossible(free_NV, models.forbidden)
    logprobs_N = token_logprobs(logits_NV, row.token_ids_N)
    weights_N = weights_of(objective, lengths_PG, batch.places, row.response_N)
    drawn = Drawn(batch.sampler_logprobs_N, row.response_N, batch.num_responses)
    correction_N = corrections(objective, drawn, logprobs_N)
    advantages_N = advantages_R.to(row.response_N.device)[row.response_N] * correction_N
    terms = policy_terms(objective, drawn, logprobs_N, advantages_N, weights_N)
    share = terms.loss
    sampler_N, reference_N = batch.sampler_logprobs_N, batch.reference_logprobs_N
    kl_sum = share.new_zeros(())
    if reference_N is not None:
        kl_sum = policy.kl_k3(logprobs_N.detach(), reference_N).sum()
        if objective.kl_place == "loss":
            kl_N = kl_estimator(objective.kl_estimator)(logprobs_N, reference_N)
            share = share + objective.kl_coef * weighted_sum(kl_N, weights_N)
    if batch.reference_ends_N is not None:
        ends_N = end_logprobs(free_NV, models.forbidden)
        share = share + policy.ending_loss(ends_N, batch.reference_ends_N, weights_N)
    with torch.no_grad():
        sampler_kl = policy.kl_k3(sampler_N, logprobs_N).sum()
        sums = [share, kl_sum, sampler_kl, entropy(logits_NV).sum(), terms.ratio_sum]
        sums += [terms.clipped_sum, correction_N.sum()]
    return share, torch.stack([value.detach().double() for value in sums])


def prompt_group(rollouts: Sequence[Rollout]) -> PromptGroup:
    """The rollouts of one prompt as token ids."""
    return PromptGroup(
        rollouts[0].prompt_token_ids, tuple(rollout.token_ids for rollout in rollouts)
    )
