"""Runs that tests start as commands on a Ray cluster, disturb, and compare with others."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from charactertrain import artifacts
from charactertrain.records import Response
from charactertrain.storage import open_directory

SIMULATED = (
    "sampler=fake",
    # Some seconds for the stage, so that there is something to disturb.
    "+sampler.latency={prefill_tokens_per_second: 20000, seconds_per_step: 0.02, "
    "seconds_per_sequence: 0.0}",
)
"""Fake engines that take their time."""
_TIMEOUT_SECONDS = 240
_SETTINGS = (
    "experiment=smoke",
    "model.precision=fp32",
    "cluster=ray",
    "cluster.num_workers=1",
    "cluster.gpus_per_worker=0",
)


@dataclass(frozen=True)
class Command:
    """The command of a run on a cluster."""

    cluster: str
    """Its address."""
    overrides: tuple[str, ...]
    prefix: tuple[str, ...] = ()
    """What comes before Python, such as to run on another machine."""

    def start(self, directory: Path) -> "subprocess.Popen[bytes]":
        """The run, started; its output goes beside its directory."""
        command = [*self.prefix, sys.executable, "-m", "charactertrain", *_SETTINGS]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": self.cluster}
        with (directory.parent / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [*command, *self.overrides, f"run.dir={directory}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def finish(self, process: "subprocess.Popen[bytes]", directory: Path) -> None:
        """Wait for a run that must succeed."""
        try:
            status = process.wait(timeout=_TIMEOUT_SECONDS)
        finally:
            process.kill()
        assert status == 0, (directory.parent / "log.txt").read_text()[-3000:]

    def run_to_responses(self, directory: Path) -> "Undisturbed":
        """A run that nobody disturbs."""
        directory.parent.mkdir(parents=True, exist_ok=True)
        self.finish(self.to_responses().start(directory), directory)
        return Undisturbed(directory, responses(directory))

    def to_responses(self) -> "Command":
        """The same up to the responses."""
        return Command(self.cluster, (*self.overrides, "run.until=responses"), self.prefix)

    def run_disturbed(
        self,
        undisturbed: "Undisturbed",
        directory: Path,
        disturb: Callable[["subprocess.Popen[bytes]"], None],
        *,
        delay_seconds: float,
    ) -> dict[str, Response]:
        """The responses of a run on the same prompts that is disturbed after its first rows.

        A driver that was killed is started again.
        """
        for stage in ("traits", "prompts"):
            shutil.copytree(undisturbed.directory / stage, directory / stage)
        process = self.to_responses().start(directory)
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not has_begun(directory):
            assert process.poll() is None, (directory.parent / "log.txt").read_text()[-3000:]
            assert time.monotonic() < deadline, "the run never began"
            time.sleep(0.02)
        time.sleep(delay_seconds)
        disturb(process)
        if process.wait(timeout=_TIMEOUT_SECONDS) == -signal.SIGKILL:
            process = self.to_responses().start(directory)
        self.finish(process, directory)
        return responses(directory)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed: its prompts, to start others from, and its responses."""

    directory: Path
    responses: dict[str, Response]


def responses(directory: Path) -> dict[str, Response]:
    """The run's responses by id, none of them twice."""
    place = open_directory(str(directory / "responses"))
    manifest = artifacts.require(place, "responses")
    rows: Sequence[Response] = artifacts.read_rows(place, manifest, "responses", Response)
    by_id = {row.response_id: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def has_begun(directory: Path) -> bool:
    """Whether a chunk of the responses is written."""
    return any((directory / "responses" / "responses").glob("part-*.parquet"))
