"""Leases of engines, on a Ray cluster with engines that have no model."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from engine_specs import FAKE

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engines import EngineSource, open_all, start_all

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

BROKER = "engines-of-a-test"


@pytest.fixture(name="source")
def two_engines_at_most() -> Iterator[EngineSource]:
    """Where their leases come from."""
    actor: Any = ray.remote(EngineBroker)
    broker = actor.options(name=BROKER, num_cpus=0, max_concurrency=100).remote(2)
    yield EngineSource(BROKER, FAKE, "start")
    ray.get(broker.shutdown.remote())
    ray.kill(broker)


def test_engines_that_were_started_before_are_those_that_training_gets(
    source: EngineSource,
) -> None:
    started = open_all([source, source])
    for sampler in started:
        sampler.close()
    start_all([source, source])
    leased = [source.open_for_training() for _ in range(2)]
    assert {s.handle for s in leased} == {s.handle for s in started}


def test_a_sampler_that_is_retired_takes_no_other_engine(source: EngineSource) -> None:
    kept, retired = source.open(), source.open()
    retired.retire()
    for sampler in (kept, retired):
        ray.kill(sampler.handle)
    assert kept.rewards([[1, 2]])
    with pytest.raises(SamplingError, match="the sampler of start is not in use any more"):
        retired.rewards([[1, 2]])


def test_training_gets_each_engine_once_in_a_second_attempt_too(source: EngineSource) -> None:
    first = [source.open_for_training() for _ in range(2)]
    assert len({sampler.handle for sampler in first}) == 2
    # What the first attempt held, it did not give back. Its engines have other weights now.
    source.end_leases()
    second = [source.open_for_training() for _ in range(2)]
    assert {s.handle for s in second} == {s.handle for s in first}
