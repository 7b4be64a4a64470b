"""A DeepSpeed engine around one optimizer step; the same result at every ZeRO stage."""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from charactertrain.exceptions import TrainingError
from charactertrain.runtime.heap import trim_heap
from charactertrain.runtime.training_engine import OptimizerSettings, decay_groups
from charactertrain.runtime.weights import gather, own_weights
from charactertrain.runtime.zero_checkpoint import Layout, for_this_layout, write_state

# On CPU DeepSpeed 0.19 compiles a kernel of its own at the first start, for ranks that share
# memory: 90 seconds (2 cores, 2026-11), and an error where there is no compiler. Gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

_MAX_NAMED = 4
"""Microbatches named in a message."""


@dataclass(frozen=True)
class ZeroSettings:
    """How the training state is spread and stepped."""

    stage: int
    offload: bool
    optimizer: OptimizerSettings
    bf16: bool = False
    """Compute in bf16 with fp32 master weights; otherwise all in fp32. A worker knows (`in_dtype`):
    the driver's hardware may be another."""

    def in_dtype(self, dtype: torch.dtype) -> "ZeroSettings":
        """The same for a model that computes in `dtype`."""
        return replace(self, bf16=dtype is torch.bfloat16)


def deepspeed_config(settings: ZeroSettings, *, universal: bool = False) -> dict[str, Any]:
    """The settings as DeepSpeed reads them; `universal` checkpoints have no layout."""
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if settings.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Sequences are cut into microbatches by the caller, as many as a step needs: gradients add
        # up until `step`.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if _is_plain(settings) else settings.optimizer.max_grad_norm,
        "bf16": {"enabled": settings.bf16},
        # In bf16 the sum over microbatches would depend on how many there are. DeepSpeed cannot do
        # this at stage 0.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if settings.stage > 0 else {}),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "checkpoint": {"load_universal": universal},
    }


def _is_plain(settings: ZeroSettings) -> bool:
    """Whether the optimizer is torch's own, without a wrapper that clips and keeps the norm."""
    return settings.stage == 0 and not settings.bf16


