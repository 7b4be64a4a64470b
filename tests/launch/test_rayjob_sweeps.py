"""A multirun whose points are RayJobs; test_sweeps has what all sweeps have in common."""

import asyncio
import shlex
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from jobs_server import wait_until
from kube_server import Document, KubeServer, fail, run_on, succeed
from multirun import Multirun

from launch import submission
from launch.kuberay.target import KubeRayTarget, RayJobSettings
from launch.runs import compose_run
from launch.submission import submit_run
from launch.sweeps import Point, Sweep, SweepSettings

Step = Callable[[KubeServer, Document], None]

Sweeping = Multirun[KubeServer]


@pytest.fixture(name="sweep")
def sweep_of_this_cluster(kube: KubeServer, tmp_path: Path) -> Sweeping:
    """Multiruns against the cluster."""
    launcher = ("hydra/launcher=rayjob", "hydra.launcher.overlay=cpu-demo")
    run = ("hydra.launcher.poll_seconds=0.05", "experiment=smoke", "run.dir=/shared/runs/kl")
    return Sweeping(tmp_path, kube, (*launcher, *run))


def finish_with_an_objective(server: KubeServer, job: Document) -> None:
    seed = job["spec"]["entrypoint"].partition("seed=")[2][:1]
    server.print_line(job, f"objective: 0.{seed}", second=0)
    succeed(server, job)


def step_of_the_first(first: Step) -> Step:
    """The point of seed 1 fares otherwise than the others."""

    def step(server: KubeServer, job: Document) -> None:
        is_first = "seed=1" in job["spec"]["entrypoint"]
        (first if is_first else succeed)(server, job)

    return step


def test_each_point_is_a_rayjob_with_the_overlays_overrides(sweep: Sweeping) -> None:
    sweep.server.step = finish_with_an_objective
    status, output = sweep.run("seed=1,3")
    assert status == 0, output
    assert len(sweep.server.rayjobs) == 2
    # What surrounds them is applied once.
    assert sweep.server.applied == ["PersistentVolumeClaim", "RayJob", "RayJob"]
    for seed, job in zip((1, 3), sweep.server.rayjobs.values(), strict=True):
        annotations = job["metadata"]["annotations"]
        directory = f"/shared/runs/kl/experiment=smoke,seed={seed}"
        assert annotations["charactertrain.dev/run-dir"] == directory
        overrides = shlex.split(job["spec"]["entrypoint"])[3:]
        assert "cluster=ray" in overrides
        composed = compose_run(overrides, name="any")
        assert composed.directory == directory
        assert composed.fingerprint == annotations["charactertrain.dev/fingerprint"]
    page = (sweep.directory / "multirun" / "sweep.html").read_text()
    assert "Best: point 1, <b>experiment=smoke,seed=3</b>, objective +0.3000" in page


@pytest.mark.slow
def test_a_broken_rayjob_goes_on_in_another_and_a_refusal_does_not(sweep: Sweeping) -> None:
    sweep.server.step = step_of_the_first(fail(137))
    status, output = sweep.run("seed=1,2")
    assert status == 1
    first, second, third = sweep.server.rayjobs
    assert third == f"{first}-2"
    assert second != first
    assert f"logs {third} --kuberay" in output
    sweep.server.step = fail(2)
    status, output = sweep.run("seed=4")
    assert status == 1
    assert len(sweep.server.rayjobs) == 4


def test_a_rayjob_that_someone_deletes_is_not_made_again(sweep: Sweeping) -> None:
    def go_away(server: KubeServer, job: Document) -> None:
        run_on(server, job)
        if len(server.rayjobs) == 2:
            server.objects.pop(("rayjobs", job["metadata"]["name"]))
            server.deleted.append(job["metadata"]["name"])

    sweep.server.step = step_of_the_first(go_away)
    status, output = sweep.run("seed=1,2")
    assert status == 1
    assert "seed=1: stopped: its RayJob was deleted" in output
    assert len(sweep.server.rayjobs) == 1


@pytest.mark.slow
def test_a_sweep_that_was_cut_off_follows_its_rayjobs(sweep: Sweeping) -> None:
    sweep.server.step = run_on
    with sweep.start("seed=1,2,3", "hydra.launcher.max_concurrent=2") as process:
        wait_until(lambda: len(sweep.server.rayjobs) == 2, seconds=60)
        process.kill()
    sweep.server.step = succeed
    status, output = sweep.run("seed=1,2,3", "hydra.launcher.max_concurrent=2")
    assert status == 0, output
    assert len(sweep.server.rayjobs) == 3


