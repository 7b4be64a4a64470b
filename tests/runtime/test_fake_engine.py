"""An engine without a model: the fake sampler's answers, in the time that the rates say."""

import asyncio
import inspect
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from engine_specs import FAKE

from charactertrain.runtime import engine_broker, engines
from charactertrain.runtime.engine_spec import EngineCounts, Latency
from charactertrain.runtime.fake_engine import FakeEngine
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    ChoiceRequest,
    Sample,
    SampleRequest,
    SamplingSettings,
    ScoreRequest,
)
from charactertrain.runtime.vllm_engine import VllmEngine
from charactertrain.templates import Shown, plain_conversation

SHOWN = plain_conversation("Is it late?")
FOUR_TOKENS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=4, min_tokens=4, stop=())
NO_TIME = Latency(prefill_tokens_per_second=1e9, seconds_per_step=1e-9, seconds_per_sequence=0.0)


def engine(latency: Latency | None = None, max_num_seqs: int = 8) -> FakeEngine:
    spec = replace(FAKE, max_num_seqs=max_num_seqs, latency=latency)
    return FakeEngine(spec, "weights")


def test_texts_say_which_weights_they_were_asked_of() -> None:
    async def versions() -> list[tuple[tuple[str, int], ...]]:
        own = engine()
        found = await own.sample(samples(1), FOUR_TOKENS)
        await own.load("anywhere", "7")
        found += await own.sample(samples(1), FOUR_TOKENS)
        return [sample.weight_versions for sample in found if isinstance(sample, Sample)]

    assert asyncio.run(versions()) == [(("fake", 0),), (("7", 0),)]


def samples(count: int, shown: Shown = SHOWN) -> list[SampleRequest]:
    return [SampleRequest(f"s{index}", shown, index) for index in range(count)]


def rewarded(num_tokens: int, count: int) -> list[tuple[int, ...]]:
    return [(index,) * num_tokens for index in range(count)]


Ask = Callable[[Any], Any]
ASKS: dict[str, Ask] = {
    "sample": lambda sampler: sampler.sample(samples(3), FOUR_TOKENS),
    "score": lambda sampler: sampler.score([ScoreRequest(i, SHOWN, (1, 2)) for i in "ab"]),
    "choose": lambda sampler: sampler.choose([ChoiceRequest("a", SHOWN, ("A", "B"))]),
    "rewards": lambda sampler: sampler.rewards([(1, 2), (3, 4, 5)]),
}


@pytest.mark.parametrize("name", ASKS)
@pytest.mark.parametrize("latency", [None, NO_TIME], ids=["at once", "simulated"])
def test_answers_are_those_of_the_fake_sampler(name: str, latency: Latency | None) -> None:
    assert asyncio.run(ASKS[name](engine(latency))) == ASKS[name](FakeSampler())


@pytest.mark.parametrize("latency", [None, NO_TIME], ids=["at once", "simulated"])
def test_an_engine_counts_what_it_did(latency: Latency | None) -> None:
    async def counts(*names: str) -> EngineCounts:
        made = engine(latency)
        assert await made.ready()
        assert await made.counts() == EngineCounts()
        for name in names:
            await ASKS[name](made)
        return await made.counts()

    # A prompt of three words, four of them written; a choice, a score and a reward write one.
    assert asyncio.run(counts("sample")) == EngineCounts(
        prompt_tokens=9, generated_tokens=12, requests=3
    )
    assert asyncio.run(counts("choose")) == EngineCounts(
        prompt_tokens=3, generated_tokens=1, requests=1
    )
    assert asyncio.run(counts("rewards")) == EngineCounts(
        prompt_tokens=5, generated_tokens=2, requests=2
    )
    both = asyncio.run(counts("sample", "choose", "rewards"))
    assert (both.prompt_tokens, both.generated_tokens, both.requests) == (17, 15, 6)


def seconds_of(work: Callable[[], Coroutine[Any, Any, object]]) -> float:
    """Of the quicker of two runs: what else the machine does only adds to them."""
    found = []
    for _ in range(2):
        started = time.monotonic()
        asyncio.run(work())
        found.append(time.monotonic() - started)
    return min(found)


def test_prompts_are_read_one_after_another() -> None:
    # Eight prompts of 50 tokens at 2000 a second, in parallel as far as slots go.
    latency = Latency(
        prefill_tokens_per_second=2000.0, seconds_per_step=1e-6, seconds_per_sequence=0.0
    )
    found = seconds_of(lambda: engine(latency).rewards(rewarded(50, 8)))
    assert 0.2 <= found < 0.4


