"""Submitting a run: what is sent, what is recognised, how it ends, and what is said of trouble."""

import os
import shlex
import signal
import ssl
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from jobs_server import FakeJob, JobsServer, command, run_on, serving, wait_until
from rich.console import Console

from charactertrain.exceptions import ConfigError
from launch import following, jobs_api, submit
from launch.clusters import ClusterError, UnreachableError
from launch.connection import find_address


def only_job(server: JobsServer) -> tuple[str, FakeJob]:
    assert len(server.jobs) == 1
    return next(iter(server.jobs.items()))


def test_a_run_is_submitted_with_all_that_tells_what_it_is(
    server: JobsServer, overrides: list[str], console: Console, tmp_path: Path
) -> None:
    assert submit.run(["--driver-cpus", "0.5", *overrides], console) == 0
    name, job = only_job(server)
    body = job.body
    assert shlex.split(body["entrypoint"]) == ["python", "-m", "charactertrain", *overrides]
    assert body["entrypoint_num_cpus"] == 0.5
    assert name == f"first-{body['metadata']['fingerprint'][:12]}"
    assert body["metadata"]["run_name"] == "first"
    assert body["metadata"]["run_dir"] == f"{tmp_path}/first"
    assert body["metadata"]["code_version"].startswith("0.")
    assert body["runtime_env"]["working_dir"].removeprefix("gcs://") in server.packages
    assert body["runtime_env"]["env_vars"] == {}
    assert "finished" in console.export_text()


