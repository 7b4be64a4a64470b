"""The command: a link for each reviewer, this machine alone, and errors that say what to do."""

import signal
import socket
from pathlib import Path

import httpx
import pytest
from review_server import links, started
from reviewed_run import make_run

from charactertrain.review.__main__ import main
from charactertrain.storage import Directory


def test_the_server_is_killed_and_what_it_took_is_there(run: Directory) -> None:
    with started(run, "--reviewer", "Ada") as server:
        (link,) = links(server.stdout, 1)
        origin = link.partition("/?")[0]
        with httpx.Client(base_url=origin, headers={"origin": origin}, trust_env=False) as client:
            assert client.get(link).status_code == 200
            form = {"nonce": "1", "verb": "drop", "prompt": "p1", "note": "no message"}
            assert client.post("/drop", data=form).status_code == 303
        server.send_signal(signal.SIGKILL)
    with started(run, "--reviewer", "Ben") as server:
        (link,) = links(server.stdout, 1)
        with httpx.Client(base_url=link.partition("/?")[0], trust_env=False) as client:
            assert client.get(link).status_code == 200
            assert "no message" in client.get("/prompt?id=p1").text
            headers = client.get("/").headers
            assert "server" not in headers
        server.send_signal(signal.SIGINT)
        said = server.communicate(timeout=30)
    assert "Traceback" not in said[1]
    # Neither the log nor an error repeats a link.
    assert "token" not in said[1]


def test_it_listens_on_this_machine_alone(run: Directory) -> None:
    with started(run) as server:
        (link,) = links(server.stdout, 1)
        port = int(link.rpartition(":")[2].partition("/")[0])
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", port))


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path)])
    assert ended.value.code == 2
    assert "is no run directory: expected config.yaml or traits" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_objects_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["s3://bucket/run?region=none"])
    assert "needs a local disk" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", num_prompts=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main([run.uri, "--port", str(port)])
    assert f"--port {port}:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([run.uri, "--reviewer", " "])
    assert "expected 1 to 40 printable characters" in capsys.readouterr().err
