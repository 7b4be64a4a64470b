"""A multirun whose points are jobs: how many at a time, which again, and what it comes to."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jobs_server import RUN, FakeJob, JobsServer, run_on, succeed, wait_until
from multirun import Multirun

from charactertrain.artifacts import Identity, Outcome, commit
from charactertrain.storage import open_directory
from launch.clusters import Job
from launch.runs import compose_run

ROOT = Path(__file__).parents[2]


Sweeping = Multirun[JobsServer]


@pytest.fixture(name="sweep")
def sweep_of_this_cluster(server: JobsServer, tmp_path: Path) -> Sweeping:
    """Multiruns against the cluster."""
    launcher = ("hydra/launcher=ray_jobs", "hydra.launcher.poll_seconds=0.05")
    return Sweeping(tmp_path, server, (*RUN, *launcher, f"run.dir={tmp_path}/kl"))


def end_with(status: str, exit_code: int | None, log: str = "") -> Callable[[FakeJob], None]:
    def end(job: FakeJob) -> None:
        job.status, job.exit_code, job.log = status, exit_code, log

    return end


def points_of(server: JobsServer) -> Sequence[str]:
    return [job.body["metadata"]["run_dir"].rpartition("/")[2] for job in server.jobs.values()]


def test_each_point_is_a_job_with_a_run_directory_of_its_own(sweep: Sweeping) -> None:
    status, output = sweep.run("policy.kl.coef=0.02,0.05", "seed=1,2")
    assert status == 0, output
    assert points_of(sweep.server) == [
        f"experiment=smoke,policy.kl.coef={coef},seed={seed}"
        for coef in ("0.02", "0.05")
        for seed in (1, 2)
    ]
    body = next(iter(sweep.server.jobs.values())).body
    # The job is a run like any other: its command composes to the same fingerprint.
    arguments = body["entrypoint"].split()
    assert arguments[:3] == ["python", "-m", "charactertrain"]
    assert "-m" not in arguments[3:]
    assert "hydra/launcher=ray_jobs" not in arguments
    # One group on wandb, named after the sweep's directory.
    groups = {shlex.split(job.body["entrypoint"])[-1] for job in sweep.server.jobs.values()}
    (group,) = groups
    assert re.fullmatch(r"logging\.group='[^']+'", group)
    assert (sweep.directory / "multirun" / "sweep.html").is_file()


def test_a_points_command_composes_to_its_own_run(sweep: Sweeping) -> None:
    sweep.run("seed=3", "constitution=claude,demo")
    for job in sweep.server.jobs.values():
        composed = compose_run(shlex.split(job.body["entrypoint"])[3:], name="any")
        assert composed.fingerprint == job.body["metadata"]["fingerprint"]
        assert composed.directory == job.body["metadata"]["run_dir"]


def test_no_more_jobs_run_at_a_time_than_asked_for(sweep: Sweeping) -> None:
    def finish_slowly(job: FakeJob) -> None:
        job.status = "SUCCEEDED" if job.num_asked > 3 else "RUNNING"

    sweep.server.step = finish_slowly
    status, output = sweep.run("seed=1,2,3,4,5", "hydra.launcher.max_concurrent=2")
    assert status == 0, output
    assert len(sweep.server.jobs) == 5
    assert sweep.server.max_running == 2


def test_the_objective_is_read_from_the_log_where_the_run_cannot_be_read(sweep: Sweeping) -> None:
    def finish(job: FakeJob) -> None:
        seed = job.body["entrypoint"].partition("seed=")[2][:1]
        job.status, job.log = "SUCCEEDED", f"objective: 0.{seed}\n"

    sweep.server.step = finish
    _, output = sweep.run("seed=1,3,2")
    assert "seed=3: finished: objective 0.3000" in output
    page = (sweep.directory / "multirun" / "sweep.html").read_text()
    assert "Best: point 1, <b>experiment=smoke,seed=3</b>, objective +0.3000" in page
    assert "judge it by a run with another seed" in page
    assert "3 finished points have no measures here" in page


def test_a_broken_job_goes_on_in_another_and_not_for_ever(sweep: Sweeping) -> None:
    sweep.server.step = end_with("FAILED", 137)
    status, output = sweep.run("seed=1", "hydra.launcher.max_retries=2")
    assert status == 1
    first, *others = sweep.server.jobs
    assert others == [f"{first}-2", f"{first}-3"]
    assert "failed: exit status 137" in output
    assert f"python -m launch.submit logs {first}-3" in output


def test_a_refusal_is_not_tried_again_and_other_points_go_on(sweep: Sweeping) -> None:
    def refuse_the_first(job: FakeJob) -> None:
        is_first = "seed=1" in job.body["entrypoint"]
        job.status, job.exit_code = ("FAILED", 2) if is_first else ("SUCCEEDED", 0)

    sweep.server.step = refuse_the_first
    status, output = sweep.run("seed=1,2")
    assert status == 1
    assert len(sweep.server.jobs) == 2
    assert "seed=2: finished" in output
    page = (sweep.directory / "multirun" / "sweep.html").read_text()
    assert "1 failed, 1 finished" in page


@pytest.mark.slow
def test_a_longer_sweep_runs_only_what_is_new(sweep: Sweeping) -> None:
    sweep.run("seed=1,2")
    status, output = sweep.run("seed=3,1,2", "policy.kl.coef=0.3")
    assert status == 0, output
    assert len(sweep.server.jobs) == 5
    sweep.run("seed=3,1,2")
    assert [name[-6:] for name in points_of(sweep.server)][-1] == "seed=3"
    assert len(sweep.server.jobs) == 6


@pytest.mark.slow
def test_a_point_whose_run_is_finished_is_not_submitted(sweep: Sweeping) -> None:
    """Also where the cluster has forgotten its job: the run directory remembers."""
    sweep.run("seed=1", "run.until=traits")
    job = next(iter(sweep.server.jobs.values()))
    run = compose_run(
        [*RUN, "seed=1", "run.until=traits", f"run.dir={sweep.directory}/kl"], name=None
    )
    directory = open_directory(job.body["metadata"]["run_dir"]).child("traits")
    identity = identity_of_traits()
    assert identity.fingerprint == run.fingerprint
    directory.write_bytes("x", b"")
    commit(
        directory, identity, Outcome(("x",)), resolved_config={}, code_version="", wall_seconds=0.0
    )
    sweep.server.jobs.clear()
    status, output = sweep.run("seed=1", "run.until=traits")
    assert status == 0, output
    assert not sweep.server.jobs
    assert "is finished already" in output


def identity_of_traits() -> Identity:
    from charactertrain.__main__ import CONSTITUTIONS
    from charactertrain.trait_file import load_constitution

    constitution = load_constitution("demo", shipped_dir=CONSTITUTIONS)
    return Identity("traits", {"constitution": constitution.model_dump(mode="json")}, {})


@pytest.mark.slow
def test_a_sweep_that_was_cut_off_follows_its_jobs(sweep: Sweeping) -> None:
    sweep.server.step = run_on
    with sweep.start("seed=1,2,3", "hydra.launcher.max_concurrent=2") as process:
        wait_until(lambda: len(sweep.server.jobs) == 2, seconds=60)
        process.kill()
    sweep.server.step = end_with("SUCCEEDED", 0)
    status, output = sweep.run("seed=1,2,3", "hydra.launcher.max_concurrent=2")
    assert status == 0, output
    assert len(sweep.server.jobs) == 3


@pytest.mark.parametrize("cancel", [False, True])
def test_an_interrupt_cancels_only_if_asked(sweep: Sweeping, cancel: bool) -> None:
    sweep.server.step = run_on
    option = f"hydra.launcher.cancel_on_interrupt={str(cancel).lower()}"
    with sweep.start("seed=1,2", option) as process:
        wait_until(
            lambda: [job.status for job in sweep.server.jobs.values()] == ["RUNNING"] * 2,
            seconds=60,
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert len(sweep.server.stopped) == (2 if cancel else 0)


def test_a_job_that_cannot_be_stopped_does_not_keep_the_others_from_it(sweep: Sweeping) -> None:
    sweep.server.step = run_on
    option = "hydra.launcher.cancel_on_interrupt=true"
    with sweep.start("seed=1,2,3", option) as process:
        wait_until(
            lambda: [job.status for job in sweep.server.jobs.values()] == ["RUNNING"] * 3,
            seconds=60,
        )
        sweep.server.unstoppable = next(iter(sweep.server.jobs))
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert f"{sweep.server.unstoppable} could not be stopped" in output
    assert len(sweep.server.stopped) == 2


def test_a_package_that_the_cluster_forgot_is_sent_again(sweep: Sweeping) -> None:
    def forget(job: FakeJob) -> None:
        sweep.server.packages.clear()
        succeed(job)

    sweep.server.step = forget
    status, output = sweep.run("seed=1,2", "hydra.launcher.max_concurrent=1")
    assert status == 0, output
    assert (len(sweep.server.jobs), sweep.server.num_uploads) == (2, 2)


def test_points_that_are_one_run_are_one_job(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1", "cluster.max_failures=1,2")
    assert status == 0, output
    assert "[1] experiment=smoke,seed=1: differs in nothing that decides a result" in output
    assert len(sweep.server.jobs) == 1


def test_points_of_different_runs_in_one_directory_are_refused(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1", "run.until=traits,prompts")
    assert status == 2
    assert "two points of the sweep that are not the same run" in output
    assert not sweep.server.jobs


def test_a_point_that_is_not_valid_stops_the_sweep_before_any_job(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1", "policy.group_size=4,0")
    assert status == 2
    assert "policy.group_size" in output
    assert not sweep.server.jobs


def test_numbers_that_would_run_nothing_are_refused(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1,2", "hydra.launcher.max_concurrent=0")
    assert status == 2
    assert "expected max_concurrent of at least 1" in output
    assert not sweep.server.jobs


def test_a_dry_sweep_submits_nothing(sweep: Sweeping) -> None:
    status, output = sweep.run("seed=1,2", "run.dry=true")
    assert status == 0, output
    assert "nothing was submitted" in output
    assert not sweep.server.jobs


_CLIMBER = """
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper


