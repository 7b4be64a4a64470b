"""Submitting a run as a RayJob: what is applied, what is recognised, how it ends."""

import os
import re
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Any

import pytest
from jobs_server import command, wait_until
from kube_server import CLAIM, RUN, Document, KubeServer, fail, run_on, set_status, succeed
from rich.console import Console

from charactertrain.exceptions import ConfigError
from launch import submission, submit
from launch.clusters import ClusterError
from launch.runs import compose_run


def only_rayjob(kube: KubeServer) -> tuple[str, Document]:
    assert len(kube.rayjobs) == 1
    return next(iter(kube.rayjobs.items()))


def test_a_run_is_applied_with_all_that_tells_what_it_is(
    kube: KubeServer, console: Console
) -> None:
    kube.step = succeed
    assert submit.run(RUN, console) == 0
    name, job = only_rayjob(kube)
    labels, annotations = job["metadata"]["labels"], job["metadata"]["annotations"]
    fingerprint = labels["charactertrain.dev/fingerprint"]
    assert name == f"first-{fingerprint[:12]}"
    assert labels["charactertrain.dev/run"] == "first"
    assert re.fullmatch(r"[\w.-]+", labels["charactertrain.dev/commit"])
    assert annotations["charactertrain.dev/run-dir"] == "/shared/runs/first"
    assert annotations["charactertrain.dev/code-version"].startswith("0.")
    assert kube.managers["rayjobs", name][".spec.entrypoint"] == "charactertrain"
    # The RayJob last, and nothing before all was checked.
    assert kube.checked == kube.applied == ["PersistentVolumeClaim", "RayJob"]
    assert f"{name} finished" in console.export_text()


