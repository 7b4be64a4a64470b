"""Finished runs side by side: what is read, what is shown, and what is refused by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from charactertrain import artifacts
from charactertrain.artifacts import Identity, Outcome
from charactertrain.compare import comparison
from charactertrain.compare.__main__ import main
from charactertrain.compare.runs import read_runs, short_names
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.records import EvaluationSample, to_table
from charactertrain.storage import open_directory

Json = dict[str, Any]
MakeRun = Callable[..., str]


def effect(difference: float) -> Json:
    return {
        "base": 0.0,
        "arm": difference,
        "difference": difference,
        "ci_low": difference - 0.1,
        "ci_high": difference + 0.1,
        "p_value": 0.01,
        "p_holm": 0.02,
        "num_responses": 20,
        "num_prompts": 10,
    }


def results(rise: float) -> Json:
    return {
        "arms": [{"name": "base", "kind": "base", "source": None}],
        "traits": {"warm": {"contrast": {"policy": effect(rise), "prompted": effect(2.0)}}},
        "overall": {"length": {"policy": effect(1.5)}},
    }


def gates(rise: float) -> list[Json]:
    return [
        {
            "name": "length",
            "text": "change of the length",
            "value": rise,
            "ci_low": None,
            "ci_high": None,
            "threshold": 0.4,
            "is_ceiling": True,
            "is_met": rise <= 0.4,
        }
    ]


def sample(prompt: str, arm: str, text: str) -> EvaluationSample:
    return EvaluationSample(
        sample_id=f"{prompt}-{arm}",
        prompt_id=prompt,
        trait_id="warm",
        kind="trait",
        arm=arm,
        prompt=prompt,
        text=text,
        num_tokens=9,
        finish_reason="stop",
        contrast=0.25,
        detected=None,
        reward=0.5,
        gold_reward=None,
        kl=0.0,
    )


@pytest.fixture(name="make_run")
def run_directory_maker(tmp_path: Path) -> MakeRun:
    """Makes a run directory with a policy's manifest and an evaluation."""

    def make_run(name: str, found: Json, *, steps: int, prompts: tuple[str, ...]) -> str:
        run = open_directory(str(tmp_path / name))
        artifacts.commit(
            run.child("policy"),
            Identity("policy", {}, {}),
            Outcome(()),
            resolved_config={"seed": 1, "policy": {"num_steps": steps}},
            code_version="0.1.0+test",
            wall_seconds=30.0,
        )
        directory = run.child("evaluation")
        rows = [
            sample(prompt, arm, f"{arm} of {name} says <b> {prompt}")
            for prompt in prompts
            for arm in ("base", "policy")
        ]
        directory.write_table("samples/part-000000.parquet", to_table(rows, EvaluationSample))
        directory.write_bytes("report.json", json.dumps(found).encode())
        evaluation = artifacts.commit(
            directory,
            Identity("evaluation", {}, {}),
            Outcome(("report.json", "samples/part-000000.parquet")),
            resolved_config={"seed": 1, "evaluation": {"max_tokens": 24}},
            code_version="0.1.0+test",
            wall_seconds=12.0,
        )
        contrast = found["traits"].get("warm", {}).get("contrast")
        if contrast is not None:
            artifacts.commit(
                run.child("report"),
                Identity("report", {}, {"evaluation": evaluation.fingerprint}),
                Outcome((), {}, {"gates": gates(contrast["policy"]["arm"])}),
                resolved_config={},
                code_version="0.1.0+test",
                wall_seconds=1.0,
            )
        return str(tmp_path / name)

    return make_run


@pytest.fixture(name="two_runs")
def pair_of_runs(make_run: MakeRun) -> list[str]:
    return [
        make_run("short", results(0.3), steps=6, prompts=("tea?", "rain?")),
        make_run("long", results(0.7), steps=60, prompts=("rain?", "bees?")),
    ]


def test_comparison_holds_effects_gates_and_what_differs_by_run(two_runs: list[str]) -> None:
    found = comparison.as_json(read_runs(two_runs))
    assert [run["name"] for run in found["runs"]] == ["short", "long"]
    assert found["runs"][0]["wall_seconds"] == 42.0
    # Not the seed nor max_tokens, in which they agree.
    assert found["settings"] == {"policy.num_steps": {"short": "6", "long": "60"}}
    contrasts = found["traits"]["warm"]["contrast"]
    assert {run: effect["arm"] for run, effect in contrasts.items()} == {"short": 0.3, "long": 0.7}
    assert found["overall"]["length"]["long"]["difference"] == 1.5
    assert [found["gates"]["length"][run]["is_met"] for run in ("short", "long")] == [True, False]
    assert found["num_common_prompts"] == 1


def test_texts_are_of_prompts_that_all_runs_answered(two_runs: list[str]) -> None:
    view = comparison.view(read_runs(two_runs))
    (trait,) = view.texts
    (shown,) = trait.samples
    assert shown.prompt == "rain?"
    assert {arm: reply.text for arm, reply in shown.replies.items()} == {
        "base": "base of short says <b> rain?",
        "short": "policy of short says <b> rain?",
        "long": "policy of long says <b> rain?",
    }


def test_command_writes_a_page_without_scripts_and_its_numbers(
    two_runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pages" / "both.html"
    main([*two_runs, "--out", str(out)])
    page = out.read_text()
    assert "<script" not in page
    assert "://" not in page
    assert "says &lt;b&gt; rain?" in page
    assert "the runs were evaluated on different prompts" in page
    assert re.search(r"policy\.num_steps</code></th><td><code>6</code></td><td><code>60<", page)
    numbers = json.loads(out.with_suffix(".json").read_text())
    assert numbers == comparison.as_json(read_runs(two_runs))
    assert str(out) in capsys.readouterr().out


def test_run_without_an_evaluation_is_named(two_runs: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ArtifactError, match=r"no evaluation artifact in .*/empty/evaluation"):
        read_runs([two_runs[0], str(empty)])


def test_run_with_results_of_another_form_is_named(make_run: MakeRun, two_runs: list[str]) -> None:
    old = make_run("old", {"traits": {}, "length": {}}, steps=6, prompts=("tea?",))
    with pytest.raises(ArtifactError, match=r"old/evaluation/report\.json: expected arms, overall"):
        read_runs([two_runs[0], old])


def test_one_run_or_the_same_twice_is_refused(two_runs: list[str]) -> None:
    with pytest.raises(ConfigError, match="1 given"):
        read_runs(two_runs[:1])
    with pytest.raises(ConfigError, match=r"short is given twice"):
        read_runs([two_runs[0], two_runs[1], two_runs[0]])


def test_command_says_what_is_missing_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert stopped.value.code == 2
    assert "a/evaluation: manifest.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["/runs/a", "/runs/b"], ["a", "b"]),
        (["/one/demo", "/two/demo"], ["one/demo", "two/demo"]),
        (["/runs/base", "/runs/b"], ["runs/base", "runs/b"]),
    ],
)
def test_runs_are_named_by_the_end_that_tells_them_apart(uris: list[str], names: list[str]) -> None:
    assert short_names(uris) == names


def test_gates_of_a_report_of_another_evaluation_are_not_shown(two_runs: list[str]) -> None:
    report = open_directory(two_runs[0]).child("report")
    report.delete("manifest.json")
    artifacts.commit(
        report,
        Identity("report", {}, {"evaluation": "0" * 32}),
        Outcome((), {}, {"gates": gates(0.3)}),
        resolved_config={},
        code_version="0.1.0+test",
        wall_seconds=1.0,
    )
    first, second = read_runs(two_runs)
    assert first.gates == ()
    assert second.gates != ()
