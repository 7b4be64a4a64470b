"""The buffer between engines and trainers, on engines that answer when they are told to."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from charactertrain.exceptions import SamplingError
from charactertrain.records import Prompt
from charactertrain.runtime.sampling import (
    ABORTED,
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.stages.policy.ledger import LedgerSettings
from charactertrain.stages.policy.rollout_buffer import BufferSettings, Gold, RolloutBuffer, Taken
from charactertrain.stages.policy.rollouts import RolloutSettings
from charactertrain.stages.preference_model.ensemble import EnsembleReward
from charactertrain.stages.prompts.stream import PromptStream

SAMPLING = SamplingSettings(1.0, 1.0, 8, 0, ())
PER_STEP = 2


class LengthReward:
    """Rewards a sequence by its length."""

    def open(self) -> "LengthReward":
        return self

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        return [float(len(ids)) for ids in token_ids]


class Remote:
    """A method as Ray's handles have them."""

    def __init__(self, method: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self.remote = method


class ToldEngine:
    """Holds what it is asked until `answer`, `refuse` or `die`."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[SampleRequest], asyncio.Future[Any]]] = []
        self.sample = Remote(self._sample)

    async def _sample(self, requests: Sequence[SampleRequest], settings: SamplingSettings) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.append((requests, future))
        return await future

    def prompts(self) -> list[str]:
        return [requests[0].request_id for requests, _ in self.asked]

    def answer(self, version: int) -> None:
        """What was asked first."""
        requests, future = self.asked.pop(0)
        samples = [
            Sample(
                request_id=request.request_id,
                text="ab" * (1 + place),
                prompt_token_ids=(1,),
                token_ids=(5, 6),
                logprobs=(-1.0, -1.0),
                finish_reason="stop",
                weight_versions=((str(version), 0),),
                cached_tokens=0,
            )
            for place, request in enumerate(requests)
        ]
        future.set_result(samples)

    def fail(self, reason: str) -> None:
        requests, future = self.asked.pop(0)
        future.set_result([Failure(request.request_id, reason, "so") for request in requests])

    def die(self) -> None:
        for _, future in self.asked:
            future.set_exception(ActorDiedError())
        self.asked = []


def run(
    tiny_model: Path,
    scenario: Callable[[RolloutBuffer], Coroutine[Any, Any, None]],
    *,
    max_staleness: int = 0,
    groups_per_engine: int = 10,
) -> None:
    """A scenario with a buffer that has begun."""
    prompts = [Prompt(f"p{i}", "warm", "tea", "trait", f"{i}?", "train") for i in range(9)]
    reward = EnsembleReward((0.0,), (0.0,), 0.0, "mean", 0.0, None)
    settings = BufferSettings(
        ledger=LedgerSettings(99, PER_STEP, max_staleness, max_staleness, 0),
        rollouts=RolloutSettings(SAMPLING, 2, 0),
        prompts=PromptStream(prompts, [], general_share=0.0, seed=0),
        reward=reward,
        rewards=(LengthReward(),),  # type: ignore[arg-type]
        gold=Gold(LengthReward(), replace(reward, levels=(1.0,))),  # type: ignore[arg-type]
        groups_per_engine=groups_per_engine,
    )

    async def begun() -> None:
        buffer = RolloutBuffer(settings, str(tiny_model))
        await begin(buffer, None)
        await scenario(buffer)

    asyncio.run(begun())


async def begin(buffer: RolloutBuffer, state: dict[str, Any] | None) -> None:
    await buffer.begin(state, [])
    while not await buffer.has_begun():
        await asyncio.sleep(0.01)


async def settled() -> None:
    """Until threads have answered."""
    await asyncio.sleep(0.05)


async def taken(buffer: RolloutBuffer) -> Taken:
    await settled()
    return await buffer.take()


def test_engines_wait_while_a_step_is_trained_unless_staleness_is_allowed(tiny_model: Path) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engine = ToldEngine()
        await buffer.serve([engine], 0)
        await settled()
        assert len(engine.asked) == PER_STEP * (1 + staleness)
        assert (await buffer.take()).batch is None
        first = engine.prompts()[:PER_STEP]
        for _ in range(PER_STEP):
            engine.answer(0)
        batch = (await taken(buffer)).batch
        assert batch is not None
        assert [group[0].prompt_id for group in batch.groups] == first
        # Of the second text twice as long.
        assert batch.groups[0][1].reward > batch.groups[0][0].reward
        await settled()
        assert len(engine.asked) == PER_STEP * staleness
        await buffer.serve([engine], 1)
        await settled()
        assert len(engine.asked) == PER_STEP * (1 + staleness)

    for staleness in (0, 1):
        run(tiny_model, scenario, max_staleness=staleness)


def test_work_goes_to_the_engine_that_has_least(tiny_model: Path) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engines = [ToldEngine(), ToldEngine()]
        await buffer.serve(engines, 0)
        await settled()
        assert [len(engine.asked) for engine in engines] == [2, 2]
        engines[1].answer(0)
        await settled()
        # The fast one gets what is left.
        assert [len(engine.asked) for engine in engines] == [2, 2]

    run(tiny_model, scenario, max_staleness=2, groups_per_engine=2)


def test_groups_of_an_engine_that_dies_are_made_by_another(tiny_model: Path) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engines = [ToldEngine(), ToldEngine()]
        await buffer.serve(engines, 0)
        await settled()
        prompts = sorted(engines[0].prompts() + engines[1].prompts())
        engines[0].die()
        await settled()
        assert sorted(engines[1].prompts()) == prompts
        assert (await buffer.take()).lost == (0,)
        for _ in range(PER_STEP):
            engines[1].answer(0)
        found = await taken(buffer)
        assert found.batch is not None
        assert found.lost == (0,)
        await buffer.serve([ToldEngine(), engines[1]], 1)
        assert (await buffer.take()).lost == ()
        # Or there is no room for another, and one goes on alone.
        await buffer.serve([None, engines[1]], 2)
        assert (await buffer.take()).lost == ()

    run(tiny_model, scenario)


def test_an_engine_that_is_lost_before_it_is_asked_loses_its_groups(tiny_model: Path) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engines = [ToldEngine(), ToldEngine()]
        await buffer.serve(engines, 0)
        # No task has begun yet.
        buffer._lose(engines[0])
        await settled()
        engines[0].die()
        await settled()
        while engines[1].asked:
            engines[1].answer(0)
            await settled()
        found = await buffer.take()
        assert found.error is None
        assert found.batch is not None

    run(tiny_model, scenario)


def test_what_an_engine_gave_up_is_asked_again_and_a_refusal_stops_the_run(
    tiny_model: Path,
) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engine = ToldEngine()
        await buffer.serve([engine], 0)
        await settled()
        prompts = engine.prompts()
        engine.fail(ABORTED)
        await settled()
        assert sorted(engine.prompts()) == sorted(prompts)
        engine.fail("too_long")
        await settled()
        found = await buffer.take()
        assert found.error is not None
        assert re.fullmatch(r"rollout of prompt p\d: too_long: so", found.error)

    run(tiny_model, scenario)


def test_a_trainer_that_comes_anew_finds_what_its_checkpoint_had(tiny_model: Path) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engine = ToldEngine()
        await buffer.serve([engine], 0)
        await settled()
        prompts = engine.prompts()
        for _ in range(PER_STEP + 1):
            engine.answer(0)
        assert (await taken(buffer)).batch is not None
        state = await buffer.state()
        await begin(buffer, state)
        fresh = ToldEngine()
        await buffer.serve([fresh], 1)
        await settled()
        # The third is there; what was in flight is asked for again.
        assert fresh.prompts()[0] == prompts[3]
        assert prompts[2] not in fresh.prompts()

    run(tiny_model, scenario, max_staleness=1)


def test_held_out_prompts_of_an_engine_that_dies_are_answered_by_another(
    tiny_model: Path,
) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engines = [ToldEngine(), ToldEngine()]
        await buffer.serve(engines, 0)
        held_out = Prompt("h", "warm", "tea", "trait", "Well?", "validation")
        await buffer.ask_held_out([held_out], 2)
        await settled()
        engines[0].die()
        await settled()
        while engines[1].asked:
            engines[1].answer(0)
            await settled()
        groups = await buffer.held_out()
        assert groups is not None
        assert (await buffer.take()).lost == (0,)
        await buffer.ask_held_out([held_out], 2)
        await settled()
        engines[1].die()
        await settled()
        with pytest.raises(SamplingError, match="all engines died"):
            await buffer.held_out()

    run(tiny_model, scenario)


def test_held_out_prompts_are_answered_beside_the_others(tiny_model: Path) -> None:
    async def scenario(buffer: RolloutBuffer) -> None:
        engine = ToldEngine()
        await buffer.serve([engine], 0)
        held_out = Prompt("h", "warm", "tea", "trait", "Well?", "validation")
        await buffer.ask_held_out([held_out], 3)
        await settled()
        assert await buffer.held_out() is None
        while engine.asked:
            engine.answer(0)
        await settled()
        groups = await buffer.held_out()
        assert groups is not None
        (found,) = groups
        assert found.prompt == held_out
        assert len(found.rollouts) == 3
        # The same model in both places, but for its level.
        assert found.golds == tuple(rollout.reward - 1 for rollout in found.rollouts)

    run(tiny_model, scenario)
