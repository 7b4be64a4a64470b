"""A machine that is taken away after a notice, as spot machines are: its group saves in time."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from charactertrain.runtime import training
from charactertrain.runtime.training import WorkerSettings
from charactertrain.runtime.worker import Worker, checkpoint_is_due
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_STEPS = 200
NOTICE_SECONDS = 12


@pytest.fixture(name="cluster")
def head_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster whose head has no room for workers."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def count(worker: Worker, directory: str) -> None:
    """Steps of a tenth of a second; leaves a line with where it begins, and where it saves."""
    first = 0
    with worker.last_checkpoint() as checkpoint:
        if checkpoint is not None:
            first = int((checkpoint / "step.txt").read_text())
    log = Path(directory) / "log.txt"

    def note(event: str, step: int) -> None:
        node = ray.get_runtime_context().get_node_id()
        with log.open("a") as file:
            file.write(json.dumps([event, step, node]) + "\n")

    note("begins", first)
    for step in range(first, NUM_STEPS):
        time.sleep(0.1)
        worker.send({"step": step + 1})
        if checkpoint_is_due(worker, step + 1, every=10**6, num_steps=NUM_STEPS):
            worker.report_checkpoint(
                lambda path, text=str(step + 1): (path / "step.txt").write_text(text),
                {"step": step + 1},
            )
            note("saved", step + 1)
    note("ends", NUM_STEPS)


def give_notice(cluster: Cluster, node_id: str) -> None:
    """Tell the cluster that a node will be taken away. When its time is over, Ray leaves it."""
    accepted, reason = GcsClient(address=cluster.address).drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "a test",
        int((time.time() + NOTICE_SECONDS) * 1000),
    )
    assert accepted, reason


def events(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_group_saves_once_when_its_node_is_about_to_go(cluster: Cluster, tmp_path: Path) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    log, lines = tmp_path / "log.txt", list[dict[str, Any]]()

    def on_metrics(values: dict[str, Any]) -> None:
        if not lines:
            ((_, _, node),) = events(log)
            give_notice(cluster, node)
        lines.append(values)

    training.fit(
        count,
        {"directory": str(tmp_path)},
        workers=WorkerSettings(1, 1.0, 0.0, 0, None),
        storage=open_directory(str(tmp_path)),
        on_metrics=on_metrics,
    )
    found = events(log)
    assert [name for name, _, _ in found] == ["begins", "saved", "begins", "ends"]
    (_, begun, node), (_, saved, _), (_, resumed, other), _ = found
    assert begun == 0 < saved == resumed
    assert node != other
    # Until its time was over, it was at work: the steps after the checkpoint came twice.
    steps = [line["step"] for line in lines if "step" in line]
    assert steps.count(saved) == 1
    assert steps.count(saved + 1) == 2
    assert steps[-1] == NUM_STEPS
