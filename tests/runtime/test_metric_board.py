"""What a run shows on Prometheus: which values, under which names and labels."""

import time
from pathlib import Path

import pytest
from metric_logs import open_log

from charactertrain.runtime.metric_catalog import ALL
from charactertrain.runtime.metric_lines import Line, lines_of, place_of

_UNITS = (
    "_seconds",
    "_bytes",
    "_ratio",
    "_tokens",
    "_nats",
    "_versions",
    "_rows",
    "_sequences",
    "_requests",
    "_per_second",
    "_total",
)


def test_names_are_consistent_and_unique() -> None:
    names = [metric.name for metric in ALL]
    assert len(set(names)) == len(names)
    for metric in ALL:
        assert metric.name.startswith("charactertrain_")
        assert metric.meaning
        assert metric.labels[0] == "run"
    # What has a unit says so; the rest are numbers.
    plain = [name for name in names if not name.endswith(_UNITS)]
    assert not [name for name in plain if "second" in name or "byte" in name or "share" in name]
    assert all(metric.name.endswith("_bytes") for metric in ALL if metric.scale != 1.0)


@pytest.mark.parametrize(
    ("values", "phase", "step", "num_steps"),
    [
        ({"step": "7/200", "loss": 1.0}, "optimise", 7, 200),
        ({"warm start": "2/9", "loss": 1.0}, "warm_start", 2, 9),
        ({"reading": 25, "kl": 0.1}, "readings", 25, None),
        ({"member": "gold", "step": "1/3"}, "gold", 1, 3),
        ({"job": "responses", "requests": 3}, "responses", None, None),
        ({"worker group failed": "rank 0: x"}, "", None, None),
    ],
)
def test_a_line_has_its_place(
    values: dict[str, object], phase: str, step: int | None, num_steps: int | None
) -> None:
    place = place_of("policy", values)
    assert (place.stage, place.phase) == ("policy", phase)
    assert (place.step, place.num_steps) == (step, num_steps)


def test_lines_that_were_cut_off_keep_their_number() -> None:
    found = list(lines_of(b'{"step": 1}\n{"st\n{"step": 3}\n'))
    assert found == [Line(0, {"step": 1}), Line(2, {"step": 3})]


def test_a_step_is_shown_under_run_stage_and_phase(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    before = time.time()
    with log.stage("policy", "a" * 32):
        log.record("policy", {"step": "3/8", "kl": 0.25, "sync_seconds": 1.5, "gpu_memory_gib": 2})
        labels = ("run", "policy", "optimise")
        shown = log.board.values
        assert shown["charactertrain_step_kl_nats", labels] == 0.25
        assert shown["charactertrain_step_sync_seconds", labels] == 1.5
        assert shown["charactertrain_step_gpu_memory_bytes", labels] == 2 * 2**30
        assert shown["charactertrain_step_number", labels] == 3
        assert shown["charactertrain_step_last_number", labels] == 8
        changed = shown["charactertrain_stage_last_progress_timestamp_seconds", labels[:2]]
        assert before - 1 <= changed <= time.time() + 1
        log.record("policy", {"reading": 3, "kl": 0.5, "gold": None})
        assert log.board.values["charactertrain_reading_kl_nats", labels[:2]] == 0.5
        assert ("charactertrain_reading_gold", labels[:2]) not in log.board.values


def test_what_was_of_another_stage_is_shown_no_more(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with log.stage("responses", "a" * 32):
        log.board.rows("responses", 3, 8)
        log.record("engines", {"job": "responses", "reject_share": 0.25})
        labels = ("run", "responses", "responses")
        assert log.board.values["charactertrain_task_done_rows", labels] == 3
        assert log.board.values["charactertrain_task_rows", labels] == 8
        assert log.board.values["charactertrain_engines_reject_ratio", labels] == 0.25
    with log.stage("rankings", "b" * 32):
        running = {labels: v for (name, labels), v in log.board.values.items() if "running" in name}
        assert running == {("run", "responses"): 0.0, ("run", "rankings"): 1.0}
        assert ("charactertrain_task_rows", labels) not in log.board.values


def test_a_stage_that_fails_runs_no_more(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    with pytest.raises(ValueError, match="broken"), log.stage("policy", "a" * 32):
        raise ValueError("broken")
    assert log.board.values["charactertrain_stage_running", ("run", "policy")] == 0.0
