"""Leases between real processes: racing, killed, stopped and woken again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lease_worker
import pytest
import ray

from charactertrain.exceptions import ArtifactError, UnavailableError
from charactertrain.leases import hold
from charactertrain.storage import Directory, open_directory

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(name="start")
def starter(tmp_path: Path) -> Iterator[Start]:
    """Starts processes that want the lease of one directory, and ends them."""
    processes: list[subprocess.Popen[str]] = []

    def start(*, seconds: float, repeats: int, work_seconds: float) -> "subprocess.Popen[str]":
        arguments = [str(tmp_path), str(seconds), str(repeats), str(work_seconds)]
        process = subprocess.Popen(
            [sys.executable, lease_worker.__file__, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(process: "subprocess.Popen[str]", word: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in iter(process.stdout.readline, ""):
        lines.append(line.strip())
        if line.startswith(word):
            return lines
    raise AssertionError(f"ended without {word!r}: {lines}")


def test_of_racing_processes_one_works_at_a_time(start: Start, tmp_path: Path) -> None:
    # Each would fail on the other's mark.
    racers = [start(seconds=20, repeats=4, work_seconds=0.02) for _ in range(4)]
    for racer in racers:
        output, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0, output
        assert output.count("held") == 4
    log = (tmp_path / "log").read_text().split()
    assert sorted(log) == sorted(str(racer.pid) for racer in racers for _ in range(4))


def test_a_killed_holder_is_overtaken_by_one_of_those_who_wait(
    start: Start, tmp_path: Path
) -> None:
    holder = start(seconds=2, repeats=1, work_seconds=600)
    wait_for(holder, "held")
    waiting = [start(seconds=2, repeats=1, work_seconds=0.1) for _ in range(3)]
    for process in waiting:
        lines = wait_for(process, "process")
        assert f"process {holder.pid} on " in lines[-1]
        assert lines[-1].endswith(": waiting for it")
    holder.kill()
    killed_at = time.monotonic()
    (tmp_path / "at-work").unlink()
    for process in waiting:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert time.monotonic() - killed_at > 1.5
    assert len((tmp_path / "log").read_text().split()) == 3


def test_a_holder_that_lives_is_not_overtaken(start: Start) -> None:
    holder = start(seconds=1.5, repeats=1, work_seconds=5)
    wait_for(holder, "held")
    waiting = start(seconds=1.5, repeats=1, work_seconds=0)
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, output
    assert holder.wait(timeout=60) == 0


def test_a_holder_that_was_stopped_and_overtaken_stops_itself(start: Start, tmp_path: Path) -> None:
    holder = start(seconds=2, repeats=1, work_seconds=600)
    wait_for(holder, "held")
    holder.send_signal(signal.SIGSTOP)
    (tmp_path / "at-work").unlink()
    other = start(seconds=2, repeats=1, work_seconds=4)
    wait_for(other, "held")
    holder.send_signal(signal.SIGCONT)
    # Within a beat, and not after 600 s of work.
    output, _ = holder.communicate(timeout=30)
    assert holder.returncode == 2
    assert f"process {other.pid} on" in output
    assert "took over" in output
    assert other.wait(timeout=60) == 0


def test_a_released_lease_is_taken_at_once(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path))
    started = time.monotonic()
    for _ in range(3):
        with hold(directory, say=pytest.fail, seconds=600):
            pass
    assert time.monotonic() - started < 30


def test_an_error_releases_the_lease(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path))
    with pytest.raises(RuntimeError, match="no power"), hold(directory, say=print, seconds=600):
        raise RuntimeError("no power")
    with hold(directory, say=pytest.fail, seconds=600):
        pass


def test_a_lease_that_was_begun_and_not_written_expires(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path))
    directory.create("leases/000007.json", b'{"host": "no')
    # What an editor or a file system leaves beside it is no lease.
    for name in ("leases/000009.json~", "leases/notes.txt", "leases/old/000010.json"):
        directory.create(name, b"")
    said: list[str] = []
    with hold(directory, say=said.append, seconds=0.5):
        assert directory.exists("leases/000008.json")
    assert said == [f"a process is at work in {tmp_path}: waiting for it"]


def test_an_interrupt_stays_an_interrupt(tmp_path: Path) -> None:
    directory, before = open_directory(str(tmp_path)), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), hold(directory, say=print, seconds=600):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_lease_that_is_lost_ends_a_wait_for_ray(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path))
    never = ray.remote(lambda: time.sleep(600)).options(num_cpus=0).remote()
    overtake = threading.Timer(1.0, lambda: directory.create("leases/000002.json", b"{}"))
    overtake.start()
    with (
        pytest.raises(UnavailableError, match="the lease to work here was lost"),
        hold(directory, say=print, seconds=1.0),
    ):
        ray.get(never, timeout=60)
    overtake.join()
    ray.cancel(never, force=True)


def test_a_lease_that_was_overtaken_is_not_released(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path))
    with (
        pytest.raises(ArtifactError, match="a process took over"),
        hold(directory, say=print, seconds=600) as lease,
    ):
        directory.create("leases/000002.json", b"")
        lease.check()
    assert directory.read_bytes("leases/000002.json") == b""


def test_an_object_store_has_no_leases(open_s3: Callable[[str], Directory]) -> None:
    with pytest.raises(ArtifactError, match="not on a local disk"), hold(open_s3("x"), say=print):
        pass