def test_the_command_line_is_the_overlays_with_the_overrides_in_their_place(
    kube: KubeServer, console: Console
) -> None:
    kube.step = succeed
    submit.run([*RUN, "policy.kl.coef=0.3", "cluster.cpus_per_worker=2"], console)
    words = only_rayjob(kube)[1]["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "charactertrain"]
    keys = [word.partition("=")[0] for word in words[3:]]
    assert len(keys) == len(set(keys))
    assert {"cluster=ray", "experiment=smoke", "policy.kl.coef=0.3"} <= set(words)
    assert "cluster.cpus_per_worker=2" in words
    assert "run.dir=/shared/runs/first" in words


def test_a_dry_run_shows_what_would_be_applied(kube: KubeServer, console: Console) -> None:
    assert submit.run([*RUN, "run.dry=true"], console) == 0
    text = console.export_text()
    assert "RayJob         first-" in text
    assert f"beside it      PersistentVolumeClaim {CLAIM}" in text
    assert not kube.checked
    assert not kube.applied


@pytest.mark.parametrize(
    ("step", "expected", "said"),
    [
        (fail(2), 2, "failed with exit status 2 (AppFailed): Job entrypoint command failed"),
        (fail(-9), 137, "failed with exit status -9"),
        (
            fail(reason="DeadlineExceeded", message="The RayJob has passed the active"),
            1,
            "failed (DeadlineExceeded): The RayJob has passed the active",
        ),
        (fail(reason="ValidationFailed", message="no"), 1, "failed (ValidationFailed): no"),
        (lambda _, job: set_status(job, "Complete", "STOPPED"), 130, "is stopped: on request"),
    ],
)
def test_the_exit_status_is_the_jobs(
    kube: KubeServer, console: Console, step: Any, expected: int, said: str
) -> None:
    kube.step = step
    assert submit.run(RUN, console) == expected
    assert said in console.export_text()


def test_why_a_job_waits_is_said_once(kube: KubeServer, console: Console) -> None:
    num_asked = 0

    def wait(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        num_asked += 1
        name = job["metadata"]["name"]
        set_status(job, "Initializing", "", rayClusterName=f"{name}-abcde")
        waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
        container = {"name": "ray-head", "image": "ours:typo", "state": {"waiting": waiting}}
        conditions = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]
        labels = {"ray.io/cluster": f"{name}-abcde"}
        server.add_pod("head", labels, {"containerStatuses": [container]})
        server.add_pod("worker", labels, {"conditions": conditions})
        server.objects["events", "a"] = {
            "metadata": {"name": "a"},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": "exceeded quota",
            "involvedObject": {"kind": "RayCluster", "name": f"{name}-abcde"},
        }
        if num_asked > 5:
            succeed(server, job)

    kube.step = wait
    assert submit.run(RUN, console) == 0
    text = console.export_text()
    for line in (
        "pending: its cluster is being made",
        "pod head: the image ours:typo cannot be pulled (ImagePullBackOff): manifest unknown",
        "pod worker has no node yet: 0/3 nodes",
        "abcde: FailedCreate: exceeded quota",
    ):
        assert text.count(line) == 1, line


def test_a_finished_run_is_not_run_again_unless_asked(kube: KubeServer, console: Console) -> None:
    kube.step = succeed
    submit.run(RUN, console)
    name, _ = only_rayjob(kube)
    assert submit.run(RUN, console) == 0
    assert f"{name} is finished: nothing to do; --again" in console.export_text()
    assert list(kube.rayjobs) == [name]
    assert submit.run([*RUN, "--again"], console) == 0
    assert list(kube.rayjobs) == [name, f"{name}-2"]


def test_a_running_run_is_followed_and_a_failed_one_goes_on(
    kube: KubeServer, console: Console
) -> None:
    kube.step = run_on
    assert submit.run([*RUN, "--detach"], console) == 0
    name, _ = only_rayjob(kube)
    num_asked = 0

    def fail_in_a_while(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        num_asked += 1
        (run_on if num_asked < 3 else fail(137))(server, job)

    kube.step = fail_in_a_while
    # Where and how it runs does not make it another.
    assert submit.run([*RUN, "cluster.max_failures=7"], console) == 137
    assert list(kube.rayjobs) == [name]
    kube.step = succeed
    assert submit.run(RUN, console) == 0
    assert list(kube.rayjobs) == [name, f"{name}-2"]
    assert f"{name} failed with exit status 137" in console.export_text()


def test_what_is_beside_the_rayjob_may_be_left_out(kube: KubeServer, console: Console) -> None:
    kube.step = succeed
    assert submit.run([*RUN, "--job-only"], console) == 0
    assert kube.applied == ["RayJob"]


def test_an_overlay_brings_its_own_namespace(kube: KubeServer, console: Console) -> None:
    del kube.objects["namespaces", "charactertrain"]
    kube.step = succeed
    assert submit.run([*RUN, "--overlay", "hardened"], console) == 0
    assert kube.applied[0] == "Namespace"
    assert kube.applied[-1] == "RayJob"
    assert "NetworkPolicy" in kube.applied


def test_runs_are_looked_up_by_name(
    kube: KubeServer, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    kube.step = run_on
    submit.run([*RUN, "--detach"], console)
    name, job = only_rayjob(kube)
    assert "logs first --follow --kuberay" in console.export_text(clear=False)
    kube.print_line(job, "hello", second=1)
    assert submit.run(["status", "first", "--kuberay"], console) == 3
    assert submit.run(["list", "--kuberay"], console) == 0
    assert console.export_text().count(f"{name} ") >= 2
    assert submit.run(["logs", "first", "--kuberay"], Console()) == 0
    assert capsys.readouterr().out == "hello\n"
    assert submit.run(["stop", name, "--kuberay"], console) == 0
    assert kube.deleted == [name]
    assert "is deleted, with its pods and their log" in console.export_text()
    with pytest.raises(ConfigError, match=r"no run 'first' on .* it remembers none at all"):
        submit.run(["status", "first", "--kuberay"], console)


def test_a_rayjob_that_kubectl_made_is_looked_up_by_its_label(
    kube: KubeServer, console: Console
) -> None:
    labels = {"app.kubernetes.io/name": "charactertrain", "charactertrain.dev/run": "by-hand"}
    metadata = {"name": "charactertrain", "labels": labels}
    kube.apply("rayjobs", {"kind": "RayJob", "metadata": metadata}, "kubectl")
    assert submit.run(["status", "by-hand", "--kuberay"], console) == 3
    assert "KubeRay has not taken it up" in console.export_text()


def test_a_rayjob_that_is_deleted_is_stopped(kube: KubeServer, console: Console) -> None:
    def go_away(server: KubeServer, job: Document) -> None:
        run_on(server, job)
        job["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z"
        server.objects.pop(("rayjobs", job["metadata"]["name"]))

    kube.step = go_away
    assert submit.run(RUN, console) == 130
    assert "is stopped: its RayJob was deleted" in console.export_text()


def test_a_run_waits_until_its_rayjob_that_is_being_deleted_is_gone(
    kube: KubeServer, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.step = run_on
    submit.run([*RUN, "--detach"], console)
    name, job = only_rayjob(kube)
    job["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z"
    with monkeypatch.context() as patch:
        patch.setattr(submission, "_DELETION_SECONDS", 0.1)
        with pytest.raises(ClusterError, match=f"{name} is still being deleted after"):
            submit.run(RUN, console)
    num_asked = 0

    def go_away(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        if "deletionTimestamp" not in job["metadata"]:
            succeed(server, job)
            return
        num_asked += 1
        if num_asked == 5:
            server.objects.pop(("rayjobs", name))

    kube.step = go_away
    assert submit.run(RUN, console) == 0
    assert list(kube.rayjobs) == [f"{name}-2"]
    text = console.export_text()
    assert text.count(f"waiting until what is being deleted is gone: {name}") == 2
    assert f"{name} is stopped: its RayJob was deleted" in text


def test_nothing_is_kept_if_asked(kube: KubeServer, console: Console) -> None:
    kube.step = fail(137)
    assert submit.run([*RUN, "--keep", "nothing"], console) == 137
    name, _ = only_rayjob(kube)
    kube.step = succeed
    assert submit.run([*RUN, "--keep", "nothing"], console) == 0
    assert kube.deleted == [name, f"{name}-2"]


def command_line(*arguments: str) -> "AbstractContextManager[subprocess.Popen[str]]":
    return command(
        [sys.executable, "-m", "launch.submit", *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize("num_interrupts", [1, 2])
def test_an_interrupt_detaches_and_a_second_stops(kube: KubeServer, num_interrupts: int) -> None:
    def print_something(server: KubeServer, job: Document) -> None:
        run_on(server, job)
        if not server.logs:
            server.print_line(job, "at work", second=0)

    kube.step = print_something
    with command_line(*RUN) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("at work" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert any("logs first --follow --kuberay" in line for line in lines)
        assert any("Interrupt again within" in line for line in lines)
        if num_interrupts == 2:
            process.send_signal(signal.SIGINT)
            wait_until(lambda: bool(kube.deleted))
        assert process.wait(timeout=60) == submit.DETACHED
    assert len(kube.deleted) == num_interrupts - 1


def test_a_rayjobs_run_is_the_run_of_its_command_line(kube: KubeServer, console: Console) -> None:
    kube.step = succeed
    submit.run(RUN, console)
    _, job = only_rayjob(kube)
    composed = compose_run(job["spec"]["entrypoint"].split()[3:], name="first")
    labels = job["metadata"]["labels"]
    assert composed.fingerprint == labels["charactertrain.dev/fingerprint"]
