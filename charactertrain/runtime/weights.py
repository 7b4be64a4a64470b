"""A model's weights in full, whatever ZeRO stage holds what they are made of."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn

_GATHERED_BYTES = 256 * 2**20
"""Of whole parameters that ZeRO-3 holds at a time, to send or save them."""


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

    @property
    def num_bytes(self) -> int:
        """Of the parts, when they are whole."""
        return sum(
            getattr(part, "ds_numel", part.numel()) * part.element_size() for part in self.parts
        )


def own_weights(module: nn.Module) -> list[Weight]:
    """The module's parameters as they are."""
    return [
        Weight(name, (parameter,), lambda itself: itself)
        for name, parameter in module.named_parameters()
    ]


def lend_full(weights: Iterable[Weight]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full weight); of use until the next one is asked for.

    Every rank must iterate to the end, or `help_gather`: gathering is a collective. What weights
    are made of is gathered several at a time, as many as make up `_GATHERED_BYTES`.
    """
    for group in _groups(weights):
        with _gathered(group):
            for weight in group:
                yield weight.name, weight.compose(*(part.detach() for part in weight.parts))


def help_gather(weights: Iterable[Weight]) -> None:
    """What ranks that want no weights do while others iterate: take part in the gathers."""
    for group in _groups(weights):
        with _gathered(group):
            pass


def _groups(weights: Iterable[Weight]) -> Iterator[list[Weight]]:
    group: list[Weight] = []
    size = 0
    for weight in weights:
        if group and size + weight.num_bytes > _GATHERED_BYTES:
            yield group
            group, size = [], 0
        group.append(weight)
        size += weight.num_bytes
    yield group


def _gathered(group: Sequence[Weight]) -> GatheredParameters:
    return GatheredParameters(
        [part for weight in group for part in weight.parts if hasattr(part, "ds_id")]
    )


def iter_full(weights: Iterable[Weight], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, full copy in `dtype`), as `lend_full` gathers them.

    Copies, since a view of a gathered parameter does not outlive the gather.
    """
    for name, whole in lend_full(weights):
        yield name, whole.to(dtype, copy=True).contiguous()


def gather(weights: Iterable[Weight], dtype: torch.dtype) -> dict[str, Tensor]:
    """All of them on CPU; empty on ranks other than 0. Every rank must call."""
    if dist.get_rank() != 0:
        help_gather(weights)
        return {}
    return {name: tensor.cpu() for name, tensor in iter_full(weights, dtype)}
