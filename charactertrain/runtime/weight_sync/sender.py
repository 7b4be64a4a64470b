"""Sending the trainer's weights to engines, versioned, with a bound on the wait."""

import os
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    WeightSource,
    WeightTransferInitRequest,
    WeightTransferUpdatePayload,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.utils.network_utils import get_ip, get_open_port

from charactertrain.exceptions import SamplingError, TrainingError
from charactertrain.runtime.engine_spec import EngineSpec
from charactertrain.runtime.heap import trim_heap
from charactertrain.runtime.weight_sync import register
from charactertrain.runtime.weight_sync.checksums import Summed, SummedSource, Sums, differing
from charactertrain.runtime.weight_sync.devices import plain_handles
from charactertrain.runtime.weight_sync.shared_memory import SharedMemoryTrainerInitInfo
from charactertrain.runtime.weight_sync.source import ZeroWeightSource
from charactertrain.runtime.weights import Weight

_TIMEOUT_SECONDS = 600.0
_IPC_BYTES = 512 * 2**20
"""Of a device that trainer and engine share, for the weights on their way."""


class EngineClient:
    """The four phases on a list of engine actors; never waits for ever."""

    def __init__(
        self, engines: list[Any], *, ranks_per_engine: int = 1, summed: Summed | None = None
    ) -> None:
        """Drive all `engines` as one.

        Args:
            engines: Handles of the actors.
            ranks_per_engine: Devices of each.
            summed: Checksums of what is sent, where engines are to be asked for theirs.
        """
        self._engines = engines
        self._ranks_per_engine = ranks_per_engine
        self._summed = summed
        self.version = "0"
        """The name that the next finished update gives the weights."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Rendezvous; in a group of ranks, each engine has its own after those before it."""
        infos = [dict(init_info) for _ in self._engines]
        if "rank_offset" in init_info:
            for place, info in enumerate(infos):
                info["rank_offset"] += place * self._ranks_per_engine
        self._each(
            "init_weight_transfer_engine",
            [(WeightTransferInitRequest(init_info=info),) for info in infos],
        )

    def start_weight_update(self) -> None:
        """Requests wait where they are from here on."""
        self._all("start_weight_update")

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Receive and load."""
        is_broadcast = torch.cuda.is_available()
        if isinstance(update_info, dict) and "ipc_handles" in update_info:
            handles = plain_handles(update_info["ipc_handles"])
            update_info = update_info | {"ipc_handles": handles}
            is_broadcast = False
        try:
            self._all("update_weights", WeightTransferUpdateRequest(update_info=update_info))
        except Exception:
            if not is_broadcast:
                raise
            # Called beside NCCL's broadcast, which waits for the engines for ever. Ray Train
            # starts the workers again, from the last checkpoint.
            traceback.print_exc()
            os._exit(1)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make the new weights count, under the version's name, if they are those that were sent.

        Raises:
            SamplingError: They are not.
        """
        if self._summed is not None:
            self._compare(self._summed.sums())
        self._all("finish_weight_update", weight_version or self.version)

    def _compare(self, sent: Sums) -> None:
        for place, ranks in enumerate(self._all("received_sums")):
            for rank, received in enumerate(ranks):
                name = differing(sent, received)
                if name is not None:
                    raise SamplingError(
                        f"weight update {self.version}: {name} has checksum {received.get(name)} "
                        f"on rank {rank} of engine {place}, and the trainer sent {sent.get(name)}; "
                        "the engine's weights are no longer known"
                    )

    def _all(self, phase: str, *arguments: Any) -> list[Any]:
        return self._each(phase, [arguments] * len(self._engines))

    def _each(self, phase: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        calls = [
            getattr(engine, phase).remote(*own)
            for engine, own in zip(self._engines, arguments, strict=True)
        ]
        try:
            answers: list[Any] = ray.get(calls, timeout=_TIMEOUT_SECONDS)
            return answers
        except GetTimeoutError as error:
            raise SamplingError(
                f"weight update {self.version}: {phase} took longer than {_TIMEOUT_SECONDS:.0f} s "
                f"on {len(self._engines)} engines; the engines' weights are not known"
            ) from error


class WeightSender:
    """Sends a model's weights to engines after each step. Used on every rank."""

    def __init__(
        self,
        weights: Sequence[Weight],
        engines: list[Any],
        spec: EngineSpec,
        *,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        """Meet the engines.

        Args:
            weights: Of the model.
            engines: Handles, on rank 0; none elsewhere.
            spec: What each of them was started with.
            rank: This process's.
            dtype: In which weights are sent.
        """
        register()
        source: WeightSource = ZeroWeightSource(weights, dtype)
        summed = None
        if torch.cuda.is_available() and rank == 0:
            # Shared memory is summed part by part, by the transport itself.
            source = SummedSource(source)
            summed = source.summed
        self._client = EngineClient(
            engines, ranks_per_engine=spec.tensor_parallel_size, summed=summed
        )
        self._engine = WeightTransferTrainerFactory.trainer_init(
            _init_info(source, rank, len(engines), spec), client=self._client, source=source
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


def _init_info(
    source: WeightSource, rank: int, num_engines: int, spec: EngineSpec
) -> TrainerInitInfo:
    if not torch.cuda.is_available():
        return SharedMemoryTrainerInitInfo(rank=rank)
    if spec.beside is not None:
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        _check_allocator(os.environ)
        # vLLM's buffer has to hold any weight whole.
        largest = max(torch.Size(w.shape).numel() * w.dtype.itemsize for w in source.metadata())
        return IPCTrainerInitInfo(
            packed=True, packed_buffer_size_bytes=max(_IPC_BYTES, largest), rank=rank
        )
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    return NCCLTrainerInitInfo(
        master_address=get_ip(),
        master_port=get_open_port(),
        world_size=1 + num_engines * spec.tensor_parallel_size,
        packed=True,
        rank=rank,
    )


def _check_allocator(environment: Mapping[str, str]) -> None:
    # The second is torch's older name.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        if "expandable_segments:True" in environment.get(name, ""):
            raise TrainingError(
                f"{name} is {environment[name]!r}, and engines on the workers' GPUs cannot open "
                "memory of expandable segments; leave them out, or give "
                "placement@policy.resources=separate"
            )
