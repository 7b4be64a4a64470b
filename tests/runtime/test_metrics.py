"""Where metrics go: a file, the console, and wandb's offline runs."""

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.console import Console

from charactertrain.exceptions import ConfigError
from charactertrain.runtime import metrics
from charactertrain.runtime.metrics import METRICS_NAME, MetricLog
from charactertrain.storage import Directory, open_directory

CLOSED_PORT_URL = "http://127.0.0.1:9"


def open_log(
    directory: Path | Directory,
    output: io.StringIO,
    *,
    wandb_mode: Literal["off", "offline", "online"] = "off",
) -> MetricLog:
    return MetricLog(
        directory if isinstance(directory, Directory) else open_directory(str(directory)),
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


def test_metrics_on_the_console_are_text_and_no_markup(tmp_path: Path) -> None:
    output = io.StringIO()
    log = open_log(tmp_path, output)
    log.log("policy", {"message": "[/x] closed [bold]:smile:", "phase": "[red]"})
    assert output.getvalue() == "  message [/x] closed [bold]:smile:  phase [red]\n"


def stored_steps(directory: Directory) -> list[int]:
    text = directory.read_bytes(METRICS_NAME).decode()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_metrics_in_an_object_store_are_added_to_those_before(
    open_s3: Callable[[str], Directory],
) -> None:
    directory = open_s3("metrics-resumed")
    for steps in ((1, 2, 3), (4, 5)):
        log = open_log(directory, io.StringIO())
        for step in steps:
            log.record("policy", {"step": step})
        log.close()
    assert stored_steps(directory) == [1, 2, 3, 4, 5]
    # Nothing to add: nothing is written.
    open_log(open_s3("metrics-none"), io.StringIO()).close()
    assert not open_s3("metrics-none").exists(METRICS_NAME)


def test_metrics_in_an_object_store_are_written_now_and_then(
    open_s3: Callable[[str], Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = open_s3("metrics-often")
    log = open_log(directory, io.StringIO())
    for step in (1, 2, 3):
        log.record("policy", {"step": step})
    # The first at once, the others not within half a minute of it.
    assert stored_steps(directory) == [1]
    monkeypatch.setattr(metrics, "_REWRITE_SECONDS", 0.0)
    log.record("policy", {"step": 4})
    assert stored_steps(directory) == [1, 2, 3, 4]


def test_wandb_that_is_off_leaves_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path, io.StringIO())
    log.record("policy", {"loss": 7.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_offline_writes_a_run_under_the_run_directory(tmp_path: Path) -> None:
    import wandb

    directory = tmp_path / "my_run"
    log = open_log(directory, io.StringIO(), wandb_mode="offline")
    assert not directory.exists()
    # Before any metric.
    log.start()
    (run,) = directory.glob("wandb/offline-run-*")
    log.record("policy", {"loss": 0.5})
    log.record("policy", {"loss": 0.25})
    log.close()
    # Its service writes the last of the file on its way out, as at the end of a process.
    wandb.teardown()
    (run,) = directory.glob("wandb/offline-run-*")
    (file,) = run.glob("*.wandb")
    data = file.read_bytes()
    for word in (b"policy/loss", b"0.25", b"my_run", b"tests"):
        assert word in data, word
    assert len(lines(directory)) == 2
    # Closed: nothing is left to be closed twice.
    log.close()


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_that_cannot_start_says_so_before_any_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No key, and nobody at the terminal to give one.
    monkeypatch.setenv("HOME", str(tmp_path))
    log = open_log(tmp_path / "run", io.StringIO(), wandb_mode="online")
    with pytest.raises(ConfigError, match=r"logging\.wandb=online: wandb did not start"):
        log.start()
