"""One step of the preference model: prompts with their ranked responses in, a gradient added.

A batch element is a prompt with all its responses: each response is encoded once and compared in
all its pairs. Needs an engine and nothing else: no Ray, no storage.

Shapes: R responses of a microbatch, B pairs, G prompts with K responses each.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from charactertrain.models import padding
from charactertrain.models.packing import PromptGroup, is_packable, pack
from charactertrain.models.token_budget import microbatches
from charactertrain.objectives.preference import (
    BradleyTerryTerms,
    bradley_terry_loss,
    label_margins,
    plackett_luce_loss,
    reward_centering,
)
from charactertrain.runtime.training_engine import TrainingEngine
from charactertrain.runtime.worker import Worker


@dataclass(frozen=True, slots=True)
class RankedPair:
    """Two of a prompt's responses, by their places in its group."""

    chosen: int
    rejected: int
    probability: float
    """P(chosen preferred to rejected)."""
    weight: float
    margin: float
    """In logits, besides what the objective asks for; 0 where the data has none."""


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt's responses as token ids, and the pairs among them."""

    prompt_id: str
    trait_id: str
    group: PromptGroup
    pairs: tuple[RankedPair, ...]
    utilities: tuple[float, ...]
    """Of each response, in logits, as its pairs have them."""


@dataclass(frozen=True)
class PreferenceObjective:
    """What is minimised."""

    name: Literal["bradley_terry", "plackett_luce"]
    centering: float
    """Weight of the penalty on the rewards' level."""
    margin: float
    """Scale of `label_margins`; of Bradley-Terry alone."""


def preference_step(
    engine: TrainingEngine,
    prompts: Sequence[RankedPrompt],
    objective: PreferenceObjective,
    worker: Worker,
    token_budget: int,
    name: str = "the step",
) -> dict[str, Any]:
    """Add the gradient of one step; returns its metrics, the same on every rank.

    `name` is what the step is called if its loss is not finite.
    """
    sums = _sums(engine, prompts, objective, worker, token_budget, name)
    loss, accuracy, weight, undecided, tokens, padded = sums.tolist()
    return {
        "loss": loss / weight,
        "accuracy": accuracy / (weight - undecided) if weight > undecided else None,
        "tokens": int(tokens),
        "padding_share": 1 - tokens / padded,
    }


@torch.no_grad()
def held_out_loss(
    engine: TrainingEngine,
    prompts: Sequence[RankedPrompt],
    objective: PreferenceObjective,
    worker: Worker,
    token_budget: int,
) -> float:
    """The objective's mean over prompts that are not trained on, the same on every rank."""
    sums = _sums(engine, prompts, objective, worker, token_budget, "held out")
    return float(sums[0] / sums[2])


def _sums(
    engine: TrainingEngine,
    prompts: Sequence[RankedPrompt],
    objective: PreferenceObjective,
    worker: Worker,
    token_budget: int,
    name: str,
) -> Tensor:
    """Sums over all prompts: loss, accuracy, weight, weight without a label, tokens, with padding.

    With gradients enabled, those of loss / weight are added.
    """
    total_weight = sum(pair.weight for prompt in prompts for pair in prompt.pairs)
    sums = torch.zeros(6, dtype=torch.float64, device=engine.device)
    groups = [prompt.group for prompt in prompts]
    tokens = padded = 0
    for indices, count in my_microbatches(engine, groups, worker, token_budget):
        # A worker without prompts of its own still passes through the model, with weight zero.
        batch = [prompts[index] for index in indices or [0]]
        rewards_R, num_tokens, num_padded = group_rewards(engine, [p.group for p in batch], count)
        loss, terms = _loss(rewards_R, batch, objective)
        share = loss / total_weight * (1.0 if indices else 0.0)
        if torch.is_grad_enabled():
            names = ", ".join(prompt.prompt_id for prompt in batch)
            engine.backward(share, f"{name}, prompts {names}")
        if indices:
            values = [loss, terms.accuracy_sum, terms.weight_sum, terms.undecided_weight_sum]
            sums[:4] += torch.stack([value.detach().double() for value in values])
            # On a GPU: nothing here waits, so that the next row is packed while it computes.
            tokens, padded = tokens + num_tokens, padded + num_padded
    sums[4:] = torch.tensor([tokens, padded])
    torch.distributed.all_reduce(sums)
    return sums


def my_microbatches(
    engine: TrainingEngine, groups: Sequence[PromptGroup], worker: Worker, token_budget: int
) -> list[tuple[list[int], int]]:
    """This worker's microbatches, each with the number of batches that it is padded into.

    Indices of the groups; none for a worker that has nothing left, and still passes through.
    """
    packs = is_packable(engine.module)
    spread = microbatches(
        [row_tokens(group, packs=packs) for group in groups],
        num_workers=worker.num_workers,
        budget=token_budget,
    )
    counts = []
    for places in zip(*spread, strict=True):
        of_all = [[groups[index] for index in place or [0]] for place in places]
        # As many for all workers, or some would wait for the others for ever.
        counts.append(1 if packs else max(padding.num_batches(found) for found in of_all))
    return list(zip(spread[worker.rank], counts, strict=True))


