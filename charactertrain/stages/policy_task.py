"""What the workers of the policy stage are given, and the engines they make of it."""

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from charactertrain.models import loading
from charactertrain.records import Prompt
from charactertrain.models.packing import PromptGroup, check_packable
from charactertrain.runtime.hardware import resolve_precision
from charactertrain.runtime.training_engine import TrainingEngine
from charactertrain.runtime.worker import Worker
from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings
from charactertrain.stages.policy_objective import PolicyGradient
from charactertrain.stages.policy_watch import WatchSettings
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
    zero: ZeroSettings
    checkpoint_every: int
    watch: WatchTask | None
    """Of policy gradients; None for no readings."""
    seed: int
    output: Directory


@dataclass(frozen=True)
class Models:
    """What the tokens of a step pass through."""

    policy: TrainingEngine
    reference: FrozenModel | None
    """None where nothing pulls the policy to it."""
    forbidden: tuple[int, ...]
    """Tokens that no response can hold: those that would end one."""


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
    """A training engine on the weights in `directory`, or where `checkpoint` left them."""
    dtype = resolve_precision(task.precision)
    load = partial(loading.load_causal_lm, directory, dtype)
    engine = ZeroEngine(load, task.zero.in_dtype(dtype), checkpoint)
    check_packable(engine.module)
    return engine


def forbidden_tokens(task: PolicyTask) -> tuple[int, ...]:
    """Tokens that no response can hold: those that end one, where all have the same length."""
    base = Path(task.model_directory)
    return tuple(loading.end_token_ids(base)) if task.fixed_ending else ()


def write_model(engine: ZeroEngine, task: PolicyTask, worker: Worker, name: str) -> None:
    """Write the weights as a Hugging Face directory; every rank gathers, rank 0 writes."""
    base = Path(task.model_directory)
    # In the dtype of the computation: in a coarser one, small updates would be rounded away.
    state = engine.full_state(resolve_precision(task.precision))
    if worker.rank == 0:
        with tempfile.TemporaryDirectory(prefix="charactertrain-export-") as temporary:
            path = Path(temporary)
            engine.module.save_pretrained(path, state_dict=state)
            loading.load_tokenizer(base).save_pretrained(path)
            task.output.upload(path, name)
    torch.distributed.barrier()
