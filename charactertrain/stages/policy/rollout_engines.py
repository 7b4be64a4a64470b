"""Rank 0's end of sampling: the engines that take the weights, and the buffer before them."""

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError

from charactertrain.exceptions import SamplingError
from charactertrain.records import Prompt
from charactertrain.runtime.engines import EngineSource, LeasedSampler, start_all
from charactertrain.runtime.placement import own_device
from charactertrain.stages.policy.rollout_buffer import Taken
from charactertrain.stages.policy.rollouts import HeldOut, Version

Answer = TypeVar("Answer")
_POLL_SECONDS = (0.005, 0.25)
"""At first, and at most."""
_TIMEOUT_SECONDS = 600.0
"""Of an engine that is alive and does not answer."""
_MAX_LOSSES = 8
"""Engines of an attempt that are replaced; then the cause is another."""


@dataclass(frozen=True)
class Sampling:
    """Where rank 0 gets its rollouts."""

    engines: EngineSource
    num_engines: int
    buffer: Any
    """The actor."""
    is_colocated: bool
    """Whether engines are on the workers' own devices."""

    def sources(self) -> list[EngineSource]:
        """Of each engine that samples; every rank must call."""
        if not self.is_colocated:
            return [self.engines] * self.num_engines
        # Of a warm start.
        leave_room()
        devices: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(devices, own_device())
        return [self.engines.beside(device) for device in devices[: self.num_engines]]


def leave_room() -> None:
    """Give memory that is free, and that torch keeps for later, to the engine on this device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class RolloutEngines:
    """Leases of engines, and calls to the buffer, none of which waits there."""

    def __init__(
        self, sources: Sequence[EngineSource], buffer: Any, state: dict[str, Any] | None
    ) -> None:
        """Lease the engines of this attempt; one that died in the last one is replaced.

        Args:
            sources: Of the engines that sample, one of each.
            buffer: The actor.
            state: The buffer's, of the last checkpoint.
        """
        # Before their engines are stopped, which it would replace.
        ray.get(buffer.rest.remote())
        sources[0].end_leases()
        # At the same time, on whatever devices.
        start_all(sources)
        self._samplers: list[LeasedSampler | None] = [s.open_for_training() for s in sources]
        self._buffer = buffer
        self._losses = 0
        # After those: an engine measures what a device has left as it starts.
        devices = [source.spec.beside for source in sources if source.spec.beside is not None]
        ray.get(buffer.begin.remote(state, devices))
        _until(lambda: ray.get(buffer.has_begun.remote()) or None)

    @property
    def handles(self) -> list[Any]:
        """Of the engines that live."""
        return [sampler.handle for sampler in self._samplers if sampler is not None]

    def serve(self, version: Version) -> None:
        """All engines have these weights: the buffer may have them sample."""
        places = [None if sampler is None else sampler.handle for sampler in self._samplers]
        ray.get(self._buffer.serve.remote(places, version))

    def load(self, weights: Path, version: Version) -> None:
        """Have all engines load these weights from disk."""
        ray.get([handle.load.remote(str(weights), str(version)) for handle in self.handles])

    def sleep(self) -> None:
        """Have engines give their memory back, while nobody asks them for anything."""
        self._ask_the_living("sleep")

    def wake(self) -> None:
        """Have them take it again."""
        self._ask_the_living("wake")

    def _ask_the_living(self, call: str) -> None:
        # `dead` finds the others, before weights are sent.
        for answer in [getattr(handle, call).remote() for handle in self.handles]:
            with contextlib.suppress(RayActorError, ObjectLostError):
                ray.get(answer, timeout=_TIMEOUT_SECONDS)

    def take(self) -> Taken:
        """Wait until the next step's groups are there, or an engine is lost."""

        def ask() -> Taken | None:
            taken: Taken = ray.get(self._buffer.take.remote())
            is_news = taken.batch is not None or taken.lost or taken.error is not None
            return taken if is_news else None

        return _until(ask)

    def dead(self) -> set[int]:
        """Places of the engines that do not answer any more."""
        calls = {
            place: sampler.handle.ready.remote()
            for place, sampler in enumerate(self._samplers)
            if sampler is not None
        }
        places = set()
        for place, call in calls.items():
            try:
                ray.get(call, timeout=_TIMEOUT_SECONDS)
            except (RayActorError, ObjectLostError):
                places.add(place)
        return places

    def replace(self, lost: Sequence[int]) -> None:
        """Lease engines in the place of those that died; they have other weights.

        Where there is no room for another, those that are left go on.
        """
        self._losses += len(lost)
        if self._losses > _MAX_LOSSES:
            raise SamplingError(
                f"{self._losses} engines died while the policy was trained, more than "
                f"{_MAX_LOSSES}; the last checkpoint is good. If memory ran out, lower "
                "sampler.resources.memory_fraction, kv_cache_gib or max_num_seqs."
            )
        for place in lost:
            sampler = self._samplers[place]
            assert sampler is not None, "an engine that is lost had its place"
            try:
                sampler.replace_for_training()
            except SamplingError:
                self._samplers[place] = None
                if not self.handles:
                    raise

    def state(self) -> dict[str, Any]:
        """The buffer's, for a checkpoint."""
        state: dict[str, Any] = ray.get(self._buffer.state.remote())
        return state

    def held_out(self, prompts: Sequence[Prompt], size: int) -> list[HeldOut]:
        """Groups of responses to prompts that are not trained on, under the present weights."""
        ray.get(self._buffer.ask_held_out.remote(list(prompts), size))

        def ask() -> list[HeldOut] | None:
            groups: list[HeldOut] | None = ray.get(self._buffer.held_out.remote())
            return groups

        return _until(ask)

    def close(self) -> None:
        """Give the engines back."""
        for sampler in self._samplers:
            if sampler is not None:
                sampler.close()


def _until(ask: Callable[[], Answer | None]) -> Answer:
    """What `ask` answers, once it does."""
    pause, longest = _POLL_SECONDS
    while (answer := ask()) is None:
        time.sleep(pause)
        pause = min(1.5 * pause, longest)
    return answer
