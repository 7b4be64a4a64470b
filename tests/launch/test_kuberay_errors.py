"""What is said of trouble with a Kubernetes cluster."""

import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs_server import command, serving, wait_until
from kube_server import CLAIM, RUN, Document, KubeServer, kubeconfig, run_on, succeed
from rich.console import Console

from charactertrain.exceptions import ConfigError
from launch import following, submit
from launch.clusters import ClusterError, UnreachableError
from launch.kuberay import api


def test_a_run_is_followed_without_a_look_at_pods_and_events(
    kube: KubeServer, console: Console
) -> None:
    num_asked = 0

    def finish_in_a_while(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        num_asked += 1
        run_on(server, job)
        if num_asked > 5:
            succeed(server, job)

    kube.step = finish_in_a_while
    kube.forbidden = {"list pods"}
    assert submit.run(RUN, console) == 0
    assert console.export_text().count("what stands in its way cannot be seen") == 1


def test_a_server_that_fails_for_a_while_is_asked_again(kube: KubeServer, console: Console) -> None:
    num_asked = 0

    def break_down_once(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        num_asked += 1
        run_on(server, job)
        server.num_broken = int(num_asked == 2)
        if num_asked > 4:
            succeed(server, job)

    kube.step = break_down_once
    assert submit.run(RUN, console) == 0
    assert "answered 503" in console.export_text()


def test_another_run_of_the_same_rayjob_name_is_refused(kube: KubeServer, console: Console) -> None:
    kube.step = succeed
    submit.run(RUN, console)
    (job,) = kube.rayjobs.values()
    job["metadata"]["annotations"]["charactertrain.dev/run-name"] = "theirs"
    with pytest.raises(ClusterError, match=r"is another run: 'theirs', and this is 'first'"):
        submit.run(RUN, console)


def test_fields_of_another_manager_are_left_as_they_are(kube: KubeServer, console: Console) -> None:
    kube.step = succeed
    spec = {"resources": {"requests": {"storage": "99Ti"}}}
    claim = {"metadata": {"name": CLAIM}, "spec": spec}
    kube.apply("persistentvolumeclaims", claim, "kubectl-client-side-apply")
    match = (
        rf"PersistentVolumeClaim {CLAIM} is set otherwise by another manager.*"
        r'\.spec\.resources\.requests\.storage: conflict with "kubectl-client-side-apply"'
    )
    with pytest.raises(ClusterError, match=match):
        submit.run(RUN, console)
    assert not kube.rayjobs
    assert submit.run([*RUN, "--job-only"], console) == 0


def test_what_is_not_allowed_is_named_before_anything_is_applied(
    kube: KubeServer, console: Console
) -> None:
    kube.forbidden = {"patch rayjobs"}
    with pytest.raises(ClusterError, match=r'RayJob first-\S+ is not allowed: .* User "me" cannot'):
        submit.run(RUN, console)
    assert not kube.applied


def test_a_cluster_without_kuberay_is_named(kube: KubeServer, console: Console) -> None:
    kube.has_kuberay = False
    with pytest.raises(ClusterError, match=r"does not serve RayJob of ray\.io/v1.*not installed"):
        submit.run(RUN, console)


def test_a_missing_namespace_is_named(kube: KubeServer, console: Console) -> None:
    with pytest.raises(ClusterError, match='namespaces "nosuch" not found'):
        submit.run([*RUN, "--namespace", "nosuch"], console)


def test_a_manifest_that_the_crd_does_not_know_is_refused_before_anything_is_applied(
    kube: KubeServer, console: Console, tmp_path: Path
) -> None:
    patch = "- op: add\n  path: /spec/nosuch\n  value: 1\n"
    overlay = own_overlay(
        tmp_path / "own", patches=[{"target": {"kind": "RayJob"}, "patch": patch}]
    )
    with pytest.raises(ClusterError, match=r"is not valid to .* strict decoding error.*nosuch"):
        submit.run([*RUN, "--overlay", str(overlay)], console)
    assert not kube.applied


def test_a_run_of_an_overlay_without_its_label_is_found(
    kube: KubeServer, console: Console, tmp_path: Path
) -> None:
    patch = "- op: remove\n  path: /metadata/labels\n"
    overlay = own_overlay(
        tmp_path / "own", patches=[{"target": {"kind": "RayJob"}, "patch": patch}]
    )
    kube.step = run_on
    submit.run([*RUN, "--overlay", str(overlay), "--detach"], console)
    assert submit.run(["status", "first", "--kuberay"], console) == 3


def own_overlay(directory: Path, **more: Any) -> Path:
    directory.mkdir()
    base = os.path.relpath(submit.ROOT / "kube" / "overlays" / "cpu-demo", directory.resolve())
    kustomization = {"resources": [base], **more}
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return directory


def test_credentials_that_are_over_are_named_and_not_shown(
    kube: KubeServer, console: Console, tmp_path: Path
) -> None:
    (tmp_path / "kubeconfig").write_text(kubeconfig(kube.address, "wrong-one"))
    with pytest.raises(ClusterError, match="does not take the credentials") as raised:
        submit.run(RUN, console)
    assert "wrong-one" not in str(raised.value)


def test_a_cluster_that_is_not_there_is_named(
    kube: KubeServer, console: Console, tmp_path: Path, unused_port: int
) -> None:
    address = f"http://127.0.0.1:{unused_port}"
    (tmp_path / "kubeconfig").write_text(kubeconfig(address))
    with pytest.raises(UnreachableError, match=f"the API server {address} cannot be reached"):
        submit.run(RUN, console)


def test_a_server_that_never_answers_is_not_waited_for(
    kube: KubeServer, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(api, "_TIMEOUT_SECONDS", (5.0, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        (tmp_path / "kubeconfig").write_text(kubeconfig(address))
        # Who waits all the same is told another error.
        hang_up = threading.Timer(20.0, mute.shutdown, [socket.SHUT_RDWR])
        hang_up.start()
        with pytest.raises(UnreachableError, match=f"{address} cannot be reached: .*timed out"):
            submit.run(RUN, console)
        hang_up.cancel()


def test_without_a_kubeconfig_no_cluster_is_named(
    kube: KubeServer, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="with the context nosuch"):
        submit.run([*RUN, "--context", "nosuch"], console)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nosuch"))
    with pytest.raises(ConfigError, match=r"no cluster is named: .*nosuch \(KUBECONFIG names"):
        submit.run(RUN, console)


def test_inside_a_cluster_a_context_wants_a_kubeconfig(
    kube: KubeServer, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG")
    with pytest.raises(ConfigError, match=r"Invalid kube-config file.*the context theirs"):
        submit.run([*RUN, "--context", "theirs"], console)


_SLOW_KUBECTL = """#!/bin/sh
# Builds a run's own kustomization, which lies in no overlay, when the test says so.
case "$2" in */overlays/*) exec {kubectl} "$@" ;; esac
touch {directory}/asked
while [ ! -e {directory}/go ]; do sleep 0.05; done
exec {kubectl} "$@"
"""


def test_an_interrupt_at_the_keyboard_while_kubectl_runs_is_one(
    kube: KubeServer, tmp_path: Path
) -> None:
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(_SLOW_KUBECTL.format(kubectl=shutil.which("kubectl"), directory=tmp_path))
    kubectl.chmod(0o755)
    path = os.pathsep.join([str(kubectl.parent), os.environ["PATH"]])
    arguments = [sys.executable, "-m", "launch.submit", *RUN]
    with command(arguments, env={**os.environ, "PATH": path}, process_group=0) as process:
        wait_until((tmp_path / "asked").is_file, seconds=60)
        # To all of the foreground, as a terminal does.
        os.killpg(process.pid, signal.SIGINT)
        (tmp_path / "go").touch()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == submit.DETACHED, output
    assert "interrupted; nothing that was submitted" in output
    assert not kube.rayjobs


def test_the_client_is_asked_for(
    kube: KubeServer, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.delitem(sys.modules, "launch.kuberay.api", raising=False)
    with pytest.raises(ConfigError, match=r"pip install --no-deps -r requirements/kube\.txt"):
        submit.run(RUN, console)


def test_a_cluster_that_goes_away_is_waited_for_and_then_given_up(
    kube: KubeServer, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.1)

    def leave(server: KubeServer, job: Document) -> None:
        run_on(server, job)
        server.num_broken = 1_000_000

    with serving(KubeServer(step=leave)) as server:
        (tmp_path / "kubeconfig").write_text(kubeconfig(server.address))
        with pytest.raises(UnreachableError, match="answered 503"):
            submit.run(RUN, console)
    assert "Trying again" in console.export_text()
