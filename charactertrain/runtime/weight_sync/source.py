"""The trainer's parameters as vLLM's `WeightSource`, whatever ZeRO stage holds them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from charactertrain.runtime.zero import iter_full_parameters, lend_full_parameters


class ZeroWeightSource(WeightSource):
    """Full parameters in module order. Every rank must iterate: gathering is a collective."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        """Send `module`'s parameters as `dtype`."""
        self._module, self._dtype = module, dtype

    def metadata(self) -> list[ParamMeta]:
        """Names, wire dtype and full shapes, without a gather."""
        return [
            # Under ZeRO-3 a parameter's own shape is that of its local shard, often 0.
            ParamMeta(name, self._dtype, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in self._module.named_parameters()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full tensor) in the order of `metadata`."""
        return iter_full_parameters(self._module, self._dtype)

    def lent(self) -> Iterator[tuple[str, Tensor]]:
        """The same, in the trainer's dtype; a tensor is of use until the next one is asked for."""
        return lend_full_parameters(self._module)