def row_tokens(group: PromptGroup, *, packs: bool) -> int:
    """Tokens that pass through the model for a group."""
    repeats = 0 if packs else len(group.responses) - 1
    return group.num_tokens + repeats * len(group.prompt_token_ids)


def _loss(
    rewards_R: Tensor, prompts: Sequence[RankedPrompt], objective: PreferenceObjective
) -> tuple[Tensor, BradleyTerryTerms]:
    """The objective's weighted sum over the prompts, and the statistics of their pairs."""
    chosen, rejected, pairs = [], [], []
    offset = 0
    for prompt in prompts:
        for pair in prompt.pairs:
            chosen.append(offset + pair.chosen)
            rejected.append(offset + pair.rejected)
            pairs.append(pair)
        offset += len(prompt.group.responses)
    device = rewards_R.device
    probabilities_B = torch.tensor([pair.probability for pair in pairs], device=device)
    weights_B = torch.tensor([pair.weight for pair in pairs], device=device)
    margins_B = torch.tensor([pair.margin for pair in pairs], device=device)
    margins_B = margins_B + label_margins(probabilities_B, objective.margin)
    terms = bradley_terry_loss(
        rewards_R[chosen], rewards_R[rejected], probabilities_B, weights_B, margins_B
    )
    loss = terms.loss_sum
    if objective.name == "plackett_luce":
        loss = _plackett_luce(rewards_R, prompts)
    if objective.centering > 0:
        penalty = reward_centering(rewards_R[chosen], rewards_R[rejected], weights_B)
        loss = loss + objective.centering * penalty
    return loss, terms


def _plackett_luce(rewards_R: Tensor, prompts: Sequence[RankedPrompt]) -> Tensor:
    """Over whole rankings, each weighing as much as its pairs together."""
    lists: dict[int, list[tuple[RankedPrompt, int]]] = defaultdict(list)
    offset = 0
    for prompt in prompts:
        lists[len(prompt.group.responses)].append((prompt, offset))
        offset += len(prompt.group.responses)
    total = rewards_R.new_zeros(())
    for size, found in lists.items():
        places_GK = torch.tensor([[start + i for i in range(size)] for _, start in found])
        utilities_GK = torch.tensor([prompt.utilities for prompt, _ in found])
        weights_G = torch.tensor([sum(p.weight for p in prompt.pairs) for prompt, _ in found])
        losses_G = plackett_luce_loss(
            rewards_R[places_GK.to(rewards_R.device)], utilities_GK.to(rewards_R.device)
        )
        total = total + (weights_G.to(rewards_R.device) * losses_G).sum()
    return total


def group_rewards(
    engine: TrainingEngine, groups: Sequence[PromptGroup], count: int = 1
) -> tuple[Tensor, int, int]:
    """The scalar of each response, in order, shape R, read at its last token.

    Args:
        engine: Of a preference model.
        groups: Prompts and their responses.
        count: Batches, where the model cannot be packed.

    Returns:
        The rewards, the tokens that passed through the model, and those with padding.
    """
    if is_packable(engine.module):
        row = pack(groups).to(engine.device)
        num_tokens = row.input_ids.numel()
        return _scores(engine, row.model_inputs())[0, row.last_R], num_tokens, num_tokens
    num_responses = sum(len(group.responses) for group in groups)
    found: list[Tensor] = []
    places: list[Tensor] = []
    num_tokens = num_padded = 0
    for batch in padding.pad(groups, count):
        rows = batch.to(engine.device)
        scores = _scores(engine, rows.model_inputs())
        found.append(scores[torch.arange(len(rows.last_R), device=engine.device), rows.last_R])
        places.append(rows.response_R)
        num_tokens += int(batch.attention_mask[batch.response_R >= 0].sum())
        num_padded += batch.input_ids.numel()
    values, place = torch.cat(found), torch.cat(places)
    counted = place >= 0
    rewards_R = values.new_zeros(num_responses).index_put((place[counted],), values[counted])
    # Rows that come again take part in the backward pass, and count for nothing.
    return rewards_R + 0.0 * values[~counted].sum(), num_tokens, num_padded


def _scores(engine: TrainingEngine, inputs: dict[str, Any]) -> Tensor:
    """The head's output at every token of every row, in fp32."""
    scores: list[Tensor] = []
    # The model pools one token of a row; the head's output at every token is taken on its way.
    hook = engine.module.score.register_forward_hook(
        lambda _module, _inputs, output: scores.append(output)
    )
    engine.forward(**inputs)
    hook.remove()
    return scores[0][..., 0].float()
