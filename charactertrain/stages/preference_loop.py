"""The worker's side of the preference_model stage: soft Bradley-Terry on prompts' responses.

A batch element is a prompt with all its responses: each response is encoded once and compared in
all its pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup, check_packable, pack
from charactertrain.objectives.preference import bradley_terry_loss, reward_centering
from charactertrain.runtime import training
from charactertrain.runtime.hardware import resolve_precision
from charactertrain.runtime.training import Worker
from charactertrain.runtime.zero import ZeroEngine, ZeroSettings, read_state
from charactertrain.seeds import derive_seed
from charactertrain.storage import Directory


@dataclass(frozen=True)
class RankedPrompt:
    """A prompt's responses as token ids, and the pairs among them."""

    prompt_id: str
    trait_id: str
    group: PromptGroup
    pairs: tuple[tuple[int, int, float, float], ...]
    """(chosen, rejected, probability, weight); indices into the group's responses."""


@dataclass(frozen=True)
class PreferenceTask:
    """All that a worker needs; plain values."""

    model_directory: str
    precision: str
    context_tokens: int
    train: tuple[RankedPrompt, ...]
    validation: tuple[RankedPrompt, ...]
    epochs: int
    prompts_per_step: int
    microbatch_size: int
    learning_rate: float
    warmup_share: float
    centering: float
    zero_stage: int
    offload: bool
    weight_decay: float
    max_grad_norm: float
    checkpoint_every: int
    seed: int
    output: Directory


