"""Leases on engines: who gets which, when one is replaced, and when there is no room."""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from engine_specs import FAKE
from ray.exceptions import RayActorError

from charactertrain.runtime import engine_broker
from charactertrain.runtime.engine_actor import EngineActor
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engine_spec import EngineSpec

SPEC = replace(FAKE, kind="generate", architecture="small", num_cpus=1.0, num_gpus=1.0)
OTHER = replace(SPEC, architecture="judge")


class Remote:
    """A method of an engine: recorded, then done or never."""

    def __init__(self, cluster: "Cluster", name: str, *, is_stuck: bool) -> None:
        self._cluster, self._name, self._is_stuck = cluster, name, is_stuck

    def remote(self, *arguments: object) -> Any:
        self._cluster.calls.append((self._name, *arguments))
        if self._name == "ready" and self._cluster.deaths:
            return asyncio.ensure_future(died(self._cluster.deaths.pop()))
        return asyncio.ensure_future(asyncio.sleep(3600 if self._is_stuck else 0))


async def died(reason: str) -> None:
    raise RayActorError(error_msg=reason)


@dataclass(eq=False)
class Handle:
    cluster: "Cluster"
    key: str
    is_stuck: bool

    def __getattr__(self, name: str) -> Remote:
        return Remote(self.cluster, name, is_stuck=self.is_stuck and name == "ready")


@dataclass
class Cluster:
    """Has room for some engines; those beyond it never start."""

    room: int = 99
    alive: list[Handle] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    """Of engines that start; why."""

    def start(self, spec: EngineSpec, weights: str, key: str) -> EngineActor:
        self.alive.append(Handle(self, key, is_stuck=len(self.alive) >= self.room))
        return EngineActor(self.alive[-1], group=None)


@pytest.fixture(name="cluster")
def fake_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cluster = Cluster()
    monkeypatch.setattr(engine_broker, "start_engine", cluster.start)
    monkeypatch.setattr("ray.kill", cluster.alive.remove)
    yield cluster


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, timeout=30))


async def claimed(broker: EngineBroker, lease: str) -> tuple[str, Any]:
    claim, handle = await broker.claim(lease)
    while claim == "waiting":
        await asyncio.sleep(0.001)
        claim, handle = await broker.claim(lease)
    return claim, handle


async def ready(broker: EngineBroker, spec: EngineSpec, weights: str) -> tuple[str, Any]:
    """A lease on an engine that serves, and the engine."""
    while True:
        lease = await broker.acquire(spec, weights)
        claim, handle = await claimed(broker, lease)
        if claim == "ready":
            return lease, handle
        assert claim == "gone"


def test_each_lease_has_an_engine_until_the_pool_is_full(cluster: Cluster) -> None:
    async def scenario() -> None:
        broker = EngineBroker(max_engines=2)
        handles = [(await ready(broker, SPEC, "w"))[1] for _ in range(4)]
        assert handles[0] is not handles[1]
        # The least busy one each time.
        assert {handles[2], handles[3]} == {handles[0], handles[1]} == set(cluster.alive)

    run(scenario())


def test_a_lease_that_was_given_back_is_not_given_back_again(cluster: Cluster) -> None:
    async def scenario() -> None:
        broker = EngineBroker(max_engines=1)
        first, handle = await ready(broker, SPEC, "w")
        await broker.release(first)
        second, again = await ready(broker, SPEC, "w")
        assert again is handle
        # A worker that is ended late, after its lease was ended for it.
        await broker.release(first)
        assert (await broker.claim(first))[0] == "gone"
        await broker.stop_idle()
        assert cluster.alive == [handle]
        await broker.release(second)
        await broker.stop_idle()
        # It is asked to end, and then made to.
        assert await broker.is_stopping()
        while await broker.is_stopping():
            await asyncio.sleep(0.001)
        assert ("shutdown",) in cluster.calls
        assert cluster.alive == []

    run(scenario())


