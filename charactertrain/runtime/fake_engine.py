"""An engine without a model, as an actor: for dry runs, chaos tests and simulation at scale.

It answers as `FakeSampler` does, and takes as long as an engine of the given rates would.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from charactertrain.runtime.engine_spec import EngineCounts, EngineSpec
from charactertrain.runtime.fake_sampler import FakeSampler
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


class FakeEngine:
    """The actor. Its methods are those of `VllmEngine` that data stages call."""

    def __init__(self, spec: EngineSpec, weights: str) -> None:
        """Answer for `weights`, which are only a name."""
        self._sampler, self._latency = FakeSampler(), spec.latency
        self._slots = asyncio.Semaphore(spec.max_num_seqs)
        self._running = 0
        self._version: str | None = None
        # When the prompts that are being read will have been read: one after another, as an
        # engine's prefill is bound by compute and not by how many prompts share it.
        self._read_until = 0.0
        self._prompt_tokens = self._generated_tokens = self._requests = 0

    async def ready(self) -> bool:
        """True at once."""
        return True

    async def load(self, weights: str, version: str) -> None:
        """Nothing is loaded; what is asked from now on says that these weights wrote it."""
        self._version = version

    async def rest(self) -> None:
        """Nothing is held."""

    async def shutdown(self) -> None:
        """Nothing runs."""

    async def counts(self) -> EngineCounts:
        """What was done so far."""
        return EngineCounts(
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            requests=self._requests,
            running=self._running,
        )

    async def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """Draw one text per request."""
        version = self._version
        results = self._sampler.sample(requests, settings)
        await self._take_time(
            [
                (len(result.prompt_token_ids), len(result.token_ids))
                for result in results
                if isinstance(result, Sample)
            ]
        )
        if version is None:
            return results
        return [
            replace(result, weight_versions=((version, 0),))
            if isinstance(result, Sample)
            else result
            for result in results
        ]

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """Log-probabilities of given texts."""
        results = self._sampler.score(requests)
        await self._take_time([(_prompt_tokens(result), 1) for result in results])
        return results

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Log-probabilities of given next tokens."""
        results = self._sampler.choose(requests)
        await self._take_time([(_prompt_tokens(result), 1) for result in results])
        return results

    async def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """A fixed number per sequence."""
        await self._take_time([(len(ids), 1) for ids in token_ids])
        return self._sampler.rewards(token_ids)

    async def _take_time(self, lengths: Sequence[tuple[int, int]]) -> None:
        self._prompt_tokens += sum(prompt for prompt, _ in lengths)
        self._generated_tokens += sum(generated for _, generated in lengths)
        if self._latency is not None:
            await asyncio.gather(*(self._serve(prompt, n) for prompt, n in lengths))
        self._requests += len(lengths)

    async def _serve(self, prompt_tokens: int, generated_tokens: int) -> None:
        assert self._latency is not None, "asked only where time is simulated"
        async with self._slots:
            now = time.monotonic()
            reading = prompt_tokens / self._latency.prefill_tokens_per_second
            self._read_until = max(now, self._read_until) + reading
            self._running += 1
            # As many sequences as now, to the end: a simulation of steps would cost more than
            # what it simulates.
            step = (
                self._latency.seconds_per_step
                + (self._running - 1) * self._latency.seconds_per_sequence
            )
            try:
                await asyncio.sleep(self._read_until - now + generated_tokens * step)
            finally:
                self._running -= 1


def _prompt_tokens(result: Choice | Score | Failure) -> int:
    return 0 if isinstance(result, Failure) else result.prompt_tokens
