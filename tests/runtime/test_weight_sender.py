"""The trainer's side of a weight update: what an engine that hangs or fails makes of it."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import cloudpickle

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.weight_sync import sender
from charactertrain.runtime.weight_sync.sender import EngineClient

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Engine:
    """Answers `start_weight_update` and hangs in `finish_weight_update`."""

    def start_weight_update(self) -> None:
        """At once."""

    async def finish_weight_update(self, version: str) -> None:
        """Never."""
        await asyncio.sleep(3600)


@pytest.fixture(name="engines")
def two_engines() -> Iterator[list[Any]]:
    # Sent whole: workers do not find a module of tests.
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    engines: list[Any] = [ray.remote(Engine).options(num_cpus=0).remote() for _ in range(2)]
    yield engines
    for engine in engines:
        ray.kill(engine)
    cloudpickle.unregister_pickle_by_value(module)


def test_an_update_that_hangs_ends_with_its_version_and_phase(
    engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = EngineClient(engines)
    client.version = "7"
    client.start_weight_update()
    monkeypatch.setattr(sender, "_TIMEOUT_SECONDS", 1.0)
    with pytest.raises(
        SamplingError,
        match=r"weight update 7: finish_weight_update took longer than 1 s on 2 engines; the "
        r"engines' weights are not known",
    ):
        client.finish_weight_update()


def test_an_engine_that_died_is_not_waited_for(engines: list[Any]) -> None:
    client = EngineClient(engines)
    client.start_weight_update()
    ray.kill(engines[1])
    with pytest.raises(ray.exceptions.RayActorError):
        client.start_weight_update()
