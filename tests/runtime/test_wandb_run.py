"""A run on wandb, by the files that it leaves where there is no server: ids, history, artifacts."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb_files
from metric_logs import RUN_ID, open_log

from charactertrain import artifacts
from charactertrain.artifacts import Identity, Manifest, Outcome
from charactertrain.exceptions import ConfigError
from charactertrain.runtime.metric_lines import METRICS_NAME
from charactertrain.runtime.wandb_run import EARLIER
from charactertrain.storage import open_directory

CLOSED_PORT_URL = "http://127.0.0.1:9"
WORKER = Path(__file__).resolve().parents[1] / "support" / "metrics_worker.py"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """No key and no settings, and a server that nobody answers at."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = str(tmp_path_factory.mktemp("home"))
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("WANDB_CONFIG_DIR", home)
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED_PORT_URL)
    yield
    import wandb

    wandb.teardown()


def close(log: Any) -> None:
    """End a run; wandb's process writes the last of its file on its way out."""
    import wandb

    log.close()
    wandb.teardown()


def losses(directory: Path) -> list[tuple[int, float]]:
    """Steps of the policy and their losses, in the order of the history."""
    return [
        (row["policy/optimise/step"], row["policy/optimise/loss"])
        for row in wandb_files.history(directory)
        if "policy/optimise/step" in row
    ]


def test_nothing_is_left_where_wandb_is_off(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.start()
    log.record("policy", {"loss": 7.0})
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


def test_a_run_says_what_it_belongs_to(tmp_path: Path) -> None:
    directory = tmp_path / "my_run"
    log = open_log(directory, wandb_mode="offline")
    assert not directory.exists()
    log.start()
    close(log)
    (run,) = wandb_files.offline_runs(directory)
    record = wandb_files.run_record(run)
    assert (record.run_id, record.project, record.display_name) == (RUN_ID, "tests", "my_run")
    assert (record.run_group, record.job_type) == ("a-sweep", "placebo")
    config = {item.key: json.loads(item.value_json) for item in record.config.update}
    assert config["seed"] == 1


def test_each_phase_has_steps_of_its_own(tmp_path: Path) -> None:
    log = open_log(tmp_path, wandb_mode="offline")
    log.start()
    log.record("policy", {"warm start": "1/2", "loss": 3.0})
    log.record("policy", {"step": "1/2", "loss": 0.5, "gold": None})
    log.record("policy", {"reading": 1, "kl": 0.25})
    log.record("engines", {"job": "responses", "running": 4})
    close(log)
    (run,) = wandb_files.offline_runs(tmp_path)
    rows = wandb_files.history(run)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]
    warm, step, reading, engines = rows
    assert (warm["policy/warm_start/step"], warm["policy/warm_start/loss"]) == (1, 3.0)
    assert (step["policy/optimise/step"], step["policy/optimise/loss"]) == (1, 0.5)
    assert (reading["policy/readings/step"], reading["policy/readings/kl"]) == (1, 0.25)
    assert engines["engines/responses/running"] == 4
    axes = {
        record.metric.glob_name: record.metric.step_metric
        for record in wandb_files.records(run)
        if record.WhichOneof("record_type") == "metric" and record.metric.glob_name
    }
    assert axes["policy/optimise/*"] == "policy/optimise/step"


