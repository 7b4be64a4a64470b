"""What the workers of the policy stage are given, and the engines they make of it."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from charactertrain.models import loading
from charactertrain.models.lora import LoraSettings, add_adapters, merged_weights, unadapted
from charactertrain.models.packing import PromptGroup, check_packable
from charactertrain.records import Prompt
from charactertrain.runtime.hardware import peak_gpu_memory, resolve_precision
from charactertrain.runtime.weights import Weight, gather, own_weights
from charactertrain.runtime.worker import Worker, checkpoint_is_due
from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings
from charactertrain.runtime.zero_checkpoint import read_state
from charactertrain.seeds import derive_seed
from charactertrain.stages.policy.objective import PolicyGradient
from charactertrain.stages.policy.watch import WatchSettings
from charactertrain.storage import Directory


@dataclass(frozen=True)
class WarmStartTask:
    """The supervised pass."""

    examples: tuple[PromptGroup, ...]
    """A prompt and its best response each."""
    epochs: int
    prompts_per_step: int
    learning_rate: float


@dataclass(frozen=True)
class OptimiseTask:
    """The policy steps."""

    objective: PolicyGradient | None
    """None: supervised on the best of each group that the starting policy samples."""
    num_steps: int
    learning_rate: float
    warmup_steps: int
    sync_tolerance: float


@dataclass(frozen=True)
class WatchTask:
    """What is read, and when it stops the training."""

    settings: WatchSettings
    prompts: tuple[Prompt, ...]
    detectors: Mapping[str, str]
    """Regular expression by trait id."""


@dataclass(frozen=True)
class PolicyTask:
    """All that a worker needs; plain values."""

    model_directory: str
    precision: str
    context_tokens: int
    warm_start: WarmStartTask
    optimise: OptimiseTask
    fixed_ending: bool
    """Responses cannot end by themselves, so tokens that end one have probability zero."""
    token_budget: int
    lora: LoraSettings | None
    """Adapters that are trained in place of the weights; each phase begins with new ones."""
    zero: ZeroSettings
    checkpoint_every: int
    watch: WatchTask | None
    """Of policy gradients; None for no readings."""
    seed: int
    output: Directory


def starting_weights(task: PolicyTask) -> AbstractContextManager[Path]:
    """A context with the directory that the policy starts from."""
    if task.warm_start.epochs > 0:
        return task.output.child("warm_start").on_local_disk()
    return nullcontext(Path(task.model_directory))


def frozen_model(task: PolicyTask, start: Path) -> FrozenModel:
    """The reference: the policy as it starts, as in Ouyang et al. (2022).

    Towards the base, the KL would undo the warm start.
    """
    dtype = resolve_precision(task.precision)
    load = partial(loading.load_causal_lm, start, dtype)
    return FrozenModel(load, task.zero.in_dtype(dtype))


def training_engine(task: PolicyTask, directory: Path, checkpoint: Path | None) -> ZeroEngine:
    """A training engine on the weights in `directory`, or where `checkpoint` left them.

    With new adapters on them, where adapters are trained.
    """
    dtype = resolve_precision(task.precision)

    def load() -> Any:
        model = loading.load_causal_lm(directory, dtype)
        if task.lora is None:
            return model
        # They begin at random, and a start without a checkpoint repeats the one before it.
        torch.manual_seed(derive_seed(task.seed, "adapters"))
        return add_adapters(model, task.lora)

    engine = ZeroEngine(load, task.zero.in_dtype(dtype), checkpoint)
    check_packable(engine.module)
    return engine


def policy_weights(engine: ZeroEngine) -> list[Weight]:
    """The policy's weights as engines and files have them: adapters are merged into theirs."""
    module: Any = engine.module
    if not isinstance(module, PeftModel):
        return own_weights(module)
    return [Weight(*found) for found in merged_weights(module)]


@dataclass(frozen=True)
class Phase:
    """Steps on data that is there before they begin, and what they leave."""

    name: str
    counter: str
    """What the console calls its steps."""
    num_steps: int
    model: str
    """The directory of the weights at the end."""
    file: str
    """The history."""

    def run(
        self,
        engine: ZeroEngine,
        task: PolicyTask,
        worker: Worker,
        checkpoint: Path | None,
        take_step: Callable[[int], dict[str, Any]],
    ) -> None:
        """Take the steps that the checkpoint has not, and write model and history.

        Args:
            engine: That takes them.
            task: What the stage does.
            worker: This process's place.
            checkpoint: Of this phase; None at its beginning.
            take_step: Takes the step of a number, from 0; returns its metrics.
        """
        history: list[dict[str, Any]] = []
        if checkpoint is not None:
            history = read_state(checkpoint)["history"]
        for step in range(len(history), self.num_steps):
            started = time.monotonic()
            values = take_step(step)
            values["seconds"] = time.monotonic() - started
            history.append({"phase": self.name, "step": step + 1, **values})
            values |= peak_gpu_memory()
            worker.send({self.counter: f"{step + 1}/{self.num_steps}", **values})
            if checkpoint_is_due(
                worker, step + 1, every=task.checkpoint_every, num_steps=self.num_steps
            ):
                state = {"phase": self.name, "history": history}
                worker.report_checkpoint(partial(engine.save, state=state), {"step": step + 1})
        write_model(engine, task, worker, self.model)
        if worker.rank == 0:
            task.output.write_bytes(self.file, json.dumps(history).encode())
        torch.distributed.barrier()


def forbidden_tokens(task: PolicyTask) -> tuple[int, ...]:
    """Tokens that no response can hold: those that end one, where all have the same length."""
    base = Path(task.model_directory)
    return tuple(loading.end_token_ids(base)) if task.fixed_ending else ()


def write_model(engine: ZeroEngine, task: PolicyTask, worker: Worker, name: str) -> None:
    """Write the weights as a Hugging Face directory; every rank gathers, rank 0 writes."""
    base = Path(task.model_directory)
    # In the dtype of the computation: in a coarser one, small updates would be rounded away.
    state = gather(policy_weights(engine), resolve_precision(task.precision))
    if worker.rank == 0:
        with tempfile.TemporaryDirectory(prefix="charactertrain-export-") as temporary:
            path = Path(temporary)
            unadapted(engine.module).save_pretrained(path, state_dict=state)
            loading.load_tokenizer(base).save_pretrained(path)
            task.output.upload(path, name)
    torch.distributed.barrier()
