"""The worker's side of the preference_model stage: its models, one after the other."""

import gc
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.lora import LoraSettings, add_adapters, merge_adapters
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.hardware import peak_gpu_memory, resolve_precision
from charactertrain.runtime.learning_rate import Decay, Schedule
from charactertrain.runtime.worker import Worker, agreed, checkpoint_is_due
from charactertrain.runtime.zero import ZeroEngine, ZeroSettings
from charactertrain.runtime.zero_checkpoint import read_state
from charactertrain.seeds import derive_seed
from charactertrain.stages.preference_model.step import (
    PreferenceObjective,
    RankedPrompt,
    group_rewards,
    held_out_loss,
    my_microbatches,
    preference_step,
)
from charactertrain.storage import Directory

_BEST = "best.safetensors"


@dataclass(frozen=True)
class Member:
    """One model to train, and what it is trained on."""

    name: str
    """Of its directory and of its results."""
    seed: int
    """Of the head and of the order of prompts."""
    prompts: tuple[RankedPrompt, ...]


@dataclass(frozen=True)
class PreferenceTask:
    """All that a worker needs; plain values."""

    model_directory: str
    precision: str
    members: tuple[Member, ...]
    selection: tuple[RankedPrompt, ...]
    """Held-out prompts by whose loss the weights are chosen that are kept."""
    scored: tuple[PromptGroup, ...]
    """What is scored with the kept weights."""
    objective: PreferenceObjective
    epochs: int
    prompts_per_step: int
    learning_rate: float
    warmup_share: float
    decay: Decay
    evaluations: int
    patience: int
    """Evaluations without a lower loss after which training stops; 0 for never."""
    lora: LoraSettings | None
    token_budget: int
    zero: ZeroSettings
    checkpoint_every: int
    output: Directory


