"""A multirun whose points are RayJobs; test_sweeps has what all sweeps have in common."""

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs_server import wait_until
from kube_server import Document, KubeServer, fail, run_on, succeed
from multirun import Multirun

from launch.runs import compose_run

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


def test_a_dry_sweep_applies_nothing(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1,2", "run.dry=true")
    assert status == 0, output
    assert "nothing was submitted" in output
    assert not sweep.server.applied


def test_an_overlay_is_asked_for(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1", "hydra.launcher.overlay=null")
    assert status == 2
    assert "no overlay is named" in output
