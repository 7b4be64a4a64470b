"""Where metrics go: a file, the console, and wandb's offline runs."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console

from charactertrain.runtime.metrics import METRICS_NAME, MetricLog
from charactertrain.storage import open_directory

CLOSED_PORT_URL = "http://127.0.0.1:9"


def open_log(
    directory: Path, output: io.StringIO, *, wandb_mode: Literal["off", "offline", "online"] = "off"
) -> MetricLog:
    return MetricLog(
        open_directory(str(directory)),
        Console(file=output, width=100),
        wandb_mode=wandb_mode,
        project="tests",
        config={"seed": 1},
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / METRICS_NAME).read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(name="wandb_offline")
def wandb_without_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of this machine, and a server that nobody answers at."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED_PORT_URL)
    yield
    import wandb

    wandb.teardown()


def test_metrics_are_json_lines_with_stage_and_time(tmp_path: Path) -> None:
    log = open_log(tmp_path / "run", io.StringIO())
    before = time.time()
    log.log("policy", {"step": "1/2", "loss": 0.123456789, "tokens": 12})
    log.record("policy", {"step": "2/2", "loss": -1.0})
    log.close()
    first, second = lines(tmp_path / "run")
    assert before - 1 < first.pop("time") <= second.pop("time") < time.time() + 1
    assert first == {"stage": "policy", "step": "1/2", "loss": 0.123456789, "tokens": 12}
    assert second == {"stage": "policy", "step": "2/2", "loss": -1.0}


def test_metrics_of_a_resumed_run_are_added_to_those_before(tmp_path: Path) -> None:
    for step in (1, 2):
        log = open_log(tmp_path, io.StringIO())
        log.record("policy", {"step": step})
        log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_metrics_on_the_console_are_one_short_line(tmp_path: Path) -> None:
    output = io.StringIO()
    log = open_log(tmp_path, output)
    log.log("policy", {"step": "1/2", "loss": 0.123456789, "rate": 3e-05, "tokens": 12})
    log.record("policy", {"loss": 7.0})
    assert output.getvalue() == "  step 1/2  loss 0.1235  rate 3e-05  tokens 12\n"


def test_wandb_that_is_off_leaves_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path, io.StringIO())
    log.record("policy", {"loss": 7.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_offline_writes_a_run_under_the_run_directory(tmp_path: Path) -> None:
    directory = tmp_path / "my_run"
    log = open_log(directory, io.StringIO(), wandb_mode="offline")
    assert not directory.exists()
    log.record("policy", {"loss": 0.5})
    log.record("policy", {"loss": 0.25})
    log.close()
    (run,) = directory.glob("wandb/offline-run-*")
    (file,) = run.glob("*.wandb")
    data = file.read_bytes()
    for word in (b"policy/loss", b"0.25", b"my_run", b"tests"):
        assert word in data, word
    assert len(lines(directory)) == 2
    # Closed: nothing is left to be closed twice.
    log.close()
