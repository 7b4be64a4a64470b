"""A cluster to submit to, and a run to submit."""

import io
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jobs_server
import kube_server
import pytest
from rich.console import Console

from launch import following, submission, submit
from launch.kuberay import cluster


@pytest.fixture(name="server")
def jobs_api_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch, small_tree: Path
) -> Iterator[jobs_server.JobsServer]:
    """A cluster's Jobs API, named by RAY_ADDRESS; its clients do not wait long."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.02)
    # This checkout takes a while to pack; test_package does so.
    monkeypatch.setattr(submit, "ROOT", small_tree)
    with jobs_server.serving(jobs_server.JobsServer()) as server:
        monkeypatch.setenv("RAY_ADDRESS", server.address)
        yield server


@pytest.fixture(name="kube")
def api_server_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[kube_server.KubeServer]:
    """A Kubernetes API server with KubeRay, named by KUBECONFIG; its clients do not wait long."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which builds the overlays, is not installed")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(submission, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(cluster, "_READ_SECONDS", 0.05)
    with jobs_server.serving(kube_server.KubeServer()) as server:
        path = tmp_path / "kubeconfig"
        path.write_text(kube_server.kubeconfig(server.address))
        monkeypatch.setenv("KUBECONFIG", str(path))
        yield server


@pytest.fixture(name="overrides")
def overrides_of_a_run(tmp_path: Path) -> list[str]:
    """A run of the smoke experiment on a cluster."""
    return [*jobs_server.RUN, f"run.dir={tmp_path}/first"]


@pytest.fixture(name="console")
def recording_console() -> Console:
    """Keeps what is printed; `export_text` gives it back."""
    return Console(file=io.StringIO(), record=True, width=400, soft_wrap=True, highlight=False)


@pytest.fixture(name="certificate", scope="session")
def self_signed_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(path.with_suffix(".private")), "-out", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return path


@pytest.fixture(name="unused_port")
def port_where_nothing_listens() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(name="small_tree", scope="session")
def checkout_of_one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout that is packed in no time."""
    root = tmp_path_factory.mktemp("tree")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    (root / "kept.py").write_text("x = 1\n")
    return root
