"""A model's weights in full, whatever ZeRO stage holds what they are made of."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn


@dataclass(frozen=True)
class Weight:
    """One weight of the model as it is sent and written."""

    name: str
    parts: tuple[nn.Parameter, ...]
    """Parameters that it is made of; the first has its shape."""
    compose: Callable[..., Tensor]
    """Makes it of the parts, when they are whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Without a gather."""
        # Under ZeRO-3 a parameter's own shape is that of its local shard, often 0.
        return tuple(getattr(self.parts[0], "ds_shape", self.parts[0].shape))


def own_weights(module: nn.Module) -> list[Weight]:
    """The module's parameters as they are."""
    return [
        Weight(name, (parameter,), lambda itself: itself)
        for name, parameter in module.named_parameters()
    ]


def iter_full(weights: Iterable[Weight], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full copy in `dtype`).

    Every rank must iterate to the end: gathering is a collective. Copies, since a view of a
    gathered parameter does not outlive the gather.
    """
    for weight in weights:
        sharded = [part for part in weight.parts if hasattr(part, "ds_id")]
        with torch.no_grad(), GatheredParameters(sharded):
            whole = weight.compose(*(part.detach() for part in weight.parts))
            tensor = whole.to(dtype, copy=True).contiguous()
        yield weight.name, tensor


def gather(weights: Iterable[Weight], dtype: torch.dtype) -> dict[str, Tensor]:
    """All of them on CPU; empty on ranks other than 0. Every rank must call."""
    state = {}
    for name, tensor in iter_full(weights, dtype):
        if dist.get_rank() == 0:
            state[name] = tensor.cpu()
    return state
