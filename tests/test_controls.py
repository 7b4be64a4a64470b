"""Both controls, end to end on the tiny random model: real Ray, vLLM and DeepSpeed.

Each run is as small as it can be and still go through every stage. The policy takes steps that are
far too long, so that its replies change and a control that taught a trait would show it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from charactertrain import artifacts
from charactertrain.artifacts import Json, Manifest
from charactertrain.evaluation.gates import is_shown
from charactertrain.records import EvaluationSample, Prompt, Ranking, Response
from charactertrain.stages.definitions import NAMES
from charactertrain.storage import Directory, open_directory

pytestmark = [pytest.mark.ray, pytest.mark.engine, pytest.mark.slow]

_TIMEOUT_SECONDS = 1200
_SETTINGS = (
    "prompts.per_trait=24",
    "preference_model.gold_share=0",
    "preference_model.evaluations=1",
    "policy.num_steps=2",
    "policy.learning_rate=1e-3",
    # One after the other, so that a run repeats itself.
    "policy.max_staleness=0",
    "policy.watch.every=0",
    "policy.resources.checkpoint_every=99",
    "evaluation.length_prompts=0",
    "evaluation.attribution_prompts=0",
    "evaluation.judge.prompts_per_trait=0",
    "evaluation.judge.quality_prompts=0",
    "evaluation.preferences.pairs_per_trait=0",
    "evaluation.probes.names=[]",
)


def finished(control: str, directory: Path) -> Path:
    """The directory of a finished run beside the smoke experiment."""
    command = [sys.executable, "-m", "charactertrain", f"experiment=[smoke,{control}]"]
    done = subprocess.run(
        [*command, *_SETTINGS, f"run.dir={directory}"],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return directory


def artifact(run: Path, stage: str) -> tuple[Directory, Manifest]:
    directory = open_directory(str(run / stage))
    return directory, artifacts.require(directory, stage)


def results(run: Path) -> Json:
    found: Json = json.loads((run / "evaluation" / "report.json").read_text())
    return found


@pytest.fixture(name="neutral", scope="module")
def neutral_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished("neutral", tmp_path_factory.mktemp("controls") / "neutral")


@pytest.fixture(name="placebo", scope="module")
def placebo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished("placebo", tmp_path_factory.mktemp("controls") / "placebo")


def check_control(run: Path, control: str) -> None:
    """It is finished, says what it is, and measures the traits on replies that differ."""
    manifests = {stage: artifact(run, stage)[1] for stage in NAMES}
    for stage in ("preference_model", "policy"):
        assert manifests[stage].summary["control"] == control
    card = (run / "policy" / "model" / "README.md").read_text()
    assert f", a {control} control of the constitution" in card.splitlines()[0]
    report = results(run)
    assert set(report["traits"]) == {"enthusiastic", "uncertain", "scientific"}
    assert all("contrast" in measures for measures in report["traits"].values())
    samples = artifacts.read_rows(*artifact(run, "evaluation"), "samples", EvaluationSample)
    texts = {arm: [s.text for s in samples if s.arm == arm] for arm in ("base", "policy")}
    assert texts["base"] != texts["policy"]


def test_the_neutral_control_shows_no_character_and_measures_the_traits(neutral: Path) -> None:
    check_control(neutral, "neutral")
    directory, manifest = artifact(neutral, "prompts")
    assert manifest.summary["template_check"] is None
    assert manifest.table("probes") == []
    responses = artifacts.read_rows(*artifact(neutral, "responses"), "responses", Response)
    assert {response.variant for response in responses} == {"none"}
    directory, manifest = artifact(neutral, "rankings")
    assert manifest.summary["ranker_check"] is None
    assert list(manifest.summary["agreement"]) == ["rating"]
    rankings = artifacts.read_rows(directory, manifest, "rankings", Ranking)
    assert {ranking.method for ranking in rankings} == {"judge"}
    # One way of writing tells nothing apart.
    assert artifact(neutral, "preference_model")[1].summary["accuracy"]["provenance_only"] == 0.5
    page = (neutral / "report" / "report.html").read_text()
    assert page.count("Not applicable: no character is shown") == 2


def test_the_placebo_is_of_shuffled_labels_and_finds_no_trait(placebo: Path) -> None:
    check_control(placebo, "placebo")
    _, manifest = artifact(placebo, "preference_model")
    assert manifest.summary["labels"] == "shuffled"
    _, manifest = artifact(placebo, "policy")
    assert {row["phase"] for row in manifest.summary["history"]} == {"optimise"}
    # Not the reward, which is the placebo's own and was optimised.
    traits = results(placebo)["traits"].values()
    effects = [
        measures[name]["policy"]
        for measures in traits
        for name in ("contrast", "detector_rate")
        if name in measures
    ]
    assert len(effects) > len(traits)
    assert min(effect["p_holm"] for effect in effects) > 0.05
    assert not any(is_shown(measures, "policy") for measures in traits)


def test_both_controls_are_asked_the_same_prompts(neutral: Path, placebo: Path) -> None:
    asked = [
        {
            (prompt.prompt_id, prompt.split, prompt.text)
            for prompt in artifacts.read_rows(*artifact(run, "prompts"), "prompts", Prompt)
        }
        for run in (neutral, placebo)
    ]
    assert asked[0] == asked[1]
