"""The actor between engines and trainers: it keeps engines busy, and gives each step its groups.

Trainers pull: no call waits here for something to be made. Ray 2.60 ends an actor when a call to it
finishes whose caller has died, as a trainer may.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError

from charactertrain import chat
from charactertrain.exceptions import SamplingError, TrainingError
from charactertrain.models import loading
from charactertrain.records import Prompt
from charactertrain.runtime.engine_spec import Device
from charactertrain.runtime.engines import EngineSource, LeasedSampler
from charactertrain.runtime.sampling import Sampler, SamplerSource
from charactertrain.stages.policy.ledger import Batch, Ledger, LedgerSettings
from charactertrain.stages.policy.rollouts import (
    Aborted,
    HeldOut,
    Rollout,
    RolloutMaker,
    RolloutSettings,
    Version,
)
from charactertrain.stages.preference_model.ensemble import EnsembleReward, ensemble_rewards
from charactertrain.stages.prompts.stream import PromptStream

_LOSSES = (RayActorError, ObjectLostError)
"""The second: the node died with an answer that nobody had fetched."""


@dataclass(frozen=True)
class Gold:
    """The preference model that no policy is trained against."""

    source: SamplerSource
    reward: EnsembleReward


@dataclass(frozen=True)
class BufferSettings:
    """What the buffer makes groups of, and how."""

    ledger: LedgerSettings
    rollouts: RolloutSettings
    prompts: PromptStream
    reward: EnsembleReward
    rewards: tuple[SamplerSource, ...]
    """Of each of the preference model's members."""
    gold: Gold | None
    groups_per_engine: int
    """Most groups that one engine works on at a time."""


@dataclass(frozen=True)
class Taken:
    """An answer to a trainer that wants its next step."""

    batch: Batch | None
    """None while it is not there."""
    lost: tuple[int, ...]
    """Places of the engines that have died and are to be replaced."""
    error: str | None
    """What went wrong for good."""
    waiting: int
    """Groups that are made and wait."""


