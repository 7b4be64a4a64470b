"""VLLM's own transports between GPUs, with checksums of what arrives.

NCCL's broadcast between devices of their own, CUDA IPC on a device that trainer and engine share.
The wire is vLLM's: its trainer ends are used as they are.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from charactertrain.runtime.weight_sync.checksums import Summed, Sums

_TYPES = {0: torch.Tensor, 4: torch.storage.TypedStorage, 5: torch.uint8}
"""Places of the types among the arguments that open the packed buffer, which is of bytes."""
_SIZES = (1, 2)
"""Places of its size and stride."""


def plain_handles(handles: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """Handles of a packed buffer, by device, without the types that vLLM's messages cannot hold.

    vLLM would pickle them, and have its engine unpickle whatever it is sent.
    """
    for handle in handles.values():
        found = {place: handle[place] for place in _TYPES}
        assert found == _TYPES, f"a packed buffer of vLLM's is a tensor of bytes, found {found}"
    return {
        device: tuple(None if place in _TYPES else part for place, part in enumerate(handle))
        for device, handle in handles.items()
    }


def opened_handles(handles: dict[str, list[Any]]) -> dict[str, tuple[Any, ...]]:
    """Those handles again, after a message, which makes lists of tuples."""
    return {
        device: tuple(
            _TYPES.get(place, tuple(part) if place in _SIZES else part)
            for place, part in enumerate(handle)
        )
        for device, handle in handles.items()
    }


class _SummingModel:
    """A model that keeps the checksums of the weights that it loads."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.summed = Summed()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        return self._model.load_weights(self.summed.passed(weights))


class _Summing:
    """What the checksums add to an engine of vLLM's, whose methods come after these."""

    model: Any

    def start_weight_update(self) -> None:
        """Prepare to reload layer by layer."""
        super().start_weight_update()  # type: ignore[misc]
        self._summing = _SummingModel(self.model)

    def receive_weights(self, update_info: Any) -> None:
        """Receive, sum and load."""
        model, self.model = self.model, self._summing
        try:
            super().receive_weights(update_info)  # type: ignore[misc]
        finally:
            self.model = model

    def received_sums(self) -> Sums:
        """Of the update's weights so far."""
        return self._summing.summed.sums()


class SummingNcclEngine(_Summing, NCCLWeightTransferEngine):
    """Receives by NCCL's broadcast."""


class SummingIpcEngine(_Summing, IPCWeightTransferEngine):
    """Reads the trainer's buffer on the device that both are on."""

    def parse_update_info(self, update_dict: dict[str, Any]) -> IPCWeightTransferUpdateInfo:
        """With the handles as torch wants them."""
        handles = opened_handles(update_dict["ipc_handles"])
        info: IPCWeightTransferUpdateInfo = super().parse_update_info(
            update_dict | {"ipc_handles": handles}
        )
        return info
