"""Rank 0's end of sampling: the engines that take the weights, and the buffer before them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError

from charactertrain.exceptions import SamplingError
from charactertrain.records import Prompt
from charactertrain.runtime.engines import EngineSource, LeasedSampler
from charactertrain.stages.policy.rollout_buffer import Taken
from charactertrain.stages.policy.rollouts import HeldOut, Version

Answer = TypeVar("Answer")
_POLL_SECONDS = (0.005, 0.25)
"""At first, and at most."""
_TIMEOUT_SECONDS = 600.0
"""Of an engine that is alive and does not answer."""
_MAX_LOSSES = 8
"""Engines of an attempt that are replaced; then the cause is another."""


class RolloutEngines:
    """Leases of engines, and calls to the buffer, none of which waits there."""

    def __init__(
        self, source: EngineSource, count: int, buffer: Any, state: dict[str, Any] | None
    ) -> None:
        """Lease the engines of this attempt; one that died in the last one is replaced.

        Args:
            source: Of the engines that sample.
            count: How many.
            buffer: The actor.
            state: The buffer's, of the last checkpoint.
        """
        source.end_leases()
        self._samplers: list[LeasedSampler | None] = [*source.open_for_training(count)]
        self._buffer = buffer
        self._losses = 0
        ray.get(buffer.begin.remote(state))
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
