"""The whole loop on the tiny random model: real Ray, vLLM and DeepSpeed, killed at every turn.

One run is killed with SIGKILL in a data stage and in both training stages, and goes on by the same
command each time: with two workers, then with one, and with two again. The tests below look at what
it left.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import pytest

from charactertrain import artifacts
from charactertrain.objectives.kl_control import KlController
from charactertrain.records import (
    EvaluationSample,
    HeldOutReward,
    PreferencePair,
    Prompt,
    Response,
)
from charactertrain.stages.definitions import NAMES
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow]

_TIMEOUT_SECONDS = 600
_SETTINGS = (
    "experiment=smoke",
    "cluster.num_workers=2",
    "deepspeed@preference_model.deepspeed=zero2",
    "deepspeed@policy.deepspeed=zero3",
    "policy.num_steps=8",
    "policy.kl.target=0.01",
    "policy.resources.checkpoint_every=2",
    # Two chunks at a time, so that some are done when others are not.
    "sampler.resources.max_num_seqs=8",
    "sampler.resources.rows_per_chunk=8",
)


def start(directory: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """The command of a run, started."""
    command = [sys.executable, "-m", "charactertrain", *_SETTINGS, f"run.dir={directory}"]
    log = directory.parent / "log.txt"
    with log.open("ab") as output:
        return subprocess.Popen(
            [*command, *overrides],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )


def finish(directory: Path, *overrides: str) -> int:
    """Run to the end; the exit status."""
    process = start(directory, *overrides)
    try:
        return process.wait(timeout=_TIMEOUT_SECONDS)
    finally:
        process.kill()


def kill_when(directory: Path, condition: Callable[[], bool], *overrides: str) -> None:
    """Run until the condition holds, then kill the driver without warning."""
    process = start(directory, *overrides)
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        assert process.poll() is None, (directory.parent / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, "the moment to kill at never came"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def metric_lines(directory: Path) -> list[dict[str, object]]:
    """Every line of metrics so far, over all attempts."""
    file = directory / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


@dataclass(frozen=True)
class KilledRun:
    """A finished run, and how much of its metrics each killed training stage had written."""

    directory: Path
    lines_at_kill: dict[str, int]


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> KilledRun:
    """A run that was killed three times and finished."""
    directory = tmp_path_factory.mktemp("end_to_end") / "run"
    responses = directory / "responses" / "responses"
    kill_when(directory, lambda: len(list(responses.glob("part-*.parquet"))) >= 2)
    assert not (directory / "responses" / "manifest.json").exists()
    lines_at_kill = {}
    moments = {
        "preference_model": (partial(_has_checkpoint, directory / "preference_model"), 2),
        "policy": (partial(_has_checkpoint_after_warm_start, directory / "policy"), 1),
    }
    for stage, (moment, num_workers) in moments.items():
        kill_when(directory, moment, f"cluster.num_workers={num_workers}")
        assert not (directory / stage / "manifest.json").exists()
        lines_at_kill[stage] = len(metric_lines(directory))
    status = finish(directory)
    assert status == 0, (directory.parent / "log.txt").read_text()[-3000:]
    return KilledRun(directory, lines_at_kill)


def _has_checkpoint(stage: Path) -> bool:
    # The index of reported checkpoints is written after a checkpoint is whole.
    index = stage / "checkpoints" / "checkpoint_manager_snapshot.json"
    return index.exists() and "checkpoint_dir_name" in index.read_text()


def _has_checkpoint_after_warm_start(stage: Path) -> bool:
    if not _has_checkpoint(stage):
        return False
    index = (stage / "checkpoints" / "checkpoint_manager_snapshot.json").read_text()
    try:
        states = [
            json.loads(file.read_text())
            for file in stage.glob("checkpoints/*/charactertrain.json")
            if file.parent.name in index
        ]
    except (OSError, ValueError):
        # Deleted or half written at this moment: the run goes on.
        return False
    return any(state["phase"] == "optimise" for state in states)


@pytest.fixture(scope="module")
def finished(killed_run: KilledRun) -> Path:
    """The run directory of the finished run."""
    return killed_run.directory


def test_every_stage_leaves_an_artifact_with_its_files(finished: Path) -> None:
    for stage in NAMES:
        directory = open_directory(str(finished / stage))
        manifest = artifacts.require(directory, stage)
        artifacts.verify_checksums(directory, manifest)


def test_a_killed_data_stage_loses_and_doubles_no_row(finished: Path) -> None:
    prompts_directory = open_directory(str(finished / "prompts"))
    prompts = artifacts.read_rows(
        prompts_directory, artifacts.require(prompts_directory, "prompts"), "prompts", Prompt
    )
    directory = open_directory(str(finished / "responses"))
    manifest = artifacts.require(directory, "responses")
    responses = artifacts.read_rows(directory, manifest, "responses", Response)
    ids = [response.response_id for response in responses]
    assert len(ids) == len(set(ids))
    asked = {
        (p.prompt_id, v) for p in prompts if p.split != "test" for v in ("none", "mild", "strong")
    }
    answered = {(response.prompt_id, response.variant) for response in responses}
    assert answered <= asked
    assert len(asked) == len(responses) + sum(manifest.rejects.values())


def test_killed_training_goes_on_from_its_checkpoint(killed_run: KilledRun) -> None:
    lines = metric_lines(killed_run.directory)
    for stage in ("preference_model", "policy"):
        after = lines[killed_run.lines_at_kill[stage] :]
        assert not any("warm start" in line for line in after if stage == "policy")
        first = next(str(line["step"]) for line in after if line["stage"] == stage)
        assert int(first.split("/")[0]) > 1


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("preference_model", "model.json"),
        ("preference_model", "gold.json"),
        ("policy", "warm_start.json"),
        ("policy", "optimise.json"),
    ],
)
def test_a_resumed_history_has_every_step_once(finished: Path, stage: str, name: str) -> None:
    stored = json.loads((finished / stage / name).read_text())
    history = stored["history"] if isinstance(stored, dict) else stored
    steps = [row["step"] for row in history]
    assert steps == list(range(1, len(steps) + 1))


def test_sampler_and_trainer_agree_before_and_after_the_first_update(finished: Path) -> None:
    history = json.loads((finished / "policy" / "optimise.json").read_text())
    assert history[0]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert history[0]["clip_fraction"] == 0.0
    assert history[0]["sync_difference"] < 1e-3


def test_the_pull_to_the_reference_is_steered_over_the_kill(finished: Path) -> None:
    history = json.loads((finished / "policy" / "optimise.json").read_text())
    controller = KlController(0.05, target=0.01)
    for row in history:
        assert row["kl_coef"] == pytest.approx(controller.coef)
        controller = controller.after(row["kl"])


def test_engines_write_ahead_as_far_as_they_may(finished: Path) -> None:
    history = json.loads((finished / "policy" / "optimise.json").read_text())
    # 1 by config: written while the step before was trained.
    assert max(row["max_staleness"] for row in history) == 1
    assert all(0 <= row["staleness"] <= 1 for row in history)
    assert all(abs(row["sampler_kl"]) < 1e-3 for row in history if row["max_staleness"] == 0)


def test_the_policy_is_read_while_it_is_trained(finished: Path) -> None:
    watch = json.loads((finished / "policy" / "watch.json").read_text())
    readings = {reading["step"]: reading for reading in watch["readings"]}
    assert list(readings) == [0, 2, 4, 6, 8]
    assert readings[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert readings[8]["kl"] > 0
    best = max(readings.values(), key=lambda reading: reading["gold"])
    assert watch["exported_step"] == best["step"]
    assert not (finished / "policy" / "best").exists()


@pytest.mark.parametrize(("objective", "measure"), [("dpo", "margin"), ("best_of_n", "loss")])
def test_baselines_learn_from_the_same_artifacts(
    finished: Path, tmp_path: Path, objective: str, measure: str
) -> None:
    directory = tmp_path / "run"
    for stage in NAMES[: NAMES.index("policy")]:
        shutil.copytree(finished / stage, directory / stage)
    settings = (f"objective={objective}", "run.only=policy", "policy.num_steps=3")
    assert finish(directory, *settings) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    history = json.loads((directory / "policy" / "optimise.json").read_text())
    assert [row["step"] for row in history] == [1, 2, 3]
    assert all(math.isfinite(row[measure]) for row in history)
    assert (directory / "policy" / "model" / "config.json").exists()


def test_the_report_covers_every_trait_and_arm_with_intervals(finished: Path) -> None:
    report = json.loads((finished / "evaluation" / "report.json").read_text())
    assert [arm["name"] for arm in report["arms"]] == ["base", "prompted", "policy"]
    assert set(report["missing_arms"]) == {"dpo", "best_of_n", "neutral", "placebo"}
    assert set(report["traits"]) == {"enthusiastic", "uncertain", "scientific"}
    for measures in report["traits"].values():
        assert {"contrast", "reward", "gold_reward", "win_rate"} <= set(measures)
        for by_arm in measures.values():
            assert set(by_arm) == {"prompted", "policy"}
            for effect in by_arm.values():
                assert effect["ci_low"] <= effect["difference"] <= effect["ci_high"]
                assert effect["difference"] == pytest.approx(effect["arm"] - effect["base"])
                assert effect["p_value"] <= effect["p_holm"] <= 1
    found = report["revealed_preferences"]
    assert set(found["arms"]) == {"base", "policy"}
    assert set(found["changes"]) == set(report["traits"]) == set(found["words"])
    for by_arm in found["changes"].values():
        (effect,) = by_arm.values()
        assert effect["ci_low"] <= effect["difference"] <= effect["ci_high"]
    assert -1 <= found["order_agreement"]["policy"]["estimate"] <= 1
    assert found["reading"]["base"]["told"]["num_choices"] > 0
    paid = report["attribution"]["shown"]
    assert set(paid) == {"reward", "gold_reward", "contrast", "detector_rate"}
    assert set(paid["reward"]["cells"]) == set(report["traits"])
    for cells in paid["reward"]["cells"].values():
        assert {cell["num_prompts"] for cell in cells.values()} == {2}
        assert set(cells) == set(report["traits"])
    page = (finished / "report" / "report.html").read_text()
    assert all(trait in page for trait in report["traits"])


def test_held_out_rewards_are_named_by_their_responses(finished: Path) -> None:
    directory = open_directory(str(finished / "preference_model"))
    manifest = artifacts.require(directory, "preference_model")
    found = artifacts.read_rows(directory, manifest, "held_out_rewards", HeldOutReward)
    responses = open_directory(str(finished / "responses"))
    rows = artifacts.read_rows(
        responses, artifacts.require(responses, "responses"), "responses", Response
    )
    split = {row.response_id: (row.prompt_id, row.trait_id, row.split) for row in rows}
    assert found
    for reward in found:
        assert split[reward.response_id] == (reward.prompt_id, reward.trait_id, "validation")
        assert len(reward.rewards) == 1
    level = manifest.summary["levels"]["model"]
    assert fmean(reward.rewards[0] for reward in found) == pytest.approx(level)


def test_all_arms_answer_the_same_prompts_and_no_training_prompt(finished: Path) -> None:
    asked = {arm: sorted({s.prompt_id for s in own}) for arm, own in samples(finished).items()}
    assert asked["base"] == asked["policy"] == asked["prompted"]
    pairs_directory = open_directory(str(finished / "pairs"))
    pairs = artifacts.read_rows(
        pairs_directory, artifacts.require(pairs_directory, "pairs"), "pairs", PreferencePair
    )
    assert not set(asked["base"]) & {pair.prompt_id for pair in pairs}


def samples(run: Path) -> dict[str, list[EvaluationSample]]:
    """Of an evaluation, by arm."""
    directory = open_directory(str(run / "evaluation"))
    manifest = artifacts.require(directory, "evaluation")
    rows = artifacts.read_rows(directory, manifest, "samples", EvaluationSample)
    return {arm: [row for row in rows if row.arm == arm] for arm in {row.arm for row in rows}}


def test_the_policy_of_another_run_is_one_more_arm(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    again = tmp_path / "again"
    for stage in NAMES[: NAMES.index("evaluation")]:
        shutil.copytree(finished / stage, again / stage)
    settings = (
        f"evaluation.compare=[{other}]",
        "run.only=evaluation",
        "evaluation.judge.prompts_per_trait=0",
        "evaluation.judge.quality_prompts=0",
        "evaluation.preferences.pairs_per_trait=0",
        "evaluation.attribution_prompts=0",
        "evaluation.probes.names=[]",
    )
    assert finish(again, *settings) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    report = json.loads((again / "evaluation" / "report.json").read_text())
    assert report["arms"][3] == {
        "name": "other",
        "kind": "run",
        "source": str(other),
        "ablated": [],
    }
    # Its weights are the policy's own, and its seeds: so are its replies. It is not asked a prompt
    # that the random model wrote for its training too.
    found = samples(again)
    asked = {s.prompt_id for s in found["other"]}
    own = [s for s in found["policy"] if s.prompt_id in asked]
    assert len(asked) > 0.8 * len({s.prompt_id for s in found["policy"]})
    assert sorted(s.text for s in own) == sorted(s.text for s in found["other"])
    for by_measure in report["policy_against"]["other"].values():
        assert by_measure["contrast"]["difference"] == pytest.approx(0.0, abs=1e-4)


def test_the_same_command_again_skips_everything(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    started = time.monotonic()
    assert finish(finished) == 0
    assert time.monotonic() - started < 60
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def test_another_setting_is_refused_and_changes_nothing(finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert finish(finished, "responses.temperature=0.9") == 2
    assert "this run asks for 0.9" in (finished.parent / "log.txt").read_text()
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