class Climber(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        from hydra.core.plugins import Plugins

        self.fixed = list(config.hydra.overrides.task)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        number, best = 0, 1
        for _ in range(3):
            batch = [[*arguments, f"seed={best}"], [*arguments, f"seed={best + 2}"]]
            if number:
                batch = batch[1:]
            returns = self.launcher.launch(batch, initial_job_idx=number)
            number += len(batch)
            best += 2 * (returns[-1].return_value > 0.2)
        print(f"climbed to {best}")


@dataclass
class Config:
    _target_: str = "hydra_plugins.climber.Climber"


ConfigStore.instance().store(group="hydra/sweeper", name="climber", node=Config)
"""


def test_a_sweeper_of_another_distribution_reads_the_objectives_batch_by_batch(
    sweep: Sweeping, tmp_path: Path
) -> None:
    """The namespace hydra_plugins is shared, as with an installed optimising sweeper."""
    plugins = tmp_path / "elsewhere" / "hydra_plugins"
    plugins.mkdir(parents=True)
    (plugins / "climber.py").write_text(_CLIMBER)

    def finish(job: FakeJob) -> None:
        seed = int(job.body["entrypoint"].partition("seed=")[2].split()[0])
        job.status, job.log = "SUCCEEDED", f"objective: {seed / 10}\n"

    sweep.server.step = finish
    status, output = sweep.run("hydra/sweeper=climber", python_path=str(plugins.parent))
    assert status == 0, output
    assert "climbed to 7" in output
    seeds = [name.partition("seed=")[2] for name in points_of(sweep.server)]
    assert seeds == ["1", "3", "5", "7"]
    page = (tmp_path / "multirun" / "sweep.html").read_text()
    assert "Sweep of 4 points" in page
    assert "Best: point 3" in page


def test_the_basic_launcher_gives_each_point_a_run_directory(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "charactertrain", "-m", "experiment=smoke", "seed=1,2"]
    done = subprocess.run(
        [*arguments, "run.dry=true"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=True,
    )
    for seed in (1, 2):
        assert f"{tmp_path}/runs/smoke/experiment=smoke,seed={seed}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["multirun"]


def job(exit_code: int | None, error_type: str | None = None) -> Job:
    return Job("id", "FAILED", "", error_type, exit_code, {}, None, None)


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        (job(1, "JOB_ENTRYPOINT_COMMAND_ERROR"), True),
        (job(-9), True),
        (job(None, "JOB_SUPERVISOR_ACTOR_DIED"), True),
        (job(75), True),
        (job(2), False),
        (job(130), False),
        (job(None, "RUNTIME_ENV_SETUP_FAILURE"), False),
        (job(None, "DeadlineExceeded"), False),
        (job(None, "SubmissionFailed"), True),
    ],
)
def test_what_the_run_refuses_is_not_retried(failed: Job, expected: bool) -> None:
    assert failed.is_retryable is expected
