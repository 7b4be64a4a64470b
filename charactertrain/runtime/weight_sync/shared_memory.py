"""A weight-transfer backend for engines on the trainer's own machine, without a GPU.

Trainer and engines map one segment of shared memory that has room for all weights. The trainer
writes it part by part; while it writes the next, the engines compare a part's checksum with the
trainer's and load it. Both ends run vLLM's protocol.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self
from uuid import uuid4

import torch
import xxhash
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
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
from charactertrain.runtime.weight_sync.source import ZeroWeightSource
from charactertrain.runtime.weight_sync.worker_extension import repack_tied_head

_PART_BYTES = 64 * 2**20
_ALIGNMENT = 64
"""Bytes: a cache line, and more than any dtype wants."""


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """The segment, and where in it each weight stands."""

    path: str
    memory: str
    """Its name, which no other memory has."""
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """Weights that stand next to one another, `first` to `last` - 1, and are written."""

    first: int
    last: int
    checksum: str


class Segment:
    """The shared memory, as the tensors that it has room for."""

    def __init__(self, path: str, metadata: Sequence[ParamMeta]) -> None:
        """Map what is at `path`, which is large enough."""
        self._offsets = _offsets(metadata)
        self._bytes = torch.from_file(path, shared=True, size=self._offsets[-1], dtype=torch.uint8)
        self.tensors: list[Tensor] = []
        for meta, offset in zip(metadata, self._offsets, strict=False):
            size = meta.dtype.itemsize * torch.Size(meta.shape).numel()
            flat = self._bytes[offset : offset + size]
            self.tensors.append(flat.view(meta.dtype).view(meta.shape))

    def checksum(self, first: int, last: int) -> str:
        """xxh3-128 of the weights `first` to `last` - 1, in hexadecimal."""
        part = self._bytes[self._offsets[first] : self._offsets[last]]
        return xxhash.xxh3_128_hexdigest(part.numpy().data)

    def parts(self, num_bytes: int) -> Iterator[tuple[int, int]]:
        """All weights as (first, last + 1), each about `num_bytes` long, and none empty."""
        first = 0
        for place in range(1, len(self._offsets)):
            if self._offsets[place] - self._offsets[first] >= num_bytes:
                yield first, place
                first = place
        if first < len(self.tensors):
            yield first, len(self.tensors)


def _offsets(metadata: Sequence[ParamMeta]) -> list[int]:
    """Where each weight begins, and where the last one ends."""
    offsets = [0]
    for meta in metadata:
        end = offsets[-1] + meta.dtype.itemsize * torch.Size(meta.shape).numel()
        offsets.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
    return offsets


class SharedMemoryEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """The engine's end: maps, verifies and loads."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """Map the trainer's segment."""
        path = Path(init_info.path)
        found = str(path.readlink()) if path.is_symlink() else "nothing"
        if init_info.memory not in found:
            raise SamplingError(
                f"weights come through shared memory: expected {init_info.memory} at {path} on "
                f"{socket.gethostname()}, found {found}. Without GPUs, engines must run on the "
                "machine of the first training worker, in the same container."
            )
        self._names = init_info.names
        self._segment = Segment(
            str(path),
            [
                ParamMeta(name, getattr(torch, dtype), tuple(shape))
                for name, dtype, shape in zip(
                    init_info.names, init_info.dtypes, init_info.shapes, strict=True
                )
            ],
        )

    def start_weight_update(self) -> None:
        """Prepare to reload layer by layer; weights were repacked when the engine started."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one part. The base class's version synchronises an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        """Load one part; raises SamplingError if it is not what the trainer wrote.

        vLLM keeps what it is given until a layer is whole, so the trainer writes over no part
        before the update is finished.
        """
        first, last = update_info.first, update_info.last
        found = self._segment.checksum(first, last)
        if found != update_info.checksum:
            raise SamplingError(
                f"weights {self._names[first]} to {self._names[last - 1]}: the engine reads "
                f"checksum {found}, the trainer wrote {update_info.checksum}; the engine's weights "
                "are no longer known"
            )
        tensors = self._segment.tensors[first:last]
        self.model.load_weights(zip(self._names[first:last], tensors, strict=True))

    def finish_weight_update(self) -> None:
        """Bring what was loaded into the layout that the kernels want."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Let go of the segment."""
        self._segment = None  # type: ignore[assignment]


@dataclass
class SharedMemoryTrainerInitInfo(TrainerInitInfo):
    """What the trainer's end needs."""

    backend: ClassVar[str] = "charactertrain_shared_memory"
    part_bytes: int = field(default=_PART_BYTES, kw_only=True)


class SharedMemoryTrainerEngine(TrainerWeightTransferEngine[SharedMemoryTrainerInitInfo]):
    """The trainer's end: writes, and drives the four phases."""

    init_info_cls = SharedMemoryTrainerInitInfo

    def __init__(
        self,
        *,
        client: VLLMWeightSyncClient,
        source: ZeroWeightSource,
        is_sender: bool,
        part_bytes: int,
    ) -> None:
        """Send `source` through `client`; only the sender touches the client."""
        super().__init__(client=client, source=source, is_sender=is_sender)
        self._weights = source
        self._part_bytes = part_bytes
        if is_sender:
            self._segment = self._shared()

    @classmethod
    def trainer_init(
        cls,
        init_info: SharedMemoryTrainerInitInfo,
        *,
        client: VLLMWeightSyncClient,
        source: WeightSource | None = None,
    ) -> Self:
        """First phase, on every rank."""
        assert isinstance(source, ZeroWeightSource), "what this backend can send"
        return cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            part_bytes=init_info.part_bytes,
        )

    def _shared(self) -> Segment:
        """The segment, when the engines have mapped it too."""
        metadata = self._weights.metadata()
        # In no directory: without limit but that of memory, and gone with those who map it. It
        # takes up memory as it is written, when engines have let the one before it go.
        name = f"charactertrain-{uuid4().hex}"
        descriptor = os.memfd_create(name)
        try:
            os.ftruncate(descriptor, _offsets(metadata)[-1])
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            segment = Segment(path, metadata)
            info = SharedMemoryInitInfo(
                path=path,
                memory=name,
                names=[meta.name for meta in metadata],
                dtypes=[str(meta.dtype).removeprefix("torch.") for meta in metadata],
                shapes=[list(meta.shape) for meta in metadata],
            )
            self.client.init_weight_transfer_engine(asdict(info))
        finally:
            # Those who have mapped it keep it.
            os.close(descriptor)
        return segment

    def send_weights(self) -> None:
        """Phases two to four. Every rank must call: the source gathers across ranks."""
        if not self.is_sender:
            self._weights.help_lend()
            return
        weights = self._weights.lent()
        self.client.start_weight_update()
        with ThreadPoolExecutor(1, thread_name_prefix="weight-update") as loader:
            loading: Future[None] | None = None
            for first, last in self._segment.parts(self._part_bytes):
                for tensor in self._segment.tensors[first:last]:
                    tensor.copy_(next(weights)[1])
                info = SharedMemoryUpdateInfo(first, last, self._segment.checksum(first, last))
                if loading is not None:
                    loading.result()
                loading = loader.submit(self.client.update_weights, asdict(info))
            # Ends the last gather.
            left = next(weights, None)
            assert left is None, "the segment has room for every weight"
            assert loading is not None, "a model has weights"
            loading.result()
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        """Let go of the segment."""
        if self.is_sender:
            del self._segment
