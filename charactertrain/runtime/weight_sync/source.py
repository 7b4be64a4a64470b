"""The trainer's parameters as vLLM's `WeightSource`, whatever ZeRO stage holds them."""

from collections.abc import Iterator

import torch
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource


class ZeroWeightSource(WeightSource):
    """Full parameters in module order, gathered one layer at a time.

    Every rank must iterate: gathering is a collective. Tensors are copies, since views of a
    gathered parameter do not outlive the gather.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Send `module`'s parameters as `dtype`."""
        self._parameters = dict(module.named_parameters())
        self._dtype = dtype

    def metadata(self) -> list[ParamMeta]:
        """Names, wire dtype and full shapes, without a gather."""
        return [
            # Under ZeRO-3 a parameter's own shape is that of its local shard, often 0.
            ParamMeta(name, self._dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in self._parameters.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full tensor) in the order of `metadata`."""
        for names in self.groups():
            parameters = [self._parameters[name] for name in names]
            sharded = [p for p in parameters if hasattr(p, "ds_id")]
            with GatheredParameters(sharded):
                tensors = [p.detach().to(self._dtype, copy=True).contiguous() for p in parameters]
            yield from zip(names, tensors, strict=True)