class ZeroEngine:
    """A model, its optimizer, and their state over all workers."""

    def __init__(
        self,
        load: Callable[[], PreTrainedModel],
        settings: ZeroSettings,
        checkpoint: Path | None = None,
    ) -> None:
        """Load the model and spread it; every rank must construct at the same point.

        Args:
            load: Of the model.
            settings: How it is spread and stepped.
            checkpoint: A directory that `save` wrote, to go on from; with another number of workers
                than now, it is converted first.

        Raises:
            TrainingError: The checkpoint was written at another ZeRO stage or precision.
        """
        self._layout: Layout = {
            "workers": dist.get_world_size(),
            "ZeRO stage": settings.stage,
            "precision": "bf16" if settings.bf16 else "fp32",
        }
        with for_this_layout(checkpoint, self._layout) as (directory, is_universal):
            config = deepspeed_config(settings, universal=is_universal)
            # transformers looks for this object while it loads, to shard weights as they come.
            self._hf_config = HfDeepSpeedConfig(config) if settings.stage == 3 else None
            model = load()
            model.train()
            if settings.optimizer.recompute_activations:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            self._start(model, config, settings)
            if directory is not None:
                self._load(directory)
        self._losses: list[tuple[Tensor, str]] = []

    def _start(
        self, model: PreTrainedModel, config: dict[str, Any], settings: ZeroSettings
    ) -> None:
        optimizer = torch.optim.AdamW(
            decay_groups(model, settings.optimizer.weight_decay),
            lr=0.0,
            betas=(0.9, 0.95),
            # ZeRO flattens a group into one tensor, of which unfused Adam makes several copies.
            fused=True,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config
        )
        self._clipped_norm: Tensor | None = None
        if _is_plain(settings):
            # When DeepSpeed has summed the gradients over workers, and before they are used.
            optimizer.register_step_pre_hook(
                lambda *_: self._clip(model, max_norm=settings.optimizer.max_grad_norm)
            )
        elif settings.stage == 0:
            _forget_first_step(self._optimizer)

    def _load(self, directory: Path) -> None:
        decays = [group["weight_decay"] for group in self._optimizer.param_groups]
        loaded, _ = self._engine.load_checkpoint(str(directory), tag="state")
        if loaded is None:
            raise TrainingError(f"the checkpoint in {directory} could not be loaded")
        # From a universal checkpoint DeepSpeed 0.19 gives, at stage 3, every group the settings of
        # the first, and all of Adam's states one step counter, which each of them then raises.
        for group, decay in zip(self._optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in _adam_states(self._optimizer):
            state["step"] = torch.clone(state["step"])

    def _clip(self, model: PreTrainedModel, *, max_norm: float) -> None:
        self._clipped_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    @property
    def module(self) -> PreTrainedModel:
        """The model as it is trained."""
        module: PreTrainedModel = self._engine.module
        return module

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        device: torch.device = self._engine.device
        return device

    def forward(self, **inputs: Any) -> Any:
        """The model's output; goes through DeepSpeed's hooks."""
        return self._engine(**inputs)

    def backward(self, loss_share: Tensor, rows: str) -> None:
        """Add one microbatch's gradient.

        Args:
            loss_share: This microbatch's share of the loss of the whole step, normalised by counts
                over all workers and microbatches, so that shares add up to the step's loss.
            rows: What it is of, for the message if it is not finite.
        """
        # DeepSpeed averages gradients over workers; shares add.
        self._engine.backward(loss_share * dist.get_world_size())
        if isinstance(self._optimizer, BF16_Optimizer):
            # DeepSpeed 0.19 has added these to the sums in fp32, and would again with the next
            # microbatch: it clears them by a hook on the forward's output, which finds no tensor
            # in a `ModelOutput`.
            self._optimizer.clear_lp_grads()
        self._losses.append((loss_share.detach(), rows))

    def step(self, learning_rate: float) -> float:
        """Take the optimizer step; returns the global gradient norm before clipping.

        Raises:
            TrainingError: A loss is not finite, on any rank: raised on every rank, and no weight
                has changed. Or the gradient's norm is not.
        """
        check_losses(self._losses)
        self._losses = []
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        found = self._engine.get_global_grad_norm()
        norm = float(self._clipped_norm if self._clipped_norm is not None else found)
        if not math.isfinite(norm):
            raise TrainingError(
                "the gradient norm is not finite; the last checkpoint is good: lower the learning "
                "rate and start in another run.dir"
            )
        return norm

    def save(self, directory: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint; every rank must call, each with a directory of its own."""
        self._engine.save_checkpoint(str(directory), tag="state")
        # The directories are merged into one: a file of this name from one rank alone.
        if dist.get_rank() == 0:
            write_state(directory, state, self._layout)

    def full_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All trained parameters in full, on CPU; empty on ranks other than 0. Every rank calls."""
        weights = own_weights(self.module)
        return gather([weight for weight in weights if weight.parts[0].requires_grad], dtype)

    def load_full_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `full_state` gave, for computing alone: a step would undo it.

        Every rank must call; rank 0's state counts.
        """
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            sharded = [parameter] if hasattr(parameter, "ds_id") else []
            with torch.no_grad(), GatheredParameters(sharded, modifier_rank=0):
                if dist.get_rank() == 0:
                    parameter.copy_(state[name])
                if not sharded:
                    dist.broadcast(parameter, src=0)

    def close(self) -> None:
        """Release the state, so that another engine can take its place. Of no use afterwards."""
        self._engine.destroy()
        del self._engine, self._optimizer
        # Or models loaded from here on would be sharded too.
        unset_hf_deepspeed_config()
        # DeepSpeed's hooks and the model refer to one another.
        gc.collect()
        trim_heap()


class FrozenModel:
    """A model without gradient or optimizer, such as the reference; sharded at ZeRO stage 3."""

    def __init__(self, load: Callable[[], PreTrainedModel], settings: ZeroSettings) -> None:
        """Load the model; every rank must construct at the same point."""
        config = deepspeed_config(settings)
        self._hf_config = HfDeepSpeedConfig(config) if settings.stage == 3 else None
        model = load().eval().requires_grad_(requires_grad=False)
        self._model: Any = model
        if settings.stage == 3:
            self._model, *_ = deepspeed.initialize(model=model, config=config)
        elif torch.cuda.is_available():
            self._model = model.to("cuda")

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        """The model's output."""
        return self._model(**inputs)

    def close(self) -> None:
        """Release the weights. Of no use afterwards."""
        if isinstance(self._model, deepspeed.DeepSpeedEngine):
            self._model.destroy()
        del self._model
        gc.collect()
        trim_heap()


def check_losses(losses: Sequence[tuple[Tensor, str]]) -> None:
    """Raise TrainingError on every rank if any loss on any rank is not finite.

    Args:
        losses: Of each microbatch since the last step, with what it is of.
    """
    values = torch.stack([loss.float().reshape(()) for loss, _ in losses])
    num_broken = (~torch.isfinite(values)).sum()
    dist.all_reduce(num_broken)
    if num_broken.item() == 0:
        return
    mine = [
        f"rank {dist.get_rank()} has {float(value)} in {rows}"
        for value, (_, rows) in zip(values, losses, strict=True)
        if not torch.isfinite(value)
    ]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    found = [message for messages in everyones for message in messages]
    raise TrainingError(
        f"the loss is not finite: {'; '.join(found[:_MAX_NAMED])}. Stopped before the optimizer "
        "step, and the last checkpoint is good: look at those rows, or lower the learning rate and "
        "start in another run.dir."
    )


def _adam_states(optimizer: Any) -> list[dict[str, Tensor]]:
    """The optimizer's state by parameter, where DeepSpeed has wrapped it or not."""
    adam = getattr(optimizer, "optimizer", optimizer)
    return [state for state in adam.state.values() if "step" in state]


def _forget_first_step(optimizer: Any) -> None:
    """Undo the step with which DeepSpeed makes optimizer state at stage 0 under bf16.

    Its gradients are zero, but it counts: Adam's bias correction would start one step late.
    """
    optimizer.optimizer.state.clear()
