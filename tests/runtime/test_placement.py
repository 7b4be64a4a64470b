"""Engines and training workers go to the nodes that are theirs."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from engine_specs import FAKE
from ray.cluster_utils import Cluster

from charactertrain.runtime import training
from charactertrain.runtime.engine_actor import start_engine
from charactertrain.runtime.engine_spec import Device
from charactertrain.runtime.placement import GROUP_LABEL, on_group, own_device
from charactertrain.runtime.training import WorkerSettings
from charactertrain.runtime.worker import Worker
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(name="groups", scope="module")
def nodes_of_two_groups() -> Iterator[dict[str, str]]:
    """Node ids by group, of a cluster whose head has no room for work."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    with pytest.MonkeyPatch.context() as patch:
        # Workers import this module, which imports from tests/support.
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        # More room than is asked for, on either: nothing but the label decides.
        for group in ("samplers", "trainers"):
            # The GPUs are Ray's alone: no process that is given one looks for it.
            cluster.add_node(num_cpus=8, num_gpus=2, labels={GROUP_LABEL: group})
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield {
        node["Labels"][GROUP_LABEL]: node["NodeID"]
        for node in ray.nodes()
        if GROUP_LABEL in node["Labels"]
    }
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("group", ["samplers", "trainers"])
def test_an_engine_starts_on_its_group(groups: dict[str, str], group: str, ranks: int) -> None:
    spec = replace(FAKE, num_cpus=2.0, tensor_parallel_size=ranks, node_group=group)
    engine = start_engine(spec, "none", f"engine-{group}-{ranks}")
    place = engine.handle.__ray_call__.remote(
        lambda _: ray.get_runtime_context().get_node_id()  # type: ignore[no-untyped-call]
    )
    assert ray.get(place) == groups[group]
    engine.kill()


def note_place(worker: Worker, directory: str) -> None:
    """Leaves the node that it runs on in a file of its rank."""
    node = ray.get_runtime_context().get_node_id()
    (Path(directory) / str(worker.rank)).write_text(node)


@pytest.mark.parametrize("group", ["samplers", "trainers"])
def test_training_workers_start_on_their_group(
    groups: dict[str, str], tmp_path: Path, group: str
) -> None:
    arguments: dict[str, Any] = {"directory": str(tmp_path)}
    training.fit(
        note_place,
        arguments,
        workers=WorkerSettings(2, 1.0, 0.0, 0, group),
        storage=open_directory(str(tmp_path / "run")),
        on_metrics=lambda values: None,
    )
    places = {(tmp_path / rank).read_text() for rank in ("0", "1")}
    assert places == {groups[group]}


def test_an_engine_shares_the_device_of_a_training_worker(groups: dict[str, str]) -> None:
    class TrainingWorker:
        def device(self) -> Device:
            return own_device()

    workers: list[Any] = [
        ray.remote(TrainingWorker).options(num_gpus=1, label_selector=on_group("trainers")).remote()
        for _ in range(2)
    ]
    devices: list[Device] = ray.get([worker.device.remote() for worker in workers])
    assert {device.node_id for device in devices} == {groups["trainers"]}
    assert {device.visible for device in devices} == {"0", "1"}
    # Of a kind that would else be given a GPU of its own, of which there is none left there.
    spec = replace(FAKE, num_gpus=1.0, node_group="samplers")
    for device in devices:
        engine = start_engine(replace(spec, beside=device), "none", f"engine-{device.visible}")
        found = engine.handle.__ray_call__.remote(
            lambda _: (
                ray.get_runtime_context().get_node_id(),  # type: ignore[no-untyped-call]
                os.environ["CUDA_VISIBLE_DEVICES"],
            )
        )
        assert ray.get(found) == (device.node_id, device.visible)
        engine.kill()
    for worker in workers:
        ray.kill(worker)