def num_steps(task: PreferenceTask) -> int:
    """Optimizer steps of the whole task."""
    per_epoch = -(-len(task.train) // task.prompts_per_step)
    return task.epochs * per_epoch


def step_prompts(task: PreferenceTask, step: int) -> list[RankedPrompt]:
    """The prompts of a step: each epoch is a permutation that depends on seed and epoch alone."""
    per_epoch = -(-len(task.train) // task.prompts_per_step)
    epoch, index = divmod(step, per_epoch)
    order = sorted(task.train, key=lambda p: derive_seed(task.seed, "order", epoch, p.prompt_id))
    return order[index * task.prompts_per_step : (index + 1) * task.prompts_per_step]


def microbatches(
    prompts: Sequence[RankedPrompt], *, size: int, count: int, worker: Worker
) -> list[list[RankedPrompt]]:
    """This worker's microbatches of a step; the last ones may be empty.

    Every worker has `count`, so that all reach the same collectives.
    """
    mine = prompts[worker.rank :: worker.num_workers]
    return [list(mine[i * size : (i + 1) * size]) for i in range(count)]


def train(arguments: dict[str, Any]) -> None:
    """Train, measure on held-out prompts, and write the model: the function Ray Train runs."""
    task: PreferenceTask = arguments["task"]
    worker = training.join_group(arguments)
    dtype = resolve_precision(task.precision)
    per_step = -(-task.prompts_per_step // (worker.num_workers * task.microbatch_size))
    settings = ZeroSettings(
        stage=task.zero_stage,
        offload=task.offload,
        bf16=dtype is torch.bfloat16,
        microbatches=per_step,
        weight_decay=task.weight_decay,
        max_grad_norm=task.max_grad_norm,
    )
    directory = Path(task.model_directory)
    engine = ZeroEngine(
        lambda: loading.load_preference_model(directory, dtype, seed=task.seed), settings
    )
    check_packable(engine.module, task.context_tokens)
    history: list[dict[str, Any]] = []
    with training.last_checkpoint() as checkpoint:
        if checkpoint is not None:
            engine.load(checkpoint)
            history = read_state(checkpoint)["history"]
    total = num_steps(task)
    for step in range(len(history), total):
        values = _train_step(engine, task, step, per_step, worker)
        history.append(values)
        worker.send(
            {"step": f"{step + 1}/{total}", **{k: v for k, v in values.items() if k != "step"}}
        )
        if (step + 1) % task.checkpoint_every == 0 and step + 1 < total:
            training.report_checkpoint(
                lambda path: engine.save(path, {"history": history}), {"step": step + 1}
            )
    rewards = _held_out_rewards(engine, task, worker)
    _write(engine, task, worker, {"history": history, "validation_rewards": rewards})


def _train_step(
    engine: ZeroEngine, task: PreferenceTask, step: int, count: int, worker: Worker
) -> dict[str, Any]:
    prompts = step_prompts(task, step)
    total_weight = sum(pair[3] for prompt in prompts for pair in prompt.pairs)
    sums = torch.zeros(3)
    for batch in microbatches(prompts, size=task.microbatch_size, count=count, worker=worker):
        loss, accuracy, weight = _microbatch_loss(engine, batch or prompts[:1], task.centering)
        # A worker without prompts of its own still passes through the model, with weight zero.
        share = loss / total_weight * (1.0 if batch else 0.0)
        engine.backward(share)
        if batch:
            sums += torch.tensor([float(loss.detach()), accuracy, weight])
    sums = sums.to(engine.device)
    torch.distributed.all_reduce(sums)
    warmup = round(task.warmup_share * num_steps(task))
    rate = training.learning_rate_at(step, peak=task.learning_rate, warmup_steps=warmup)
    grad_norm = engine.step(rate)
    loss_sum, accuracy_sum, weight_sum = sums.tolist()
    return {
        "step": step + 1,
        "loss": loss_sum / weight_sum,
        "accuracy": accuracy_sum / weight_sum,
        "grad_norm": grad_norm,
        "learning_rate": rate,
    }


def _microbatch_loss(
    engine: ZeroEngine, prompts: Sequence[RankedPrompt], centering: float
) -> tuple[Tensor, float, float]:
    """Weighted sums over the microbatch's pairs: loss, accuracy, weight."""
    rewards_R = group_rewards(engine, [prompt.group for prompt in prompts])
    chosen, rejected, labels, weights = [], [], [], []
    offset = 0
    for prompt in prompts:
        for better, worse, probability, weight in prompt.pairs:
            chosen.append(offset + better)
            rejected.append(offset + worse)
            labels.append(probability)
            weights.append(weight)
        offset += len(prompt.group.responses)
    device = rewards_R.device
    weights_B = torch.tensor(weights, device=device)
    terms = bradley_terry_loss(
        rewards_R[chosen], rewards_R[rejected], torch.tensor(labels, device=device), weights_B
    )
    loss = terms.loss_sum
    if centering > 0:
        loss = loss + centering * reward_centering(
            rewards_R[chosen], rewards_R[rejected], weights_B
        )
    return loss, float(terms.accuracy_sum), float(terms.weight_sum)


def group_rewards(engine: ZeroEngine, groups: Sequence[PromptGroup]) -> Tensor:
    """The scalar of each response, in order, shape R, read at its last token."""
    row = pack(groups).to(engine.device)
    scores: list[Tensor] = []
    # The model pools one token of a row; the head's output at every token is taken on its way.
    hook = engine.module.score.register_forward_hook(
        lambda _module, _inputs, output: scores.append(output)
    )
    engine.forward(**row.model_inputs())
    hook.remove()
    return scores[0][0, row.last_R, 0].float()


def _held_out_rewards(
    engine: ZeroEngine, task: PreferenceTask, worker: Worker
) -> dict[str, list[float]]:
    """Rewards of every validation prompt's responses, by prompt id, on every rank."""
    engine.module.eval()
    mine: dict[str, list[float]] = {}
    rounds = -(-len(task.validation) // worker.num_workers)
    with torch.no_grad():
        for index in range(rounds):
            position = index * worker.num_workers + worker.rank
            prompt = task.validation[min(position, len(task.validation) - 1)]
            mine[prompt.prompt_id] = group_rewards(engine, [prompt.group]).tolist()
    gathered: list[Any] = [None] * worker.num_workers
    torch.distributed.all_gather_object(gathered, mine)
    return {prompt_id: rewards for part in gathered for prompt_id, rewards in part.items()}


def _write(
    engine: ZeroEngine, task: PreferenceTask, worker: Worker, results: dict[str, Any]
) -> None:
    """Write the model and the results from rank 0; every rank gathers."""
    import json
    import tempfile

    state = engine.full_state(resolve_precision(task.precision))
    if worker.rank == 0:
        with tempfile.TemporaryDirectory(prefix="charactertrain-export-") as temporary:
            path = Path(temporary)
            engine.module.save_pretrained(path, state_dict=state)
            loading.load_tokenizer(Path(task.model_directory)).save_pretrained(path)
            task.output.upload(path, "model")
        task.output.write_bytes("results.json", json.dumps(results).encode())
    torch.distributed.barrier()
