"""Where metrics go: a file, the console, and the board of gauges."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from metric_logs import open_log

from charactertrain.runtime import metric_lines
from charactertrain.runtime.metric_lines import METRICS_NAME
from charactertrain.storage import Directory


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / METRICS_NAME).read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_metrics_are_json_lines_with_stage_and_time(tmp_path: Path) -> None:
    log = open_log(tmp_path / "run")
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
        log = open_log(tmp_path)
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
        log = open_log(directory)
        for step in steps:
            log.record("policy", {"step": step})
        log.close()
    assert stored_steps(directory) == [1, 2, 3, 4, 5]
    # Nothing to add: nothing is written.
    open_log(open_s3("metrics-none")).close()
    assert not open_s3("metrics-none").exists(METRICS_NAME)


def test_metrics_in_an_object_store_are_written_now_and_then(
    open_s3: Callable[[str], Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = open_s3("metrics-often")
    log = open_log(directory)
    for step in (1, 2, 3):
        log.record("policy", {"step": step})
    # The first at once, the others not within half a minute of it.
    assert stored_steps(directory) == [1]
    monkeypatch.setattr(metric_lines, "_REWRITE_SECONDS", 0.0)
    log.record("policy", {"step": 4})
    assert stored_steps(directory) == [1, 2, 3, 4]


def test_wandb_that_is_off_leaves_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.record("policy", {"loss": 7.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


def test_lines_name_the_artifact_that_their_stage_makes(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with log.stage("policy", "0123456789abcdef" * 2):
        log.record("policy", {"step": "1/2", "loss": 1.0})
    log.record("policy", {"step": "2/2", "loss": 1.0})
    first, second = lines(tmp_path)
    assert first["artifact"] == "0123456789ab"
    assert "artifact" not in second


def test_a_line_is_whole_after_one_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).write_bytes(b'{"stage": "policy", "step": 1}\n{"stage": "pol')
    log = open_log(tmp_path)
    log.record("policy", {"step": 2})
    log.record("policy", {"step": 3})
    first, cut, *new = (tmp_path / METRICS_NAME).read_text().splitlines()
    assert json.loads(first)["step"] == 1
    assert cut == '{"stage": "pol'
    assert [json.loads(line)["step"] for line in new] == [2, 3]
