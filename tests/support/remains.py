"""What a run has left on a machine after its end."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray.util.placement_group import placement_group_table

_WAIT_SECONDS = 60
"""Ray ends a job's actors some seconds after its driver."""
_OF_RAY_ITSELF = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass(frozen=True)
class Before:
    """What was there before a run."""

    files: frozenset[str]
    processes: frozenset[int]

    def remains(self, cluster: str) -> list[str]:
        """What has come since and stays, in the cluster and on this machine, each in words."""
        end = time.monotonic() + _WAIT_SECONDS
        while (found := self._found(cluster)) and time.monotonic() < end:
            time.sleep(1)
        return found

    def _found(self, cluster: str) -> list[str]:
        files = sorted(_files() - self.files)
        processes = [
            f"process {pid}: {name}" for pid, name in _processes() if pid not in self.processes
        ]
        return [*files, *processes, *_of_the_cluster(cluster)]


def before() -> Before:
    """What is there now."""
    return Before(frozenset(_files()), frozenset(pid for pid, _ in _processes()))


def _files() -> set[str]:
    """Temporary ones that are ours, and shared memory."""
    ours = {str(path) for path in Path(tempfile.gettempdir()).glob("*charactertrain*")}
    return ours | {str(path) for path in Path("/dev/shm").iterdir()}


def _processes() -> list[tuple[int, str]]:
    """Drivers, engines and whatever else Ray's workers do for a run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        is_worker = words[0].startswith("ray::") and not words[0].startswith(_OF_RAY_ITSELF)
        is_engine = words[0].startswith("VLLM::")
        if is_worker or is_engine or words[1:3] == ["-m", "charactertrain"]:
            found.append((process.pid, " ".join(words)[:80]))
    return found


def _of_the_cluster(cluster: str) -> list[str]:
    ray.init(address=cluster, log_to_driver=False, logging_level="ERROR")
    try:
        actors = [f"actor {actor['name']}" for actor in ray.util.list_named_actors(True)]
        groups = [
            f"placement group {key}"
            for key, group in placement_group_table().items()
            if group["state"] != "REMOVED"
        ]
    finally:
        ray.shutdown()
    return [*actors, *groups]
