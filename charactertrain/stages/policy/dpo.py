"""Direct preference optimisation: the policy on the pairs, with no preference model or sampling.

Shapes: B pairs, R responses of a microbatch, N their tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charactertrain.models.packing import PromptGroup, pack
from charactertrain.models.token_budget import microbatches
from charactertrain.objectives.aggregation import response_sums, token_weights
from charactertrain.objectives.dpo import DPOTerms, dpo_loss
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.objectives.policy import ending_loss
from charactertrain.runtime.learning_rate import Schedule
from charactertrain.runtime.training_engine import Computing
from charactertrain.runtime.worker import Worker
from charactertrain.seeds import derive_seed
from charactertrain.stages.policy.task import (
    Phase,
    PolicyTask,
    forbidden_tokens,
    frozen_model,
    starting_weights,
    training_engine,
)
from charactertrain.stages.policy.warm_start import warm_start_once
from charactertrain.stages.preference_model.data import Example
from charactertrain.stages.preference_model.step import RankedPair, RankedPrompt
from charactertrain.stages.response_logits import (
    Models,
    end_logprobs,
    impossible,
    response_logits,
)


@dataclass(frozen=True)
class DpoTask:
    """What is learnt from."""

    prompts: tuple[RankedPrompt, ...]
    prompts_per_step: int
    beta: float


def with_sampled_tokens(
    examples: Iterable[Example], token_ids: Mapping[str, Sequence[int]], end: Sequence[int]
) -> list[RankedPrompt]:
    """The prompts with their responses as they were sampled, which is how a policy writes them.

    Args:
        examples: Of the training split.
        token_ids: Of each response that was sampled, by its id.
        end: What ends one that was not sampled here.
    """
    prompts = []
    for example in examples:
        group = example.ranked.group
        responses = tuple(
            token_ids.get(response_id) or (*encoded, *end)
            for response_id, encoded in zip(example.response_ids, group.responses, strict=True)
        )
        sampled = PromptGroup(group.prompt_token_ids, responses)
        prompts.append(replace(example.ranked, group=sampled))
    return prompts


def train(worker: Worker, task: PolicyTask, dpo: DpoTask) -> None:
    """Warm start, then steps on the pairs, and the policy written: Ray Train runs it."""
    with worker.last_checkpoint() as checkpoint:
        if warm_start_once(task, worker, checkpoint):
            checkpoint = None
        _optimise(task, dpo, worker, checkpoint)


def _optimise(task: PolicyTask, dpo: DpoTask, worker: Worker, checkpoint: Path | None) -> None:
    with starting_weights(task) as start:
        engine = training_engine(task, start, checkpoint)
        models = Models(engine, frozen_model(task, start), forbidden_tokens(task))
    settings = task.optimise
    rates = Schedule(settings.learning_rate, settings.warmup_steps, settings.num_steps, "constant")

    def take_step(step: int) -> dict[str, Any]:
        prompts = step_prompts(dpo, task.seed, step)
        values = dpo_step(models, prompts, dpo.beta, worker, task.token_budget)
        return {**values, "grad_norm": engine.step(rates.rate(step))}

    phase = Phase(
        name="optimise",
        counter="step",
        num_steps=settings.num_steps,
        model="model",
        file="optimise.json",
    )
    phase.run(engine, task, worker, checkpoint, take_step)


def step_prompts(dpo: DpoTask, seed: int, step: int) -> list[RankedPrompt]:
    """The prompts of a step: epochs of permutations that depend on the seed alone."""
    count, size = len(dpo.prompts), dpo.prompts_per_step
    places = [divmod(place, count) for place in range(step * size, (step + 1) * size)]

    @cache
    def order(epoch: int) -> list[int]:
        return sorted(range(count), key=lambda index: derive_seed(seed, "dpo", epoch, index))

    return [dpo.prompts[order(epoch)[place]] for epoch, place in places]


def dpo_step(
    models: Models,
    prompts: Sequence[RankedPrompt],
    beta: float,
    worker: Worker,
    token_budget: int,
) -> dict[str, Any]:
    """Add the gradient of one step; returns its metrics, the same on every rank."""
    spread = microbatches(
        [prompt.group.num_tokens for prompt in prompts],
        num_workers=worker.num_workers,
        budget=token_budget,
    )
    totals = _totals(prompts)
    sums = torch.zeros(5, dtype=torch.float64, device=models.policy.device)
    for indices in spread[worker.rank]:
        # A worker with nothing left still passes through the model, with weight zero.
        batch = [prompts[index] for index in indices or [0]]
        weight = 1.0 if indices else 0.0
        share, terms = _loss_share(models, batch, beta, totals)
        names = ", ".join(prompt.prompt_id for prompt in batch)
        models.policy.backward(share * weight, f"prompts {names}")
        values = [share, terms.accuracy_sum, terms.weight_sum, terms.undecided_weight_sum]
        found = torch.stack([value.detach().double() for value in (*values, terms.margin_sum)])
        sums += weight * found
    torch.distributed.all_reduce(sums)
    loss, accuracy, weights, undecided, margin = sums.tolist()
    return {
        "loss": loss,
        "accuracy": accuracy / (weights - undecided) if weights > undecided else None,
        "margin": margin / weights,
    }


def _totals(prompts: Sequence[RankedPrompt]) -> tuple[float, int]:
    """Weight of a step's pairs, and tokens of its responses."""
    weight = sum(pair.weight for prompt in prompts for pair in prompt.pairs)
    return weight, sum(len(r) for prompt in prompts for r in prompt.group.responses)


def _loss_share(
    models: Models, prompts: Sequence[RankedPrompt], beta: float, totals: tuple[float, int]
) -> tuple[Tensor, DPOTerms]:
    """The microbatch's share of the step's loss; `totals` are the step's weight and tokens."""
    assert models.reference is not None, "the implicit reward is relative to a reference"
    row = pack([prompt.group for prompt in prompts]).to(models.policy.device)

    def sequence_logprobs(model: Computing) -> tuple[Tensor, Tensor | None]:
        free_NV = response_logits(model, row)
        logprobs_N = token_logprobs(impossible(free_NV, models.forbidden), row.token_ids_N)
        ends_N = end_logprobs(free_NV, models.forbidden) if models.forbidden else None
        return response_sums(logprobs_N, row.response_N, len(row.last_R)), ends_N

    policy_R, ends_N = sequence_logprobs(models.policy)
    with torch.no_grad():
        reference_R, reference_ends_N = sequence_logprobs(models.reference)
    chosen: list[int] = []
    rejected: list[int] = []
    pairs: list[RankedPair] = []
    offset = 0
    for prompt in prompts:
        chosen += [offset + pair.chosen for pair in prompt.pairs]
        rejected += [offset + pair.rejected for pair in prompt.pairs]
        pairs += prompt.pairs
        offset += len(prompt.group.responses)
    total_weight, total_tokens = totals
    terms = dpo_loss(
        policy_R[chosen],
        policy_R[rejected],
        reference_R[chosen],
        reference_R[rejected],
        torch.tensor([pair.probability for pair in pairs], device=policy_R.device),
        torch.tensor([pair.weight / total_weight for pair in pairs], device=policy_R.device),
        beta=beta,
    )
    if ends_N is None or reference_ends_N is None:
        return terms.loss, terms
    weights_N = token_weights(row.response_N, total_tokens)
    return terms.loss + ending_loss(ends_N, reference_ends_N, weights_N), terms
