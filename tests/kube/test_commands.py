"""Commands in the manifests do what they are there for."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kube_manifests import Manifest, Pod, one, pods

from charactertrain.storage import Directory

Build = Callable[[Path | str], list[Manifest]]


def drained(documents: list[Manifest]) -> list[tuple[Pod, str]]:
    """Pods that say goodbye, and how."""
    return [
        (pod, pod.container["lifecycle"]["preStop"]["exec"]["command"][2])
        for pod in pods(documents)
        if "lifecycle" in pod.container
    ]


@pytest.mark.parametrize("name", ["multi-node", "spot", "kueue", "gcs-ft", "hardened"])
def test_pods_that_end_tell_ray_in_time(build: Build, name: str) -> None:
    # Ray's command line, which takes two seconds to import.
    from ray.scripts.scripts import drain_node

    found = drained(build(f"overlays/{name}"))
    assert {pod.group for pod, _ in found} == {"samplers", "trainers"}
    for pod, command in found:
        timeout, wait, *_ = (int(n) for n in re.findall(r"(?:timeout|sleep) (\d+)", command))
        drain, _, sleep = command.removeprefix(f"timeout {timeout} ").partition(" && ")
        arguments = shlex.split(drain)
        assert arguments[:2] == ["ray", "drain-node"]
        context = drain_node.make_context("drain-node", arguments[2:])
        assert context.params["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
        assert context.params["deadline_remaining_seconds"] == wait
        assert sleep == f"sleep {wait}"
        # What is left is for the raylet to end in.
        assert timeout + wait < pod.spec["terminationGracePeriodSeconds"]


def test_a_trainer_has_time_for_a_step_and_a_checkpoint(build: Build) -> None:
    waits = {
        pod.group: int(command.split()[-1]) for pod, command in drained(build("overlays/spot"))
    }
    assert waits["trainers"] >= 240 > 30 > waits["samplers"]


def test_a_run_is_exported_to_an_object_store(
    build: Build, open_s3: Callable[[str], Directory], s3_port: int, tmp_path: Path
) -> None:
    job = one(build("export"), "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    source, target = container["args"]
    assert source.startswith("/shared/") and target.startswith("s3://")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "manifest.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("seed: 1")
    bucket = open_s3("exported")
    here = f"{bucket.uri}?endpoint_override=http://127.0.0.1:{s3_port}&scheme=http"
    command = [sys.executable, *container["command"][1:], str(tmp_path), here]
    # With the credentials of the fixture, which are in the environment as they are in the Job's.
    subprocess.run(command, check=True)
    assert bucket.read_bytes("config.yaml") == b"seed: 1"
    assert bucket.child("pairs").read_bytes("manifest.json") == b"{}"
