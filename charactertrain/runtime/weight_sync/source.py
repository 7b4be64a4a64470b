"""The trainer's weights as vLLM's `WeightSource`, whatever ZeRO stage holds them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from charactertrain.runtime.weights import Weight, help_gather, iter_full, lend_full


class ZeroWeightSource(WeightSource):
    """Full weights in the order given. Every rank must iterate: gathering is a collective."""

    def __init__(self, weights: Sequence[Weight], dtype: torch.dtype) -> None:
        """Send `weights` as `dtype`, under the names that the engine's model has for them."""
        self._weights, self._dtype = weights, dtype

    def metadata(self) -> list[ParamMeta]:
        """Names, wire dtype and full shapes, without a gather."""
        return [ParamMeta(weight.name, self._dtype, weight.shape) for weight in self._weights]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, full tensor) in the order of `metadata`."""
        return iter_full(self._weights, self._dtype)

    def lent(self) -> Iterator[tuple[str, Tensor]]:
        """The same, in the trainer's dtype; a tensor is of use until the next one is asked for."""
        return lend_full(self._weights)

    def help_lend(self) -> None:
        """What the ranks do that send nothing, while one goes through what is `lent`."""
        help_gather(self._weights)