class RolloutBuffer:
    """The actor."""

    def __init__(self, settings: BufferSettings, tokenizer_directory: str) -> None:
        """Nothing is made before `begin` and `serve`."""
        self._settings = settings
        self._tokenizer_directory = tokenizer_directory
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._error: BaseException | None = None
        self._opened: list[Sampler] = []
        """Of the preference models."""

    async def rest(self) -> None:
        """Ask nothing of anyone until `begin`."""
        for task in self._tasks.values():
            task.cancel()
        for sampler in self._opened:
            # Threads that wait for a reward are not cancelled.
            if isinstance(sampler, LeasedSampler):
                sampler.retire()

    async def begin(self, state: dict[str, Any] | None, devices: Sequence[Device]) -> None:
        """Begin to forget what trainers before had asked for, and to go on from a checkpoint.

        `devices` are those that preference models share with the trainers; none for their own.
        """
        self._beginning = asyncio.create_task(self._begin(state, devices))

    async def has_begun(self) -> bool:
        """Whether that is done; raises what went wrong."""
        if self._beginning.done():
            self._beginning.result()
        return self._beginning.done()

    async def _begin(self, state: dict[str, Any] | None, devices: Sequence[Device]) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks, self._error = {}, None
        settings = self._settings
        self._ledger = (
            Ledger(settings.ledger) if state is None else Ledger.restored(settings.ledger, state)
        )
        self._version: Version = -1
        self._engines: list[Any] = []
        self._busy: list[int] = []
        """Groups that each engine works on."""
        gold = settings.gold
        sources = [*settings.rewards, *([] if gold is None else [gold.source])]
        # One after the other: an engine measures what a device has left as it starts.
        self._opened = [
            await asyncio.to_thread(_placed(source, place, devices).open)
            for place, source in enumerate(sources)
        ]
        rewards = self._opened[: len(settings.rewards)]
        self._tokenizer = loading.load_tokenizer(Path(self._tokenizer_directory))
        self._maker = RolloutMaker(rewards, settings.reward, self._tokenizer, settings.rollouts)
        self._gold = None if gold is None else self._opened[-1]

    async def serve(self, engines: list[Any], version: Version) -> None:
        """All these engines have the weights of `version` now.

        An engine keeps its place in the list; what stands there is replaced when it has died, or
        None, where there is no room for another.
        """
        self._busy = self._busy or [0] * len(engines)
        self._engines, self._version = list(engines), version
        self._given_up = {place for place, engine in enumerate(engines) if engine is None}
        self._ask()

    async def take(self) -> Taken:
        """The next step's groups, once they are all there."""
        batch = None
        try:
            batch = self._ledger.take()
        except TrainingError as error:
            self._error = error
        if batch is not None:
            self._ask()
        lost = {place for place, engine in enumerate(self._engines) if engine is None}
        return Taken(
            batch=batch,
            lost=tuple(sorted(lost - self._given_up)),
            error=None if self._error is None else str(self._error),
            waiting=self._ledger.num_waiting,
        )

    async def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self._ledger.state()

    def _ask(self) -> None:
        """Give engines work, as far as there is any that is not too far ahead."""
        while self._error is None:
            free = [
                place
                for place, engine in enumerate(self._engines)
                if engine is not None and self._busy[place] < self._settings.groups_per_engine
            ]
            if not free:
                return
            number = self._ledger.ask(self._version)
            if number is None:
                return
            place = min(free, key=self._busy.__getitem__)
            self._busy[place] += 1
            # The engine of now: by the time that the task begins, another may stand there.
            making = self._make(number, place, self._engines[place])
            self._tasks[number] = asyncio.create_task(making)

    async def _make(self, number: int, place: int, engine: Any) -> None:
        try:
            group = await self._maker.make(
                engine,
                self._settings.prompts[number],
                number,
                self._settings.rollouts.group_size,
            )
            self._ledger.make(number, group)
        except Aborted:
            self._ledger.lose(number)
        except _LOSSES:
            self._ledger.lose(number)
            self._lose(engine)
        except Exception as error:  # noqa: BLE001  `take` hands it on
            self._error = error
        self._tasks.pop(number, None)
        self._busy[place] -= 1
        self._ask()

    def _lose(self, engine: Any) -> None:
        """An engine that died, unless it was replaced in the meantime."""
        self._engines = [None if other is engine else other for other in self._engines]

    # Held-out prompts

    async def ask_held_out(self, prompts: list[Prompt], size: int) -> None:
        """Begin to make groups of responses to prompts that are not trained on."""
        self._held_out = asyncio.gather(
            *(self._answered(place, prompt, size) for place, prompt in enumerate(prompts))
        )

    async def _answered(self, place: int, prompt: Prompt, size: int) -> HeldOut:
        rollouts: tuple[Rollout, ...] | None = None
        while rollouts is None:
            live = [engine for engine in self._engines if engine is not None]
            if not live:
                raise SamplingError("all engines died while the policy was read")
            engine = live[place % len(live)]
            try:
                rollouts = await self._maker.make(engine, prompt, "held out", size)
            except Aborted:
                continue
            except _LOSSES:
                self._lose(engine)
        gold = self._settings.gold
        if gold is None or self._gold is None:
            return HeldOut(prompt, rollouts, ())
        golds, _ = await asyncio.to_thread(
            ensemble_rewards,
            [self._gold],
            gold.reward,
            [
                chat.encode_exchange(prompt.text, rollout.text, self._tokenizer)
                for rollout in rollouts
            ],
            [len(rollout.token_ids) for rollout in rollouts],
        )
        return HeldOut(prompt, rollouts, tuple(golds))

    async def held_out(self) -> list[HeldOut] | None:
        """Those groups, once they are all there."""
        return self._held_out.result() if self._held_out.done() else None


def _placed(source: SamplerSource, place: int, devices: Sequence[Device]) -> SamplerSource:
    """From the last device on, since rank 0's has the gathered weights to hold as well."""
    if devices and isinstance(source, EngineSource):
        return source.beside(devices[-1 - place % len(devices)])
    return source
