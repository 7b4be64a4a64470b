"""What the workers of the policy stage are given, and the engines they make of it."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup, check_packable
from charactertrain.records import Prompt
from charactertrain.runtime.hardware import resolve_precision
from charactertrain.runtime.worker import Worker
from charactertrain.runtime.zero import ZeroEngine, ZeroSettings
from charactertrain.stages.ensemble import EnsembleReward
from charactertrain.stages.rollouts import RolloutSettings
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

    prompts: tuple[Prompt, ...]
    num_steps: int
    prompts_per_step: int
    rollouts: RolloutSettings
    advantages: str
    clip_low: float
    clip_high: float
    kl_coef: float
    learning_rate: float
    warmup_steps: int
    reward: EnsembleReward
    sync_tolerance: float


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
    seed: int
    output: Directory


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