@pytest.mark.parametrize("cancel", [False, True])
def test_an_interrupt_cancels_only_if_asked(sweep: Sweeping, cancel: bool) -> None:
    sweep.server.step = run_on
    option = f"hydra.launcher.cancel_on_interrupt={str(cancel).lower()}"
    with sweep.start("seed=1,2", option) as process:
        wait_until(
            lambda: ["status" in job for job in sweep.server.rayjobs.values()] == [True] * 2,
            seconds=60,
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert len(sweep.server.deleted) == (2 if cancel else 0)


class Sweeper:
    """A sweep of two points in this process, one at a time; of the second there is a RayJob."""

    def __init__(self) -> None:
        self.target = KubeRayTarget(RayJobSettings("cpu-demo", None, None, None, (), is_alone=True))
        self.said: list[str] = []
        self.points = []
        for seed in (1, 2):
            given = ["experiment=smoke", f"seed={seed}", f"run.dir=/shared/runs/{seed}"]
            run = compose_run(self.target.overrides(given), name=f"seed-{seed}")
            self.points.append(Point(seed, f"seed={seed}", run))

    async def run(self, while_it_runs: Callable[[], bool]) -> None:
        """Run, and cancel as an interrupt does as soon as the condition does not hold."""
        settings = SweepSettings(max_concurrent=1, max_retries=1, poll_seconds=0.05)
        async with self.target.connect() as submitter:
            sweep = Sweep(submitter, self.points, settings=settings, say=self.say)
            task = asyncio.create_task(sweep.run())
            while while_it_runs() and not task.done():
                await asyncio.sleep(0.02)
            if task.done():
                await task
                return
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await sweep.cancel()

    async def submit_second(self) -> str:
        """The RayJob's name."""
        run = self.points[1].run
        async with self.target.connect() as submitter:
            name, _ = await submit_run(submitter, run, again=False, say=self.said.append)
        return name

    def say(self, point: Point, line: str) -> None:
        self.said.append(f"[{point.number}] {line}")


def test_canceling_keeps_the_log_of_a_point_that_waits_for_its_retry(kube: KubeServer) -> None:
    kube.step = run_on
    sweep = Sweeper()
    name = asyncio.run(sweep.submit_second())
    num_asked = 0

    def fail_the_second(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        num_asked += job["metadata"]["name"] == name
        is_broken = job["metadata"]["name"] == name and num_asked > 2
        (fail(137) if is_broken else run_on)(server, job)

    kube.step = fail_the_second
    asyncio.run(sweep.run(lambda: sweep.points[0].state != "running"))
    assert sweep.points[1].state == "waiting"
    assert sweep.points[1].num_retries == 1
    assert list(kube.rayjobs) == [name]
    assert kube.deleted == [sweep.points[0].submission_id]


def test_a_sweep_waits_until_a_rayjob_that_is_being_deleted_is_gone(kube: KubeServer) -> None:
    kube.step = run_on
    sweep = Sweeper()
    name = asyncio.run(sweep.submit_second())
    kube.rayjobs[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z"
    num_asked = 0

    def go_away(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        num_asked += job["metadata"]["name"] == name
        if job["metadata"]["name"] != name:
            succeed(server, job)
        elif num_asked == 5:
            server.objects.pop(("rayjobs", name))

    kube.step = go_away
    asyncio.run(sweep.run(lambda: True))
    assert [point.state for point in sweep.points] == ["finished", "finished"]
    assert f"[1] waiting until what is being deleted is gone: {name}" in sweep.said
    assert f"{name}-2" in kube.rayjobs


def test_a_rayjob_that_does_not_go_away_holds_up_no_other_point(
    kube: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_DELETION_SECONDS", 0.1)
    kube.step = run_on
    sweep = Sweeper()
    name = asyncio.run(sweep.submit_second())
    kube.rayjobs[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z"
    kube.step = succeed_but(name)
    asyncio.run(sweep.run(lambda: True))
    assert [point.state for point in sweep.points] == ["finished", "failed"]
    assert "is still being deleted after" in sweep.points[1].reason


def succeed_but(name: str) -> Step:
    return lambda server, job: (run_on if job["metadata"]["name"] == name else succeed)(server, job)


def test_a_dry_sweep_applies_nothing(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1,2", "run.dry=true")
    assert status == 0, output
    assert "nothing was submitted" in output
    assert not sweep.server.applied


def test_an_overlay_is_asked_for(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1", "hydra.launcher.overlay=null")
    assert status == 2
    assert "no overlay is named" in output
