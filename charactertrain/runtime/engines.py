"""Engines that outlive the stages that use them.

Starting an engine costs 25 to 40 seconds even for a small model, so engines are actors of their
own, kept by a broker. A Ray Data worker holds a lease on one: Ray Data scales, retries and
throttles the workers, and the broker starts an engine when more workers come than engines serve.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from uuid import uuid4

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.engine_actor import EngineActor, start_engine
from charactertrain.runtime.engine_spec import EngineCounts, EngineSpec
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)

_MAX_ENGINE_LOSSES = 3
_LOAD_SECONDS = 600.0
_START_SECONDS = 900.0
_POLL_SECONDS = 0.1
Claim = Literal["ready", "waiting", "gone"]
Result = TypeVar("Result")


@dataclass
class _Engine:
    spec: EngineSpec
    weights: str
    actor: EngineActor
    leases: int = 0
    has_started: bool = False
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
        self.has_started = True

    async def load(self) -> None:
        await self.handle.load.remote(self.weights, self.weights)


class EngineBroker:
    """The actor that knows which engines run, on which weights, and for how many workers."""

    def __init__(self, max_engines: int) -> None:
        """Start at most `max_engines` engines of one kind."""
        self._max_engines = max_engines
        self._engines: dict[str, _Engine] = {}

    async def acquire(self, spec: EngineSpec, weights: str) -> str:
        """A lease on an engine of this kind that has these weights, or will have: its id.

        The least busy one that fits; a new one while the pool may grow; an unused one of the same
        architecture, given the weights, before a new one is started for them.
        """
        # No await, so that no other call comes between; engines then start side by side.
        key = self._choose(spec, weights)
        self._engines[key].leases += 1
        return key

    async def claim(self, key: str) -> tuple[Claim, Any]:
        """Whether a leased engine can be used by now, and its handle if so.

        Asked again and again, and answered at once: Ray 2.60 ends an actor when a call to it
        finishes whose caller has died, as a worker may while an engine starts.

        Raises:
            RayError: The engine could not be started.
        """
        engine = self._engines.get(key)
        if engine is None:
            return "gone", None
        assert engine.prepared is not None, "an engine that can be chosen is being prepared"
        if not engine.prepared.done():
            if time.monotonic() - engine.since < self._limit(engine):
                return "waiting", None
            if not engine.has_started:
                # The cluster has no room for as many, such as after the loss of a node.
                self._max_engines = max(1, self._num_started(engine.spec))
            await self.discard(key)
            return "gone", None
        error = engine.prepared.exception()
        if error is None:
            return "ready", engine.handle
        await self.discard(key)
        # An idle engine may have died unnoticed; one that cannot start never will.
        if engine.has_started and isinstance(error, RayActorError):
            return "gone", None
        raise error

    def _limit(self, engine: _Engine) -> float:
        """Seconds to wait for an engine.

        How long a start takes is the model's affair, as long as no other engine can do the work. A
        load waits behind what the engine does, which may be a transfer whose trainer died, and that
        never ends.
        """
        if engine.has_started:
            return _LOAD_SECONDS
        return _START_SECONDS if self._num_started(engine.spec) else math.inf

    def _num_started(self, spec: EngineSpec) -> int:
        return sum(e.has_started for e in self._engines.values() if e.spec == spec)

    def _choose(self, spec: EngineSpec, weights: str) -> str:
        alike = {key: engine for key, engine in self._engines.items() if engine.spec == spec}
        fitting = [key for key, engine in alike.items() if engine.weights == weights]
        key = min(fitting, key=lambda k: alike[k].leases, default=None)
        if key is not None and (alike[key].leases == 0 or len(alike) >= self._max_engines):
            return key
        idle = [key for key, engine in alike.items() if engine.leases == 0]
        if idle:
            engine = alike[idle[0]]
            engine.weights = weights
            engine.prepare(engine.load())
            return idle[0]
        key = f"engine-{uuid4().hex[:8]}"
        engine = _Engine(spec, weights, start_engine(spec, weights, key))
        engine.prepare(engine.start())
        self._engines[key] = engine
        return key

    async def release(self, key: str) -> None:
        """Give a lease back; the engine stays warm."""
        if key in self._engines:
            self._engines[key].leases = max(0, self._engines[key].leases - 1)

    async def release_all(self) -> None:
        """End every lease: those of workers that died without giving theirs back."""
        for engine in self._engines.values():
            engine.leases = 0
            engine.handle.rest.remote()

    async def stop_idle(self) -> None:
        """Stop the engines that nobody uses, so that training can have their devices."""
        for key, engine in list(self._engines.items()):
            if engine.leases == 0:
                await self.discard(key)

    async def rename_weights(self, key: str, weights: str) -> None:
        """Record that an engine's weights were changed by a weight update."""
        self._engines[key].weights = weights

    async def discard(self, key: str) -> None:
        """Forget an engine that died."""
        engine = self._engines.pop(key, None)
        if engine is not None:
            engine.actor.kill()

    async def shutdown(self) -> None:
        """Stop every engine."""
        for engine in self._engines.values():
            with contextlib.suppress(RayActorError, TimeoutError):
                await asyncio.wait_for(engine.handle.shutdown.remote(), timeout=30)
            engine.actor.kill()
        self._engines.clear()

    async def counts(self) -> EngineCounts:
        """What all engines that run did since they were started."""
        total = EngineCounts()
        for engine in list(self._engines.values()):
            if engine.has_started:
                try:
                    total += await asyncio.wait_for(engine.handle.counts.remote(), timeout=10)
                except (RayActorError, TimeoutError):
                    # Dead or busy: those who use it will see to it.
                    continue
        return total