def test_one_sequence_takes_its_steps() -> None:
    latency = Latency(
        prefill_tokens_per_second=1e9, seconds_per_step=0.025, seconds_per_sequence=1.0
    )
    # Four tokens, alone: what further sequences would add plays no part.
    found = seconds_of(lambda: engine(latency).sample(samples(1), FOUR_TOKENS))
    assert 0.1 <= found < 0.3


def test_sequences_that_run_together_take_longer_and_less_than_one_by_one() -> None:
    latency = Latency(
        prefill_tokens_per_second=1e9, seconds_per_step=0.02, seconds_per_sequence=0.005
    )
    # The fourth finds three others: four steps of 0.035 s. One by one they would take 0.32.
    found = seconds_of(lambda: engine(latency).sample(samples(4), FOUR_TOKENS))
    assert 0.14 <= found < 0.3


def test_slots_bound_how_many_run_at_a_time() -> None:
    latency = Latency(
        prefill_tokens_per_second=1e9, seconds_per_step=0.01, seconds_per_sequence=0.0
    )

    async def most_running(max_num_seqs: int) -> tuple[set[int], EngineCounts]:
        made = engine(latency, max_num_seqs)
        # Two calls at a time, as of two workers.
        calls = [asyncio.create_task(made.sample(samples(5), FOUR_TOKENS)) for _ in range(2)]
        seen = set()
        while not all(call.done() for call in calls):
            seen.add((await made.counts()).running)
            await asyncio.wait(calls, timeout=0.002)
        return seen, await made.counts()

    seen, counts = asyncio.run(most_running(3))
    assert max(seen) == 3
    assert (counts.running, counts.requests, counts.generated_tokens) == (0, 10, 40)
    seen, _ = asyncio.run(most_running(16))
    assert max(seen) == 10


def test_few_slots_take_as_many_turns_as_they_need() -> None:
    latency = Latency(
        prefill_tokens_per_second=1e9, seconds_per_step=0.01, seconds_per_sequence=0.0
    )
    # Six sequences of four steps, two at a time: three turns of 0.04 s.
    found = seconds_of(lambda: engine(latency, 2).sample(samples(6), FOUR_TOKENS))
    assert 0.12 <= found < 0.23


def test_an_idle_engine_does_not_read_ahead() -> None:
    latency = Latency(
        prefill_tokens_per_second=1000.0, seconds_per_step=1e-6, seconds_per_sequence=0.0
    )

    async def twice() -> None:
        made = engine(latency)
        await made.rewards(rewarded(50, 1))
        await made.rewards(rewarded(50, 1))

    assert 0.1 <= seconds_of(twice) < 0.3


def test_a_call_that_is_cancelled_leaves_its_slot() -> None:
    slow = Latency(prefill_tokens_per_second=1e9, seconds_per_step=60.0, seconds_per_sequence=0.0)

    async def cancelled() -> EngineCounts:
        made = engine(slow, max_num_seqs=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(made.sample(samples(2), FOUR_TOKENS), timeout=0.02)
        return await made.counts()

    assert asyncio.run(cancelled()).running == 0


def test_an_engine_without_latency_takes_no_time() -> None:
    assert seconds_of(lambda: engine(None).sample(samples(200), FOUR_TOKENS)) < 0.2


def test_an_engine_can_be_loaded_rested_and_shut_down() -> None:
    async def lead_a_life() -> object:
        made = engine()
        await made.load("other", "other")
        await made.rest()
        found = await ASKS["score"](made)
        await made.shutdown()
        return found

    assert asyncio.run(lead_a_life()) == ASKS["score"](FakeSampler())


CALLED = sorted(
    {
        name
        for module in (engine_broker, engines)
        for name in re.findall(
            r"(?:handle|engine)\.(\w+)\.remote\(", Path(inspect.getfile(module)).read_text()
        )
    }
)
"""Methods that the broker and its samplers call on an engine."""


def test_what_is_called_on_an_engine_was_found() -> None:
    called = {"ready", "load", "rest", "shutdown", "counts", "sample", "score", "choose", "rewards"}
    assert set(CALLED) == called


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each, but for the one that Ray adds once a class is an actor."""
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found if p.name != "_ray_trace_ctx"]


@pytest.mark.parametrize("name", ["__init__", *CALLED])
def test_a_fake_engine_is_called_as_a_real_one(name: str) -> None:
    # As another test may have left it, or a run.
    ray.remote(VllmEngine)
    fake, real = getattr(FakeEngine, name), getattr(VllmEngine, name)
    assert inspect.iscoroutinefunction(fake) == (name != "__init__")
    assert parameters(fake) == parameters(real)
