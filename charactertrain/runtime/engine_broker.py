"""The actor that knows which engines run, on which weights, and who uses them.

Starting an engine costs 25 to 40 seconds even for a small model, so engines outlive the stages that
use them. A Ray Data worker holds a lease on one: Ray Data scales, retries and throttles the
workers, and the broker starts an engine when more workers come than engines serve.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from ray.exceptions import RayActorError

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.engine_actor import EngineActor, start_engine
from charactertrain.runtime.engine_meter import LossMeter
from charactertrain.runtime.engine_spec import EngineCounts, EngineSpec

_LOAD_SECONDS = 600.0
_START_SECONDS = 900.0
"""For a start while another engine of the kind runs, counted from when the later of both began."""
_FIRST_START_SECONDS = 3600.0
"""For the first of a kind: a node may have to boot, and a large model to be read."""
_SHUTDOWN_SECONDS = 30.0
_WITH_ITS_NODE = "because its node has died"
"""What Ray 2.60 says of an actor, and in no other way."""

Claim = Literal["ready", "waiting", "gone", "no room"]


@dataclass
class _Engine:
    spec: EngineSpec
    weights: str
    actor: EngineActor
    leases: set[str] = field(default_factory=set)
    """Of those who use it. Each has an id, so that none can be given back twice."""
    started_at: float | None = None
    prepared: asyncio.Task[None] | None = None
    """Done when the engine serves `weights`."""
    since: float = 0.0
    """When that began."""

    def prepare(self, work: Coroutine[Any, Any, None]) -> None:
        self.prepared, self.since = asyncio.create_task(work), time.monotonic()

    @property
    def handle(self) -> Any:
        return self.actor.handle

    async def start(self) -> None:
        await self.handle.ready.remote()
        self.started_at = time.monotonic()

    async def load(self) -> None:
        await self.handle.load.remote(self.weights, self.weights)


class EngineBroker:
    """Hands out leases on engines; starts, reloads, replaces and stops them."""

    def __init__(self, max_engines: int) -> None:
        """Start at most `max_engines` engines of one kind."""
        self._max_engines = max_engines
        self._engines: dict[str, _Engine] = {}
        self._losses = LossMeter()
        self._room: dict[EngineSpec, int] = {}
        """Engines of a kind that there was room for, where it was less than wanted."""
        self._stopping: set[asyncio.Task[None]] = set()

    async def acquire(self, spec: EngineSpec, weights: str) -> str:
        """A lease on an engine of this kind that has these weights, or will have.

        The least busy one that fits; a new one while the pool may grow; an unused one of the same
        architecture, given the weights, before a new one is started for them.
        """
        # No await before the lease, so that no other call comes between.
        key = self._choose(spec, weights)
        lease = f"{key}/{uuid4().hex[:8]}"
        self._engines[key].leases.add(lease)
        return lease

    async def claim(self, lease: str) -> tuple[Claim, Any]:
        """Whether a leased engine can be used by now, and its handle if so.

        Asked again and again, and answered at once: Ray 2.60 ends an actor when a call to it
        finishes whose caller has died, as a worker may while an engine starts.

        Raises:
            RayError: The engine could not be started.
        """
        engine = self._engine(lease)
        if engine is None:
            return "gone", None
        assert engine.prepared is not None, "an engine that can be chosen is being prepared"
        if not engine.prepared.done():
            return await self._waited(lease, engine), None
        error = engine.prepared.exception()
        if error is None:
            return "ready", engine.handle
        await self.discard(lease)
        # An idle engine may have died unnoticed, and a node while one started on it; an engine that
        # cannot start never will.
        is_loss = engine.started_at is not None or _WITH_ITS_NODE in str(error)
        if is_loss and isinstance(error, RayActorError):
            return "gone", None
        raise error

    async def _waited(self, lease: str, engine: _Engine) -> Claim:
        """Whether there is still hope for an engine that is being prepared."""
        now = time.monotonic()
        if engine.started_at is not None:
            # A load waits behind what the engine does, which may be a transfer whose trainer died,
            # and that never ends.
            if now - engine.since < _LOAD_SECONDS:
                return "waiting"
            await self.discard(lease)
            return "gone"
        others = self._started_at(engine.spec)
        if not others:
            return "waiting" if now - engine.since < _FIRST_START_SECONDS else "no room"
        if now - max(engine.since, min(others)) < _START_SECONDS:
            return "waiting"
        # The cluster has no room for as many, such as after the loss of a node: share.
        self._room[engine.spec] = len(others)
        await self.discard(lease)
        return "gone"

    def _engine(self, lease: str) -> _Engine | None:
        engine = self._engines.get(lease.partition("/")[0])
        return engine if engine is not None and lease in engine.leases else None

    def _started_at(self, spec: EngineSpec) -> list[float]:
        engines = [engine for engine in self._engines.values() if engine.spec == spec]
        return [engine.started_at for engine in engines if engine.started_at is not None]

    def _choose(self, spec: EngineSpec, weights: str) -> str:
        alike = {key: engine for key, engine in self._engines.items() if engine.spec == spec}
        fitting = [key for key, engine in alike.items() if engine.weights == weights]
        key = min(fitting, key=lambda k: len(alike[k].leases), default=None)
        room = min(self._max_engines, self._room.get(spec, self._max_engines))
        if key is not None and (not alike[key].leases or len(alike) >= room):
            return key
        idle = [key for key, engine in alike.items() if not engine.leases]
        if not idle and len(alike) >= self._room.get(spec, math.inf):
            raise SamplingError(
                f"no engine for {weights}: the cluster has room for {len(alike)} of its kind, and "
                "others use them; lower policy.resources.engines, or give the cluster more devices"
            )
        if idle:
            engine = alike[idle[0]]
            engine.weights = weights
            engine.prepare(engine.load())
            return idle[0]
        return self._start(spec, weights)

    def _start(self, spec: EngineSpec, weights: str) -> str:
        if spec.num_gpus > 0:
            # Idle engines of another model may hold the very GPUs that this one waits for.
            for key, engine in list(self._engines.items()):
                if engine.spec != spec and not engine.leases:
                    self._engines.pop(key).actor.kill()
        key = f"engine-{uuid4().hex[:8]}"
        engine = _Engine(spec, weights, start_engine(spec, weights, key))
        engine.prepare(engine.start())
        self._engines[key] = engine
        return key

    async def release(self, lease: str) -> None:
        """Give a lease back; the engine stays warm."""
        engine = self._engine(lease)
        if engine is not None:
            engine.leases.remove(lease)

    async def release_all(self) -> None:
        """End every lease: those of workers that died without giving theirs back."""
        self._room.clear()
        for engine in self._engines.values():
            engine.leases.clear()
            engine.handle.rest.remote()

    async def stop_idle(self) -> None:
        """Begin to stop the engines that nobody uses, so that training can have their devices."""
        for key, engine in list(self._engines.items()):
            if not engine.leases:
                self._stopping.add(task := asyncio.create_task(_stop(self._engines.pop(key))))
                task.add_done_callback(self._stopping.discard)

    async def is_stopping(self) -> bool:
        """Whether one of them still holds its device. Answered at once, as `claim` is."""
        return bool(self._stopping)

    async def rename_weights(self, lease: str, weights: str) -> None:
        """Record that an engine's weights were changed by a weight update."""
        self._engines[lease.partition("/")[0]].weights = weights

    async def discard(self, lease: str) -> None:
        """Forget a leased engine that died."""
        engine = self._engines.pop(lease.partition("/")[0], None)
        if engine is not None:
            engine.actor.kill()
            if engine.started_at is not None:
                self._losses.add(engine.spec.run)

    async def shutdown(self) -> None:
        """Stop every engine."""
        engines = list(self._engines.values())
        self._engines.clear()
        await asyncio.gather(*(_stop(engine) for engine in engines))

    async def counts(self) -> EngineCounts:
        """What all engines that run did since they were started."""
        total = EngineCounts()
        for engine in list(self._engines.values()):
            if engine.started_at is not None:
                # Dead or busy: those who use it will see to it.
                with contextlib.suppress(RayActorError, TimeoutError):
                    total += await asyncio.wait_for(engine.handle.counts.remote(), timeout=10)
        return total


async def _stop(engine: _Engine) -> None:
    if engine.started_at is not None:
        with contextlib.suppress(RayActorError, TimeoutError):
            await asyncio.wait_for(engine.handle.shutdown.remote(), timeout=_SHUTDOWN_SECONDS)
    engine.actor.kill()
