"""A DeepSpeed engine around one optimizer step; the same result at every ZeRO stage."""

import gc
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig

from charactertrain.exceptions import TrainingError
from charactertrain.runtime.heap import trim_heap

_STATE_NAME = "charactertrain.json"

# On CPU DeepSpeed 0.19 compiles a kernel of its own at the first start, for ranks that share
# memory: 90 seconds (2 cores, 2026-11), and an error where there is no compiler. Gloo does as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True)
class ZeroSettings:
    """How the training state is spread and stepped."""

    stage: int
    offload: bool
    bf16: bool
    """Compute in bf16 with fp32 master weights; otherwise all in fp32."""
    microbatches: int
    """Forward and backward passes per worker and optimizer step."""
    weight_decay: float
    max_grad_norm: float


def deepspeed_config(settings: ZeroSettings) -> dict[str, Any]:
    """The settings as DeepSpeed reads them."""
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if settings.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        # Sequences are cut into microbatches by the caller; DeepSpeed only counts backwards.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.microbatches,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": settings.bf16},
        # In bf16 the sum over microbatches would depend on how many there are. DeepSpeed cannot do
        # this at stage 0.
        **({"data_types": {"grad_accum_dtype": "fp32"}} if settings.stage > 0 else {}),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


class ZeroEngine:
    """A model, its optimizer, and their state over all workers."""

    def __init__(self, load: Callable[[], PreTrainedModel], settings: ZeroSettings) -> None:
        """Load the model and spread it; every rank must construct at the same point."""
        config = deepspeed_config(settings)
        # transformers looks for this object while it loads, to shard weights as they come.
        self._hf_config = HfDeepSpeedConfig(config) if settings.stage == 3 else None
        model = load()
        optimizer = torch.optim.AdamW(
            _decay_groups(model, settings.weight_decay),
            lr=0.0,
            betas=(0.9, 0.95),
            # ZeRO flattens a group into one tensor, of which unfused Adam makes several copies.
            fused=True,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config
        )
        if settings.stage == 0 and settings.bf16:
            _forget_first_step(self._optimizer)
        self._layout = {
            "workers": dist.get_world_size(),
            "ZeRO stage": settings.stage,
            "precision": "bf16" if settings.bf16 else "fp32",
        }
        self._microbatches = settings.microbatches
        self._pending = 0

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

    def backward(self, loss_share: Tensor) -> None:
        """Add one microbatch's gradient.

        Args:
            loss_share: This microbatch's share of the loss of the whole step, normalised by counts
                over all workers and microbatches, so that shares add up to the step's loss.
        """
        # DeepSpeed averages gradients over workers and divides by the microbatches; shares add.
        self._check_finite(loss_share)
        self._engine.backward(loss_share * (dist.get_world_size() * self._microbatches))
        self._pending += 1
        if self._pending < self._microbatches:
            self._engine.step()

    def _check_finite(self, loss_share: Tensor) -> None:
        """Raise on every rank if any rank's loss is not finite, before anything is stepped."""
        broken = torch.tensor([0.0 if bool(torch.isfinite(loss_share)) else 1.0])
        broken = broken.to(self.device)
        dist.all_reduce(broken, op=dist.ReduceOp.MAX)
        if broken.item() > 0:
            raise TrainingError(
                f"the loss is not finite in microbatch {self._pending} (rank {dist.get_rank()} has "
                f"{float(loss_share)}); stopped before the optimizer step. The last checkpoint is "
                "good: lower the learning rate and start in another run.dir."
            )

    def step(self, learning_rate: float) -> float:
        """Take the optimizer step; returns the global gradient norm before clipping."""
        assert self._pending == self._microbatches, (
            f"{self._pending} of {self._microbatches} microbatches were added"
        )
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        # DeepSpeed keeps no norm where gradients are whole and in fp32: ZeRO stage 0.
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        whole_norm = torch.nn.utils.get_total_norm(gradients)
        self._engine.step()
        self._pending = 0
        found = self._engine.get_global_grad_norm()
        norm = float(whole_norm if found is None else found)
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
            state = {**state, "layout": self._layout}
            (directory / _STATE_NAME).write_text(json.dumps(state))

    def load(self, directory: Path) -> None:
        """Take up a checkpoint; raises TrainingError if it was written in another layout."""
        found = read_state(directory)["layout"]
        if found != self._layout:
            raise TrainingError(
                f"the checkpoint was written with {_spelled(found)}, and training goes on with "
                f"{_spelled(self._layout)}. Give the same cluster.num_workers, deepspeed stage and "
                "model.precision as before, or move the stage's directory away to start it anew."
            )
        loaded, _ = self._engine.load_checkpoint(str(directory), tag="state")
        if loaded is None:
            raise TrainingError(f"the checkpoint in {directory} could not be loaded")

    def full_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All parameters in full, on CPU; empty on ranks other than 0. Every rank must call."""
        state = {}
        for name, tensor in iter_full_parameters(self.module, dtype):
            if dist.get_rank() == 0:
                state[name] = tensor.cpu()
        return state

    def close(self) -> None:
        """Release the state, so that another engine can take its place. Of no use afterwards."""
        self._engine.destroy()
        del self._engine, self._optimizer
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


def read_state(directory: Path) -> dict[str, Any]:
    """What `ZeroEngine.save` was given as `state`."""
    state: dict[str, Any] = json.loads((directory / _STATE_NAME).read_text())
    return state


def _spelled(layout: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in layout.items())


def _forget_first_step(optimizer: Any) -> None:
    """Undo the step with which DeepSpeed makes optimizer state at stage 0 under bf16.

    Its gradients are zero, but it counts: Adam's bias correction would start one step late.
    """
    optimizer.optimizer.state.clear()


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        # Under ZeRO-3 a parameter's own shape is that of its shard.
        num_dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        (decayed if num_dimensions > 1 else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def iter_full_parameters(module: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full copy in `dtype`) in module order.

    Every rank must iterate to the end: gathering is a collective. Copies, since a view of a
    gathered parameter does not outlive the gather.
    """
    for name, parameter in module.named_parameters():
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with GatheredParameters(sharded):
            tensor = parameter.detach().to(dtype, copy=True).contiguous()
        yield name, tensor