def attempt(directory: Path, first: int, end: int, how: str) -> tuple[int, str]:
    """An attempt in a process of its own: its exit status, and what it shows."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(WORKER), str(directory), str(first), str(end), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_killed_run_goes_on_with_no_step_lost_and_none_twice(tmp_path: Path) -> None:
    assert attempt(tmp_path, 1, 6, "kill")[0] == -signal.SIGKILL
    # From a checkpoint after step 3: steps 4 and 5 are taken again.
    assert attempt(tmp_path, 4, 8, "kill")[0] == -signal.SIGKILL
    assert attempt(tmp_path, 7, 10, "finish")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    assert len(lines) == 12
    (run,) = wandb_files.offline_runs(tmp_path)
    assert wandb_files.run_record(run).run_id == RUN_ID
    assert losses(run) == [(step, 1.0 / step) for step in range(1, 10)]
    rows = wandb_files.history(run)
    # As they were taken first, by three attempts.
    by_attempt = [row["policy/optimise/attempt"] for row in rows if "policy/optimise/step" in row]
    assert [by_attempt.count(pid) for pid in dict.fromkeys(by_attempt)] == [5, 2, 2]
    steps = [row["_step"] for row in rows]
    assert steps == sorted(set(steps))
    earlier = sorted((tmp_path / "wandb" / EARLIER).iterdir())
    assert len(earlier) == 2
    assert all(RUN_ID in path.name for path in earlier)


def test_lines_of_artifacts_that_are_not_the_runs_are_not_sent(tmp_path: Path) -> None:
    old = {"stage": "policy", "artifact": "0" * 12, "step": "1/2", "loss": 9.0}
    (tmp_path / METRICS_NAME).write_text(json.dumps(old) + "\n")
    log = open_log(tmp_path, wandb_mode="offline")
    log.start()
    with log.stage("policy", "a" * 32):
        log.record("policy", {"step": "1/2", "loss": 1.0})
    close(log)
    (run,) = wandb_files.offline_runs(tmp_path)
    assert losses(run) == [(1, 1.0)]


def artifact(directory: Path, stage: str, inputs: dict[str, str]) -> Manifest:
    """An artifact of one file."""
    place = open_directory(str(directory / stage))
    identity = Identity(stage, {"seed": 1}, inputs)
    artifacts.begin(place, identity)
    place.write_bytes("model/weights.bin", stage.encode() * 10)
    return artifacts.commit(
        place,
        identity,
        Outcome(files=("model/weights.bin",)),
        resolved_config={},
        code_version="1",
        wall_seconds=1.0,
    )


def made(directory: Path, *, upload: tuple[str, ...] = ()) -> list[Any]:
    """What a run of two artifacts tells wandb of them, the second made of the first."""
    pairs = artifact(directory, "pairs", {})
    model = artifact(directory, "preference_model", {"pairs": pairs.fingerprint})
    log = open_log(directory, wandb_mode="offline", upload=upload)
    # Of an earlier attempt: it is there before anything is started.
    log.made(pairs, open_directory(str(directory / "pairs")))
    log.start()
    log.made(model, open_directory(str(directory / "preference_model")))
    close(log)
    (run,) = wandb_files.offline_runs(directory)
    return wandb_files.artifact_records(run)


def test_artifacts_have_their_lineage_and_are_named_not_sent(tmp_path: Path) -> None:
    output, used, model = made(tmp_path)
    assert [output.name, used.name, model.name] == ["pairs", "pairs", "preference_model"]
    assert [a.use_after_commit for a in (output, used, model)] == [False, True, False]
    # The same version, whether it is made or used.
    assert output.digest == used.digest != model.digest
    pairs = artifacts.require(open_directory(str(tmp_path / "pairs")), "pairs")
    assert pairs.fingerprint[:12] in output.aliases
    assert json.loads(model.metadata)["inputs"] == {"pairs": pairs.fingerprint}
    (entry,) = model.manifest.contents
    manifest = artifacts.require(
        open_directory(str(tmp_path / "preference_model")), "preference_model"
    )
    assert entry.digest == manifest.files[0].checksum
    assert entry.ref == (tmp_path / "preference_model" / "model" / "weights.bin").as_uri()
    assert (entry.size, entry.local_path) == (160, "")


def test_files_of_stages_that_are_asked_for_are_sent(tmp_path: Path) -> None:
    output, _, model = made(tmp_path, upload=("preference_model",))
    (entry,) = model.manifest.contents
    assert entry.ref == ""
    assert Path(entry.local_path).read_bytes() == b"preference_model" * 10
    assert output.manifest.contents[0].local_path == ""


def test_a_key_that_is_missing_is_said_before_anything_is_started(tmp_path: Path) -> None:
    log = open_log(tmp_path / "run", wandb_mode="online")
    with pytest.raises(ConfigError, match=r"logging\.wandb=online: wandb did not start: .*no key"):
        log.start()
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_be_reached_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    output = io.StringIO()
    log = open_log(tmp_path, output, wandb_mode="online")
    began = time.monotonic()
    log.start()
    # Of 5 s, its patience; not of the minutes that wandb tries for.
    assert time.monotonic() - began < 30
    assert "goes on offline" in output.getvalue()
    log.record("policy", {"step": "1/2", "loss": 0.5})
    close(log)
    (run,) = wandb_files.offline_runs(tmp_path)
    assert losses(run) == [(1, 0.5)]


@pytest.mark.slow
def test_a_service_that_dies_stops_nothing(tmp_path: Path) -> None:
    status, output = attempt(tmp_path, 1, 10, "lose-wandb")
    assert status == 0
    assert output.count("goes on without it") == 1
    assert len((tmp_path / METRICS_NAME).read_text().splitlines()) == 9
    # What is missing, the next attempt sends.
    assert attempt(tmp_path, 10, 11, "finish")[0] == 0
    (run,) = wandb_files.offline_runs(tmp_path)
    assert [step for step, _ in losses(run)] == list(range(1, 11))
