"""The trainer's side of a weight update: who gets what, and what becomes of one that fails."""

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from charactertrain.exceptions import SamplingError, TrainingError
from charactertrain.runtime.weight_sync import sender
from charactertrain.runtime.weight_sync.checksums import Summed, Sums
from charactertrain.runtime.weight_sync.devices import opened_handles, plain_handles
from charactertrain.runtime.weight_sync.sender import EngineClient

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Engine:
    """Answers at once, but for `finish_weight_update`, in which it hangs."""

    def __init__(self, received: dict[str, tuple[int, int, int]]) -> None:
        """Of what it was sent, `received` arrived."""
        self._received = received
        self.calls: list[Any] = []

    def said(self) -> list[Any]:
        """What it was told."""
        return self.calls

    def init_weight_transfer_engine(self, request: Any) -> None:
        """At once."""
        self.calls.append(request.init_info)

    def start_weight_update(self) -> None:
        """At once."""

    def update_weights(self, request: Any) -> None:
        """At once."""
        self.calls.append(request.update_info)

    def received_sums(self) -> list[dict[str, tuple[int, int, int]]]:
        """On each of two ranks."""
        return [SENT, self._received]

    async def finish_weight_update(self, version: str) -> None:
        """Never."""
        await asyncio.sleep(3600)


SENT = {"a": (1, 2, 3), "b": (4, 5, 6)}


class Sent(Summed):
    """Checksums of what is sent."""

    def sums(self) -> Sums:
        """All that was."""
        return SENT


@pytest.fixture(name="engines")
def two_engines() -> Iterator[list[Any]]:
    # Sent whole: workers do not find a module of tests.
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    actor = ray.remote(Engine).options(num_cpus=0)  # type: ignore[attr-defined]
    engines: list[Any] = [actor.remote(SENT), actor.remote(SENT | {"b": (4, 5, 7)})]
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


def test_each_engine_has_the_ranks_after_those_before_it(engines: list[Any]) -> None:
    client = EngineClient(engines, ranks_per_engine=4)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 9})
    assert ray.get([engine.said.remote() for engine in engines]) == [
        [{"rank_offset": 1, "world_size": 9}],
        [{"rank_offset": 5, "world_size": 9}],
    ]


def test_weights_that_arrived_otherwise_do_not_count(engines: list[Any]) -> None:
    client = EngineClient(engines, summed=Sent())
    client.version = "3"
    with pytest.raises(
        SamplingError,
        match=r"weight update 3: b has checksum \(4, 5, 7\) on rank 1 of engine 1, and the trainer "
        r"sent \(4, 5, 6\); the engine's weights are no longer known",
    ):
        client.finish_weight_update()


HANDLE = (
    torch.Tensor,
    torch.Size([1024]),
    (1,),
    0,
    torch.storage.TypedStorage,
    torch.uint8,
    0,
    b"handle",
    1024,
    512,
    False,
    b"counter",
    7,
    b"event",
    True,
)


def test_handles_of_a_shared_buffer_pass_through_vllms_messages(engines: list[Any]) -> None:
    client = EngineClient(engines)
    client.update_weights({"names": ["a"], "ipc_handles": {"gpu-1": HANDLE}})
    (told,) = ray.get(engines[0].said.remote())
    message = MsgpackEncoder().encode(("update_weights", {"update_info": told}))
    _, arguments = MsgpackDecoder().decode(message)
    opened = opened_handles(arguments["update_info"]["ipc_handles"])
    assert opened == {"gpu-1": HANDLE}
    # vLLM looks a buffer up by them.
    assert hash(opened["gpu-1"])


def test_a_handle_of_anything_but_bytes_is_not_sent() -> None:
    with pytest.raises(AssertionError, match="a packed buffer of vLLM's is a tensor of bytes"):
        plain_handles({"gpu-1": (*HANDLE[:5], torch.float32, *HANDLE[6:])})


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_that_no_other_process_can_open_is_refused(name: str) -> None:
    sender._check_allocator({name: "max_split_size_mb:128"})
    with pytest.raises(TrainingError, match=f"^{name} .* memory of expandable segments"):
        sender._check_allocator({name: "expandable_segments:True"})
