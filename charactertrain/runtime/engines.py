"""Samplers on leased engines, for the workers of data stages and for training."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, ObjectLostError, RayActorError, RayError

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.engine_spec import Device, EngineSpec
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
_POLL_SECONDS = (0.05, 2.0)
"""At first, and at most: a thousand workers may wait for their engines at a time."""


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

    def beside(self, device: Device) -> "EngineSource":
        """Of an engine on a training worker's device."""
        return replace(self, spec=replace(self.spec, beside=device))

    def open_for_training(self) -> "LeasedSampler":
        """A sampler whose engine's weights are about to be changed by weight updates.

        Use its `handle`: an engine that took the place of one that died would have other weights,
        until it is sent those in training.
        """
        sampler = self.open()
        # Before another is opened, which could otherwise be given the same engine.
        sampler.disown_weights()
        return sampler

    def end_leases(self) -> None:
        """End every lease, such as those of workers that were killed."""
        broker = ray.get_actor(self.broker)
        ray.get(broker.release_all.remote())
        if self.spec.beside is not None:
            # Workers that start again may be given other devices, whose memory these hold.
            stop_idle(broker)


def stop_idle(broker: Any) -> None:
    """Stop the engines that nobody uses, and wait until their devices are free."""
    ray.get(broker.stop_idle.remote())
    while ray.get(broker.is_stopping.remote()):
        time.sleep(_POLL_SECONDS[0])


def start_all(sources: "Sequence[EngineSource]") -> None:
    """Have engines ready to be leased, as many of a source as it is named."""
    for sampler in open_all(sources):
        sampler.close()


def open_all(sources: Sequence[EngineSource]) -> "list[LeasedSampler]":
    """A sampler of each source; engines that have to be started start at the same time."""
    pool = ThreadPoolExecutor(len(sources), thread_name_prefix="open-engine")
    try:
        return list(pool.map(EngineSource.open, sources))
    finally:
        # Without a wait, after an error or an interrupt: the others may take an hour to start.
        pool.shutdown(wait=False, cancel_futures=True)


class LeasedSampler:
    """A `Sampler` on a leased engine; replaces an engine that dies, a bounded number of times."""

    def __init__(self, broker: Any, spec: EngineSpec, weights: str) -> None:
        """Lease an engine now, starting one if need be."""
        self._broker, self.spec, self._weights = broker, spec, weights
        self._replacing = threading.Lock()
        self._is_retired = False
        self._lease()

    def _lease(self) -> None:
        try:
            self.lease, self.handle = self._claimed()
        except (RayActorError, ActorUnschedulableError) as error:
            # The second: the node is gone that it had to be on. Ray's message is the actor's
            # traceback, which ends with what the engine said.
            reason = str(error).rpartition("SamplingError: ")[2]
            raise SamplingError(
                f"no engine for {self._weights} could be started: {reason}"
            ) from error

    def _claimed(self) -> tuple[str, Any]:
        """A lease, and the handle of its engine, which can be used."""
        lease, claim, handle = "", "gone", None
        wait, longest = _POLL_SECONDS
        while claim != "ready":
            if claim == "gone":
                lease = ray.get(self._broker.acquire.remote(self.spec, self._weights))
            elif claim == "no room":
                raise SamplingError(
                    f"no engine for {self._weights} has started: the cluster has no room for "
                    f"{self.spec.num_gpus:g} GPUs and {self.spec.num_cpus:g} CPUs beside what "
                    "runs on it. Where another model judges, both must have room."
                )
            else:
                time.sleep(wait)
                wait = min(1.5 * wait, longest)
            claim, handle = ray.get(self._broker.claim.remote(lease))
        return lease, handle

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
            if self._is_retired:
                raise SamplingError(f"the sampler of {self._weights} is not in use any more")
            ray.get(self._broker.discard.remote(self.lease))
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

    def replace_for_training(self) -> None:
        """Lease another engine in the place of one that died, as `open_for_training` does."""
        ray.get(self._broker.discard.remote(self.lease))
        self._lease()
        self.disown_weights()

    def disown_weights(self) -> None:
        """Record that the engine's weights are about to be changed by weight updates."""
        ray.get(self._broker.rename_weights.remote(self.lease, "in training"))

    def retire(self) -> None:
        """Replace no engine any more: calls that still run end with their engine."""
        self._is_retired = True

    def close(self) -> None:
        """Give the lease back."""
        ray.get(self._broker.release.remote(self.lease))
