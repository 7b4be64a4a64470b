"""A weight-transfer backend for engines on the trainer's own machine, without a GPU.

The trainer packs tensors into buffers of bounded size in shared memory; the engine maps each
buffer, compares its checksum with the trainer's, and loads it. Both ends run vLLM's protocol.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.weight_sync.worker_extension import repack_tied_head

_BUFFER_BYTES = 256 * 2**20
_CHUNK_BYTES = 16 * 2**20


def checksum(path: Path) -> str:
    """xxh3-128 of a file, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: buffers describe themselves."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """One packed buffer."""

    path: str
    checksum: str
    names: list[str]


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """The engine's end: maps, verifies and loads buffers."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Shared memory needs no rendezvous."""

    def start_weight_update(self) -> None:
        """Prepare to reload layer by layer; weights were repacked when the engine started."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one buffer. The base class's version synchronises an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Load one buffer; raises SamplingError if it is not what the trainer wrote."""
        path = Path(update_info.path)
        found = checksum(path)
        if found != update_info.checksum:
            raise SamplingError(
                f"weight buffer {path.name}: the engine reads checksum {found}, the trainer wrote "
                f"{update_info.checksum}; the engine's weights are no longer known"
            )
        tensors = load_file(path)
        missing = set(update_info.names) - tensors.keys()
        if missing:
            raise SamplingError(f"weight buffer {path.name} lacks {sorted(missing)[:5]}")
        self.model.load_weights(iter(tensors.items()))

    def finish_weight_update(self) -> None:
        """Bring what was loaded into the layout that the kernels want."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing is held."""


@dataclass
class SharedMemoryTrainerInitInfo(TrainerInitInfo):
    """What the trainer's end needs."""

    backend: ClassVar[str] = "charactertrain_shared_memory"
    buffer_bytes: int = field(default=_BUFFER_BYTES, kw_only=True)


class SharedMemoryTrainerEngine(TrainerWeightTransferEngine[SharedMemoryTrainerInitInfo]):
    """The trainer's end: packs and writes buffers, and drives the four phases."""

    init_info_cls = SharedMemoryTrainerInitInfo

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource,
        is_sender: bool,
        buffer_bytes: int,
    ) -> None:
        """Send `source` through `client`; only the sender touches the client."""
        super().__init__(client=client, source=source, is_sender=is_sender)
        self._weights = source
        self._buffer_bytes = buffer_bytes

    @classmethod
    def trainer_init(
        cls,
        init_info: SharedMemoryTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        """First phase, on every rank."""
        assert source is not None, "the shared-memory backend sends a WeightSource"
        engine = cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            buffer_bytes=init_info.buffer_bytes,
        )
        if engine.is_sender:
            client.init_weight_transfer_engine(asdict(SharedMemoryInitInfo()))
        return engine

    def send_weights(self) -> None:
        """Phases two to four. Every rank must call: the source gathers across ranks."""
        if not self.is_sender:
            for _ in self._weights:
                pass
            return
        self.client.start_weight_update()
        for buffer in self._buffers():
            self._send(buffer)
        self.client.finish_weight_update()

    def _buffers(self) -> Iterator[dict[str, Tensor]]:
        buffer: dict[str, Tensor] = {}
        size = 0
        for name, tensor in self._weights:
            num_bytes = tensor.numel() * tensor.element_size()
            if buffer and size + num_bytes > self._buffer_bytes:
                yield buffer
                buffer, size = {}, 0
            buffer[name] = tensor
            size += num_bytes
        yield buffer

    def _send(self, buffer: dict[str, Tensor]) -> None:
        shared = Path("/dev/shm")
        directory = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
        descriptor, name = tempfile.mkstemp(prefix="charactertrain-", dir=directory)
        os.close(descriptor)
        path = Path(name)
        try:
            save_file(buffer, path)
            info = SharedMemoryUpdateInfo(str(path), checksum(path), list(buffer))
            self.client.update_weights(asdict(info))
        finally:
            path.unlink(missing_ok=True)