@dataclass(frozen=True)
class EngineSource:
    """Opens a sampler on an engine of the broker's."""

    broker: str
    """Name of the broker actor."""
    spec: EngineSpec
    weights: str

    def open(self) -> "LeasedSampler":
        """A sampler on a leased engine."""
        return LeasedSampler(ray.get_actor(self.broker), self.spec, self.weights)

    def open_for_training(self) -> "LeasedSampler":
        """A sampler whose engine's weights are about to be changed by weight updates.

        Use its `handle`: an engine that took the place of one that died would have other weights.
        """
        sampler = self.open()
        sampler.disown_weights()
        return sampler

    def end_leases(self) -> None:
        """End every lease, such as those of workers that were killed."""
        ray.get(ray.get_actor(self.broker).release_all.remote())


class LeasedSampler:
    """A `Sampler` on a leased engine; replaces an engine that dies, a bounded number of times."""

    def __init__(self, broker: Any, spec: EngineSpec, weights: str) -> None:
        """Lease an engine now, starting one if need be."""
        self._broker, self._spec, self._weights = broker, spec, weights
        self._replacing = threading.Lock()
        self._lease()

    def _lease(self) -> None:
        try:
            self.key, self.handle = self._claimed()
        except RayActorError as error:
            # Ray's message is the actor's traceback, which ends with what the engine said.
            reason = str(error).rpartition("SamplingError: ")[2]
            raise SamplingError(
                f"no engine for {self._weights} could be started: {reason}"
            ) from error

    def _claimed(self) -> tuple[str, Any]:
        """Id and handle of a leased engine that can be used."""
        while True:
            key = ray.get(self._broker.acquire.remote(self._spec, self._weights))
            while True:
                claim, handle = ray.get(self._broker.claim.remote(key))
                if claim == "ready":
                    return key, handle
                if claim == "gone":
                    break
                time.sleep(_POLL_SECONDS)

    def _call(self, ask: Callable[[Any], Any]) -> Any:
        num_losses = 0
        while True:
            handle = self.handle
            try:
                return ray.get(ask(handle))
            except (RayActorError, ObjectLostError) as error:
                # The second: the node died with an answer that nobody had fetched.
                num_losses += 1
                self._replace(handle, error, is_last=num_losses > _MAX_ENGINE_LOSSES)

    def _replace(self, lost: Any, error: RayError, *, is_last: bool) -> None:
        """Lease another engine, once for all the threads that had calls on the lost one."""
        with self._replacing:
            if self.handle is not lost:
                return
            ray.get(self._broker.discard.remote(self.key))
            if is_last:
                raise SamplingError(
                    f"{_MAX_ENGINE_LOSSES + 1} engines for {self._weights} died one after another "
                    f"over the same requests; the last said: {error}. What is done is kept. If "
                    "memory ran out, lower sampler.resources.memory_fraction, kv_cache_gib or "
                    "max_num_seqs."
                ) from error
            self._lease()

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """Draw one text per request."""
        results: list[Sample | Failure] = self._call(
            lambda engine: engine.sample.remote(requests, settings)
        )
        return results

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """Log-probabilities of given texts."""
        results: list[Score | Failure] = self._call(lambda engine: engine.score.remote(requests))
        return results

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Log-probabilities of given next tokens."""
        results: list[Choice | Failure] = self._call(lambda engine: engine.choose.remote(requests))
        return results

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """The preference model's scalar for each whole sequence."""
        results: list[float] = self._call(lambda engine: engine.rewards.remote(token_ids))
        return results

    def disown_weights(self) -> None:
        """Record that the engine's weights are about to be changed by weight updates."""
        ray.get(self._broker.rename_weights.remote(self.key, "in training"))

    def close(self) -> None:
        """Give the lease back."""
        ray.get(self._broker.release.remote(self.key))