def test_the_package_is_uploaded_once(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    submit.run(overrides, console)
    submit.run(["--again", *overrides], console)
    assert server.num_uploads == 1


def test_variables_are_passed_by_name_alone(
    server: JobsServer, overrides: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENT", "yes")
    monkeypatch.setenv("KEPT", "private")
    submit.run(["--env", "SENT", *overrides], console)
    assert only_job(server)[1].body["runtime_env"]["env_vars"] == {"SENT": "yes"}
    with pytest.raises(ConfigError, match="not set: NOWHERE"):
        submit.run(["--again", "--env", "NOWHERE", *overrides], console)


def test_a_lock_is_installed_as_it_is(
    server: JobsServer, overrides: list[str], console: Console, tmp_path: Path
) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("# a comment\nnumpy==2.3.5\nray==2.60.0  # why\n")
    submit.run(["--pip", str(lock), *overrides], console)
    pip = only_job(server)[1].body["runtime_env"]["pip"]
    assert pip["packages"] == ["numpy==2.3.5", "ray==2.60.0"]
    assert "--no-deps" in pip["pip_install_options"]
    lock.write_text("numpy>=2\n")
    with pytest.raises(ConfigError, match="found numpy>=2"):
        submit.run(["--again", "--pip", str(lock), *overrides], console)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("policy.kl.coef=-1", r"policy\.objective|policy\.kl\.coef"),
        ("nosuch.key=1", "do not compose"),
        ("cluster=local", "add cluster=ray"),
        ("run.until=nosuch", "no stage 'nosuch'"),
        ("--nosuch", "unknown options: --nosuch"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_sent(
    server: JobsServer, overrides: list[str], console: Console, wrong: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        submit.run([*overrides, wrong], console)
    assert not server.packages
    assert not server.jobs


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    assert submit.run([*overrides, "run.dry=true"], console) == 0
    assert "submission id  first-" in console.export_text()
    assert not server.packages
    assert not server.jobs


def test_a_finished_run_is_not_run_again_unless_asked(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    submit.run(overrides, console)
    assert submit.run(overrides, console) == 0
    name, _ = only_job(server)
    assert f"{name} is finished: nothing to do; --again" in console.export_text()
    assert submit.run(["--again", *overrides], console) == 0
    assert list(server.jobs) == [name, f"{name}-2"]


def test_where_a_run_runs_does_not_make_it_another(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    submit.run(overrides, console)
    assert submit.run([*overrides, "cluster.max_failures=7"], console) == 0
    assert len(server.jobs) == 1
    submit.run([*overrides, "seed=9"], console)
    assert len(server.jobs) == 2


def test_a_running_run_is_followed(
    server: JobsServer, overrides: list[str], console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    server.step = run_on
    submit.run(["--detach", *overrides], console)
    name, job = only_job(server)
    job.status, job.log = "RUNNING", "line one\nline two\n"

    def finish_in_a_while(job: FakeJob) -> None:
        if job.num_asked > 5:
            job.log += "the end\n"
            job.status, job.exit_code = "SUCCEEDED", 0

    server.step = finish_in_a_while
    shown = Console(width=400, soft_wrap=True)
    assert submit.run(overrides, shown) == 0
    assert list(server.jobs) == [name]
    printed = capsys.readouterr().out
    assert f"{name} is running already: following it" in printed
    assert printed.count("line one\nline two\nthe end\n") == 1


def test_a_log_that_breaks_off_is_shown_once(
    server: JobsServer, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = "".join(f"line {number}\n" for number in range(20))

    def print_and_finish(job: FakeJob) -> None:
        job.status, job.log = "RUNNING", log
        if job.num_asked > 4:
            job.status = "SUCCEEDED"

    server.step, server.drops_tails = print_and_finish, 2
    assert submit.run(overrides, Console(width=400, soft_wrap=True)) == 0
    printed = capsys.readouterr().out.splitlines(keepends=True)
    assert "".join(line for line in printed if line.startswith("line ")) == log
    assert any("Trying again" in line for line in printed)
    assert server.drops_tails == 0


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [("FAILED", 2, 2), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 130)],
)
def test_the_exit_status_is_the_jobs(
    server: JobsServer,
    overrides: list[str],
    console: Console,
    status: str,
    exit_code: int | None,
    expected: int,
) -> None:
    def end(job: FakeJob) -> None:
        job.status, job.exit_code, job.log = status, exit_code, "what it said\n"

    server.step = end
    assert submit.run(overrides, console) == expected


def test_a_failed_run_goes_on_in_another_attempt(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    def fail(job: FakeJob) -> None:
        job.status, job.exit_code = "FAILED", 137

    server.step = fail
    assert submit.run(overrides, console) == 137
    assert submit.run(overrides, console) == 137
    first, second = server.jobs
    assert second == f"{first}-2"
    assert server.jobs[second].body["metadata"]["attempt"] == "2"
    assert f"{first} failed with exit status 137" in console.export_text()


def test_the_same_run_in_two_directories_wants_two_names(
    server: JobsServer, overrides: list[str], console: Console, tmp_path: Path
) -> None:
    submit.run(overrides, console)
    other = [*overrides, f"run.dir={tmp_path}/elsewhere/first"]
    with pytest.raises(ConfigError, match="same run in another directory"):
        submit.run(other, console)
    assert submit.run(["--name", "second", *other], console) == 0


def test_why_a_job_waits_is_said_once(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    def wait(job: FakeJob) -> None:
        if job.num_asked > 4:
            job.status = "SUCCEEDED"

    server.step = wait
    submit.run(overrides, console)
    assert console.export_text().count("pending: Job has not started yet. It may be waiting") == 1


def test_runs_are_looked_up_by_name(
    server: JobsServer, overrides: list[str], console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    server.step = run_on
    submit.run(["--detach", *overrides], console)
    name, job = only_job(server)
    job.log = "hello\n"
    assert submit.run(["status", "first"], console) == 3
    assert submit.run(["list"], console) == 0
    assert console.export_text().count(f"{name} ") >= 2
    assert submit.run(["logs", "first"], Console()) == 0
    assert capsys.readouterr().out == "hello\n"
    assert submit.run(["stop", name], console) == 0
    assert server.stopped == [name]
    assert submit.run(["status", "first"], console) == 130
    with pytest.raises(ConfigError, match=r"no run .nosuch. .* it remembers first"):
        submit.run(["status", "nosuch"], console)


def command_line(
    server: JobsServer, *arguments: str
) -> "AbstractContextManager[subprocess.Popen[str]]":
    return command(
        [sys.executable, "-m", "launch.submit", *arguments],
        env={**os.environ, "RAY_ADDRESS": server.address, "PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize("num_interrupts", [1, 2])
def test_an_interrupt_detaches_and_a_second_stops(
    server: JobsServer, overrides: list[str], num_interrupts: int
) -> None:
    def print_something(job: FakeJob) -> None:
        job.status, job.log = "RUNNING", "at work\n"

    server.step = print_something
    with command_line(server, *overrides) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("at work" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert any("detached" in line and "logs first --follow" in line for line in lines)
        assert any("Interrupt again within" in line for line in lines)
        if num_interrupts == 2:
            process.send_signal(signal.SIGINT)
            wait_until(lambda: bool(server.stopped))
        assert process.wait(timeout=60) == submit.DETACHED
    assert len(server.stopped) == num_interrupts - 1


def test_an_error_is_a_message_and_exit_status_2(server: JobsServer, overrides: list[str]) -> None:
    with command_line(server, *overrides, "cluster=local") as process:
        assert process.stdout is not None
        output = process.stdout.read()
        assert process.wait(timeout=60) == 2
    assert output.startswith("ConfigError: cluster.address is local")


def test_a_missing_token_is_named(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    server.token = "right"
    with pytest.raises(ClusterError, match="asks for a token, and none was sent: set RAY_AUTH_M"):
        submit.run(overrides, console)


def test_a_wrong_token_is_named_and_not_shown(
    server: JobsServer, overrides: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "right"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong-one")
    with pytest.raises(ClusterError, match="does not take the token") as raised:
        submit.run(overrides, console)
    assert "wrong-one" not in str(raised.value)


def test_a_token_is_found_where_ray_looks_for_it(
    server: JobsServer,
    overrides: list[str],
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    server.token = "right"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no token: neither in RAY_AUTH_TOKEN nor in "):
        submit.run(overrides, console)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right\n")
    assert submit.run(overrides, console) == 0
    (tmp_path / "other").write_text("wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    with pytest.raises(ClusterError, match="does not take the token"):
        submit.run(overrides, console)


def test_another_version_of_ray_is_refused(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    server.ray_version = "2.9.3"
    with pytest.raises(ClusterError, match=r"runs Ray 2\.9\.3, and this checkout is for 2\.\d+"):
        submit.run(overrides, console)
    assert not server.packages


def test_a_head_that_is_not_there_is_named(
    overrides: list[str], console: Console, unused_port: int
) -> None:
    address = f"http://127.0.0.1:{unused_port}"
    with pytest.raises(UnreachableError, match=f"at {address} cannot be reached"):
        submit.run(["--address", address, *overrides], console)


def test_a_silent_log_is_asked_for_anew(
    server: JobsServer,
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def finish_in_a_while(job: FakeJob) -> None:
        job.status, job.log = "RUNNING", "first line\n"
        if job.num_asked > 40:
            job.status = "SUCCEEDED"

    monkeypatch.setattr(jobs_api, "_TAIL_SECONDS", 0.1)
    server.step = finish_in_a_while
    assert submit.run(overrides, Console(width=400, soft_wrap=True)) == 0
    assert server.num_tails > 1
    assert capsys.readouterr().out.count("first line") == 1


def test_a_head_that_goes_away_is_waited_for_and_then_given_up(
    overrides: list[str], console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.1)
    leave = threading.Event()

    def print_something(job: FakeJob) -> None:
        job.status, job.log = "RUNNING", "at work\n"
        leave.set()

    def close_when_it_runs(server: JobsServer) -> None:
        with serving(server):
            is_open.set()
            leave.wait(timeout=60)

    server, is_open = JobsServer(step=print_something), threading.Event()
    closer = threading.Thread(target=close_when_it_runs, args=[server])
    closer.start()
    assert is_open.wait(timeout=60)
    with pytest.raises(UnreachableError, match=r"cannot be reached|broke off"):
        submit.run(["--address", server.address, *overrides], console)
    closer.join(timeout=60)
    assert "Trying again" in console.export_text()


def test_what_is_no_ray_cluster_is_named(
    server: JobsServer, overrides: list[str], console: Console
) -> None:
    with pytest.raises(ClusterError, match="404"):
        submit.run(["--address", f"{server.address}/elsewhere", *overrides], console)


def test_a_certificate_is_verified(
    overrides: list[str], console: Console, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".private"))
    with serving(JobsServer(), context) as server:
        arguments = ["--address", server.address, *overrides]
        with pytest.raises(ClusterError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
            submit.run(arguments, console)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert submit.run(arguments, console) == 0


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("head:8265", "http://head:8265"),
        ("https://head/ray/", "https://head/ray"),
    ],
)
def test_addresses_are_those_of_a_dashboard(given: str, found: str) -> None:
    assert find_address(given) == found


@pytest.mark.parametrize(
    "given", ["ray://head:10001", "auto://", "http://[head", "http://head:port"]
)
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="expected the dashboard"):
        find_address(given)


@pytest.mark.parametrize("given", ["me:secret@head:x", "http://me:se/cret@head:8265:1"])
def test_a_refused_address_is_shown_without_its_password(given: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find_address(given)
    assert "cret" not in str(refused.value)


def test_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="no cluster is named"):
        find_address(None)
