"""Sending the trainer's weights to engines, versioned, with a bound on the wait."""

import os
import traceback
from collections.abc import Sequence
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdatePayload,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.utils.network_utils import get_ip, get_open_port

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.heap import trim_heap
from charactertrain.runtime.weight_sync import register
from charactertrain.runtime.weight_sync.shared_memory import SharedMemoryTrainerInitInfo
from charactertrain.runtime.weight_sync.source import ZeroWeightSource
from charactertrain.runtime.weights import Weight

_TIMEOUT_SECONDS = 600.0


class EngineClient:
    """The four phases on a list of engine actors; never waits for ever."""

    def __init__(self, engines: list[Any]) -> None:
        """Drive all `engines` as one."""
        self._engines = engines
        self.version = "0"
        """The name that the next finished update gives the weights."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Rendezvous."""
        self._all("init_weight_transfer_engine", WeightTransferInitRequest(init_info=init_info))

    def start_weight_update(self) -> None:
        """Requests wait where they are from here on."""
        self._all("start_weight_update")

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Receive and load."""
        try:
            self._all("update_weights", WeightTransferUpdateRequest(update_info=update_info))
        except Exception:
            if not torch.cuda.is_available():
                raise
            # Called beside NCCL's broadcast, which waits for the engines for ever. Ray Train
            # starts the workers again, from the last checkpoint.
            traceback.print_exc()
            os._exit(1)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make the new weights count, under the version's name."""
        self._all("finish_weight_update", weight_version or self.version)

    def _all(self, phase: str, *arguments: Any) -> None:
        calls = [getattr(engine, phase).remote(*arguments) for engine in self._engines]
        try:
            ray.get(calls, timeout=_TIMEOUT_SECONDS)
        except GetTimeoutError as error:
            raise SamplingError(
                f"weight update {self.version}: {phase} took longer than {_TIMEOUT_SECONDS:.0f} s "
                f"on {len(self._engines)} engines; the engines' weights are not known"
            ) from error


class WeightSender:
    """Sends a model's weights to engines after each step. Used on every rank."""

    def __init__(
        self, weights: Sequence[Weight], engines: list[Any], *, rank: int, dtype: torch.dtype
    ) -> None:
        """Meet the engines; on rank 0 `engines` are handles, elsewhere the list is empty."""
        register()
        self._client = EngineClient(engines)
        source = ZeroWeightSource(weights, dtype)
        self._engine = WeightTransferTrainerFactory.trainer_init(
            _init_info(rank, len(engines)), client=self._client, source=source
        )

    def send(self, version: str) -> None:
        """Send the weights as they are now under the name `version`."""
        self._client.version = version
        self._engine.send_weights()
        # Or the step's activations stay while engines sample: 1 of 4 GiB on a CPU (2026-11).
        trim_heap()

    def close(self) -> None:
        """Release what the transport holds."""
        self._engine.shutdown()


def _init_info(rank: int, num_engines: int) -> TrainerInitInfo:
    if not torch.cuda.is_available():
        return SharedMemoryTrainerInitInfo(rank=rank)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    # Engines of one tensor-parallel rank each: larger ones are not wired up yet at this layer,
    # and config refuses them together with a policy stage.
    return NCCLTrainerInitInfo(
        master_address=get_ip(),
        master_port=get_open_port(),
        world_size=1 + num_engines,
        packed=True,
        rank=rank,
    )
