"""Jobs on a real Ray head with its dashboard and token authentication, all on loopback."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jobs_server
import pytest
from jobs_server import RUN

from charactertrain import artifacts
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "a-token-of-this-test-alone"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Head:
    """A Ray head, and the environment of its clients."""

    address: str
    environment: dict[str, str]

    def submit(self, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "launch.submit", *arguments]
        return self.run(command)

    def run(self, command: list[str], cwd: Path = ROOT) -> tuple[int, str]:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
        )
        return done.returncode, done.stdout


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=5)
    except urllib.error.HTTPError:
        return True  # It wants a token.
    except OSError:
        return False
    return True


@pytest.fixture(name="head", scope="module")
def ray_head() -> Iterator[Head]:
    """A head with two logical CPUs, for the tests of this module."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # Short: sockets lie in it, and their paths may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment.pop("RAY_ADDRESS", None)
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", f"--port={free_port()}"]
        command += [f"--temp-dir={temporary}", "--include-dashboard=true"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats"]
        with Path(temporary, "head.log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            end = time.monotonic() + 120
            while not answers(address):
                assert process.poll() is None, Path(temporary, "head.log").read_text()
                assert time.monotonic() < end, Path(temporary, "head.log").read_text()
                time.sleep(0.5)
            yield Head(address, {**environment, "RAY_ADDRESS": address})
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            finally:
                # What it started is in its session, and may outlive it.
                kill_what_is_left(process)


def kill_what_is_left(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the process group that the head began."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_run_is_submitted_followed_and_recognised(head: Head, tmp_path: Path) -> None:
    overrides = [*RUN, "sampler=fake", "run.until=traits", f"run.dir={tmp_path}/first"]
    status, output = head.submit(*overrides)
    assert status == 0, output
    assert "submitted first-" in output
    assert "3 traits" in output
    assert output.rstrip().endswith("finished")
    artifacts.require(open_directory(f"{tmp_path}/first/traits"), "traits")
    status, output = head.submit(*overrides)
    assert status == 0, output
    assert "is finished: nothing to do" in output
    assert head.submit("status", "first")[0] == 0
    assert "3 traits" in head.submit("logs", "first")[1]


def test_a_job_that_is_refused_ends_with_its_exit_status(head: Head, tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    (directory / "traits").mkdir(parents=True)
    (directory / "traits" / "manifest.json").write_text("{}")
    status, output = head.submit(*RUN, "sampler=fake", "run.until=traits", f"run.dir={directory}")
    assert status == 2, output
    assert "ArtifactError" in output
    # Once, and not again in the reason that Ray gives.
    assert output.count("ArtifactError") == 1
    assert "failed with exit status 2 (JOB_ENTRYPOINT_COMMAND_ERROR)" in output
    assert head.submit("status", "broken")[0] == 2


def test_a_job_that_waits_says_why(head: Head, tmp_path: Path) -> None:
    arguments = ["--driver-cpus", "64", *RUN, "sampler=fake", "run.until=traits", "seed=7"]
    arguments.append(f"run.dir={tmp_path}/waits")
    with jobs_server.command(
        [sys.executable, "-m", "launch.submit", *arguments],
        cwd=ROOT,
        env={**head.environment, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        reason = "pending: Job has not started yet. It may be waiting for resources"
        assert any(reason in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    assert head.submit("status", "waits")[0] == 3
    status, output = head.submit("stop", "waits")
    assert status == 0, output
    assert "Ray stops a job when it starts" in output


def test_a_wrong_token_and_a_missing_one_are_named(head: Head, tmp_path: Path) -> None:
    wrong = Head(head.address, {**head.environment, "RAY_AUTH_TOKEN": "another"})
    status, output = wrong.submit("list")
    assert (status, "does not take the token" in output) == (2, True), output
    environment = {**head.environment, "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    status, output = Head(head.address, environment).submit("list")
    assert (status, "asks for a token" in output) == (2, True), output


def test_a_sweep_runs_its_points_as_jobs(head: Head, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "charactertrain", "-m", "hydra/launcher=ray_jobs"]
    command += [*RUN, "sampler=fake", "run.until=traits", "hydra.launcher.poll_seconds=1"]
    command += [f"run.dir={tmp_path}/sweep", f"run.share={tmp_path}/share"]
    command += ["constitution=demo,claude", "hydra.launcher.max_concurrent=2"]
    status, output = head.run(command, cwd=tmp_path)
    assert status == 0, output
    points = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert points == [
        f"constitution={name},experiment=smoke,sampler=fake" for name in ("claude", "demo")
    ]
    assert len(list((tmp_path / "share" / "traits").iterdir())) == 2
    status, output = head.run(command, cwd=tmp_path)
    assert status == 0, output
    assert output.count("is finished already") == 2


def test_rays_own_command_submits_the_same_run(head: Head, tmp_path: Path) -> None:
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT), "--"]
    command += ["python", "-m", "charactertrain", *RUN, "sampler=fake", "run.until=traits"]
    command.append(f"run.dir={tmp_path}/plain")
    status, output = head.run(command)
    assert status == 0, output
    artifacts.require(open_directory(f"{tmp_path}/plain/traits"), "traits")