def test_end_of_all_leases_leaves_engines_warm(cluster: Cluster) -> None:
    async def scenario() -> None:
        broker = EngineBroker(max_engines=1)
        lease, handle = await ready(broker, SPEC, "w")
        await broker.release_all()
        assert (await broker.claim(lease))[0] == "gone"
        assert (await ready(broker, SPEC, "w"))[1] is handle
        assert ("rest",) in cluster.calls

    run(scenario())


def test_an_idle_engine_takes_other_weights_before_one_is_started(cluster: Cluster) -> None:
    async def scenario() -> None:
        broker = EngineBroker(max_engines=2)
        lease, handle = await ready(broker, SPEC, "w")
        await broker.release(lease)
        assert (await ready(broker, SPEC, "v"))[1] is handle
        assert ("load", "v", "v") in cluster.calls

    run(scenario())


def test_another_models_idle_engine_makes_room_for_one_on_gpus(cluster: Cluster) -> None:
    async def scenario() -> None:
        broker = EngineBroker(max_engines=1)
        lease, idle = await ready(broker, SPEC, "w")
        _, busy = await ready(broker, replace(OTHER, architecture="busy"), "w")
        await broker.release(lease)
        _, judge = await ready(broker, OTHER, "judge")
        assert cluster.alive == [busy, judge]
        assert idle not in cluster.alive

    run(scenario())


def test_a_pool_that_finds_no_room_shares_what_has_started(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_broker, "_START_SECONDS", 0.05)
    cluster.room = 1

    async def scenario() -> None:
        broker = EngineBroker(max_engines=3)
        _, first = await ready(broker, SPEC, "w")
        _, second = await ready(broker, SPEC, "w")
        assert second is first
        # It is remembered, for this kind of engine alone, and until the end of the job.
        assert (await ready(broker, SPEC, "w"))[1] is first
        assert len(cluster.alive) == 1
        cluster.room = 9
        assert (await ready(broker, OTHER, "judge"))[1] is not first
        await broker.release_all()
        handles = [(await ready(broker, SPEC, "w"))[1] for _ in range(2)]
        assert handles[0] is not handles[1]

    run(scenario())


def test_a_kind_that_finds_no_room_at_all_says_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_broker, "_FIRST_START_SECONDS", 0.05)
    cluster.room = 1

    async def scenario() -> None:
        broker = EngineBroker(max_engines=1)
        await ready(broker, SPEC, "w")
        lease = await broker.acquire(OTHER, "judge")
        assert (await claimed(broker, lease))[0] == "no room"

    run(scenario())


def test_shutdown_stops_every_engine_and_waits_for_none_that_never_started(
    cluster: Cluster,
) -> None:
    cluster.room = 1

    async def scenario() -> None:
        broker = EngineBroker(max_engines=2)
        await ready(broker, SPEC, "w")
        await broker.acquire(SPEC, "w")
        assert len(cluster.alive) == 2
        await broker.shutdown()
        assert cluster.alive == []
        assert [call for call in cluster.calls if call[0] == "shutdown"] == [("shutdown",)]

    run(scenario())


def test_an_engine_whose_node_died_as_it_started_is_replaced(cluster: Cluster) -> None:
    async def scenario() -> None:
        broker = EngineBroker(max_engines=1)
        cluster.deaths.append("The actor died because its node has died. Node Id: 9ea6")
        _, handle = await ready(broker, SPEC, "w")
        assert cluster.alive == [handle]

    run(scenario())


def test_an_engine_that_cannot_start_is_not_tried_again(cluster: Cluster) -> None:
    async def scenario() -> None:
        broker = EngineBroker(max_engines=1)
        cluster.deaths.append("The actor died because of an error raised in its creation task")
        with pytest.raises(RayActorError, match="creation task"):
            await ready(broker, SPEC, "w")

    run(scenario())
