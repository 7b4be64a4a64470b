"""What the workers of the policy stage are given, and the engines they make of it."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.records import Prompt
from charactertrain.runtime.hardware import resolve_precision
from charactertrain.runtime.training import Worker
from charactertrain.runtime.zero import ZeroEngine, ZeroSettings
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
    microbatch_size: int
    zero_stage: int
    offload: bool
    weight_decay: float
    max_grad_norm: float
    checkpoint_every: int
    seed: int
    output: Directory


def training_engine(
    task: PolicyTask, directory: Path, prompts_per_step: int, worker: Worker
) -> tuple[ZeroEngine, int]:
    """A training engine on the weights in `directory`, and its microbatches per step."""
    dtype = resolve_precision(task.precision)
    count = -(-prompts_per_step // (worker.num_workers * task.microbatch_size))
    settings = zero_settings(task, dtype, count)
    return ZeroEngine(partial(loading.load_causal_lm, directory, dtype), settings), count


def zero_settings(task: PolicyTask, dtype: torch.dtype, microbatches: int) -> ZeroSettings:
    """The task's ZeRO settings for a phase of so many microbatches per step."""
    return ZeroSettings(
        stage=task.zero_stage,
        offload=task.offload,
        bf16=dtype is torch.bfloat16,
        microbatches=microbatches,
        weight_decay=task.weight_decay,
        max_grad_norm=task.max_grad_norm,
    )


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