def num_steps(task: PreferenceTask, member: Member) -> int:
    """Optimizer steps of a member."""
    return task.epochs * -(-len(member.prompts) // task.prompts_per_step)


def steps_of(
    task: PreferenceTask, member: Member, first_step: int
) -> Iterator[tuple[int, list[RankedPrompt]]]:
    """Each step from `first_step` on, with its prompts.

    Each epoch is a permutation that depends on seed and epoch alone.
    """
    size = task.prompts_per_step
    per_epoch = -(-len(member.prompts) // size)
    for epoch in range(first_step // per_epoch, task.epochs):
        order = sorted(
            member.prompts, key=lambda p: derive_seed(member.seed, "order", epoch, p.prompt_id)
        )
        for index in range(per_epoch):
            step = epoch * per_epoch + index
            if step >= first_step:
                yield step, order[index * size : (index + 1) * size]


def evaluation_steps(total: int, evaluations: int) -> set[int]:
    """Numbers of steps after which the held-out loss is measured; the last is one of them."""
    return {round((index + 1) * total / evaluations) for index in range(evaluations)} - {0}


def train(worker: Worker, task: PreferenceTask) -> None:
    """Train, score and write every member: the function that Ray Train runs."""
    with worker.last_checkpoint() as checkpoint:
        resumed = None if checkpoint is None else read_state(checkpoint)["member"]
        for member in task.members:
            if agreed(worker, task.output.exists(f"{member.name}.json")):
                continue
            _Training(worker, task, member, checkpoint if member.name == resumed else None).run()


@dataclass
class _Progress:
    """What a member's training has come to; all of it is in a checkpoint."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of each step."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Step and held-out loss."""

    @property
    def best_step(self) -> int:
        """The evaluated step with the lowest held-out loss, the first of equals."""
        return int(min(self.evaluations, key=lambda e: (e["loss"], e["step"]))["step"])

    def is_over(self, patience: int) -> bool:
        """Whether the last `patience` evaluations were no better than one before them."""
        if patience == 0 or not self.evaluations:
            return False
        since = [e["step"] for e in self.evaluations if e["step"] > self.best_step]
        return len(since) >= patience


class _Training:
    """One member, from its checkpoint to its directory."""

    def __init__(
        self, worker: Worker, task: PreferenceTask, member: Member, checkpoint: Path | None
    ) -> None:
        self._worker, self._task, self._member = worker, task, member
        self._dtype = resolve_precision(task.precision)
        self._engine = ZeroEngine(self._load_model, task.zero.in_dtype(self._dtype), checkpoint)
        self._progress = _Progress()
        self._best: dict[str, Tensor] = {}
        """Weights of the best step, on rank 0."""
        if checkpoint is not None:
            state = read_state(checkpoint)
            self._progress = _Progress(state["history"], state["evaluations"])
            if worker.rank == 0 and (checkpoint / _BEST).exists():
                # Copies: Ray Train deletes the file that these would be views of.
                found = load_file(checkpoint / _BEST)
                self._best = {name: tensor.clone() for name, tensor in found.items()}

    def _load_base(self) -> Any:
        directory = Path(self._task.model_directory)
        return loading.load_preference_model(directory, self._dtype, seed=self._member.seed)

    def _load_model(self) -> Any:
        model = self._load_base()
        return model if self._task.lora is None else add_adapters(model, self._task.lora)

    def run(self) -> None:
        """Train to the end or until the held-out loss rises, then score and write."""
        task, progress = self._task, self._progress
        total = num_steps(task, self._member)
        evaluated = evaluation_steps(total, task.evaluations)
        warmup = round(task.warmup_share * total)
        schedule = Schedule(task.learning_rate, warmup, total, task.decay)
        for step, prompts in steps_of(task, self._member, len(progress.history)):
            if progress.is_over(task.patience):
                break
            name = f"step {step + 1} of {self._member.name}"
            values = preference_step(
                self._engine, prompts, task.objective, self._worker, task.token_budget, name
            )
            rate = schedule.rate(step)
            values["grad_norm"] = self._engine.step(rate)
            progress.history.append({"step": step + 1, **values, "learning_rate": rate})
            if step + 1 in evaluated:
                values["held_out_loss"] = self._evaluate(step + 1)
            values |= peak_gpu_memory()
            self._worker.send(
                {"member": self._member.name, "step": f"{step + 1}/{total}", **values}
            )
            if checkpoint_is_due(
                self._worker, step + 1, every=task.checkpoint_every, num_steps=total
            ):
                self._worker.report_checkpoint(self._save, {"step": step + 1})
        self._finish()

    def _evaluate(self, step: int) -> float:
        self._engine.module.eval()
        loss = held_out_loss(
            self._engine,
            self._task.selection,
            self._task.objective,
            self._worker,
            self._task.token_budget,
        )
        self._engine.module.train()
        # The same on every rank, so that all stop.
        if not math.isfinite(loss):
            raise TrainingError(
                f"the held-out loss of {self._member.name} is {loss} after step {step}; the last "
                "checkpoint is good: lower the learning rate and start in another run.dir"
            )
        self._progress.evaluations.append({"step": step, "loss": loss})
        if self._progress.best_step == step:
            self._best = self._engine.full_state(self._dtype)
        return loss

    def _save(self, directory: Path) -> None:
        progress = self._progress
        state = {
            "member": self._member.name,
            "history": progress.history,
            "evaluations": progress.evaluations,
        }
        self._engine.save(directory, state)
        if self._best:
            save_file(self._best, directory / _BEST)

    def _finish(self) -> None:
        progress, member = self._progress, self._member
        if progress.best_step != len(progress.history):
            self._engine.load_full_state(self._best)
        rewards = self._score()
        model = self._engine.module
        self._engine.close()
        if self._worker.rank == 0:
            self._write_model(model)
        # DeepSpeed's hooks on it hold the engine, and the next member needs its room.
        del model
        gc.collect()
        if self._worker.rank == 0:
            results = {
                "history": progress.history,
                "evaluations": progress.evaluations,
                "best_step": progress.best_step,
                "rewards": rewards,
            }
            self._task.output.write_bytes(f"{member.name}.json", json.dumps(results).encode())
        torch.distributed.barrier()

    @torch.no_grad()
    def _score(self) -> list[list[float]]:
        """Rewards of the responses of every scored group, on every rank."""
        self._engine.module.eval()
        groups, worker = self._task.scored, self._worker
        mine: dict[int, list[float]] = {}
        for indices, count in my_microbatches(
            self._engine, groups, worker, self._task.token_budget
        ):
            batch = [groups[index] for index in indices or [0]]
            rewards = group_rewards(self._engine, batch, count)[0].tolist()
            for index in indices:
                size = len(groups[index].responses)
                mine[index], rewards = rewards[:size], rewards[size:]
        gathered: list[Any] = [None] * worker.num_workers
        torch.distributed.all_gather_object(gathered, mine)
        found = {index: values for part in gathered for index, values in part.items()}
        return [found[index] for index in range(len(groups))]

    def _write_model(self, model: Any) -> None:
        """The best weights as a Hugging Face directory; rank 0 alone."""
        state: dict[str, Tensor] | None = self._best
        if self._task.lora is not None:
            model, state = merge_adapters(self._load_base(), self._task.lora, self._best), None
        with tempfile.TemporaryDirectory(prefix="charactertrain-export-") as temporary:
            path = Path(temporary)
            model.save_pretrained(path, state_dict=state)
            loading.load_tokenizer(Path(self._task.model_directory)).save_pretrained(path)
            self._task.output.upload(path, self._member.name)
