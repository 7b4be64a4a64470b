"""The command line: what is found wrong before anything starts, and what is written besides."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from charactertrain import __main__
from charactertrain.__main__ import _print_summary, _resolved_yaml, default_values, run
from charactertrain.artifacts import Identity, Outcome, begin, commit
from charactertrain.config import validate
from charactertrain.exceptions import ArtifactError, ConfigError, UnavailableError
from charactertrain.storage import open_directory

Planned = Callable[..., str]


@pytest.fixture(name="planned")
def dry_run(compose: Any, model_cache: Path, tmp_path: Path) -> Planned:
    """What a dry run of the smoke experiment prints."""

    def plan(*overrides: str) -> str:
        config = validate(
            compose("experiment=smoke", f"run.dir={tmp_path / 'run'}", "run.dry=true", *overrides)
        )
        console = Console(record=True, quiet=True, width=200)
        run(config, console)
        return console.export_text()

    return plan


def test_the_resolved_config_holds_no_keys(compose: Any) -> None:
    location = "run.dir=s3://KEY:SECRET@bucket/run"
    text = _resolved_yaml(validate(compose("experiment=smoke", location))).decode()
    assert "dir: s3://bucket/run\n" in text
    assert "SECRET" not in text


def test_a_dry_run_makes_nothing(planned: Planned, tmp_path: Path) -> None:
    planned()
    assert not list((tmp_path / "run").rglob("*"))


def test_a_dry_run_finds_what_is_wrong_with_a_prompt_file(planned: Planned, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "Hi?", "trait_id": "nosuch"}\n')
    with pytest.raises(ConfigError, match="line 1: trait_id is 'nosuch'"):
        planned(f"prompts.file={path}")


@pytest.mark.parametrize(
    ("ablate", "problem"),
    [
        ("[nosuch]", "no trait 'nosuch'; expected some of enthusiastic, uncertain, scientific"),
        ("[enthusiastic,uncertain,scientific]", "nothing is left to be trained on"),
    ],
)
def test_a_dry_run_finds_an_ablation_that_cannot_be(
    planned: Planned, ablate: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=f"ablate: {problem}"):
        planned(f"ablate={ablate}")


def test_a_dry_run_finds_a_stage_that_cannot_be_sent(planned: Planned) -> None:
    with pytest.raises(ConfigError, match="no stage 'model'; expected some of traits"):
        planned("logging.wandb=offline", "logging.upload=[model]")


def test_a_dry_run_finds_that_another_run_is_not_finished(planned: Planned, tmp_path: Path) -> None:
    compare = f"evaluation.compare=[{tmp_path / 'other'}]"
    with pytest.raises(ArtifactError, match="other/policy"):
        planned(compare)
    # Stages before the evaluation do not want it.
    planned(compare, "run.until=policy")


def test_a_dry_run_finds_that_an_input_is_missing(planned: Planned) -> None:
    with pytest.raises(ArtifactError, match="no traits artifact"):
        planned("run.only=rankings")


def test_a_dry_run_that_would_be_refused_is(planned: Planned, tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path / "run")).child("traits")
    begin(directory, Identity("traits", {"constitution": "another"}, {}))
    with pytest.raises(ArtifactError, match="was made with other settings"):
        planned()


def summary_row(trait: str, measure: str, arm: str, p_holm: float | None) -> dict[str, Any]:
    effect = {"base": 0.1, "value": -0.257, "difference": -0.357, "ci_low": -0.412, "ci_high": 0.3}
    return {"trait": trait, "measure": measure, "arm": arm, **effect, "p_holm": p_holm}


def test_the_table_at_the_end_is_of_the_policy_and_fits_80_columns(tmp_path: Path) -> None:
    traits = ("curious", "a_trait_whose_name_is_longer_than_any_column", "untouched")
    directory = open_directory(str(tmp_path))
    measures = ("contrast", "detector_rate", "win_rate_length_controlled", "reward")
    effects = [
        summary_row(trait, measure, arm, 0.0123 if arm == "policy" else 0.777)
        for trait in traits[:2]
        for measure in measures
        for arm in ("prompted", "policy", "demo-dpo", "demo-placebo")
    ]
    effects.append(summary_row("untouched", "contrast", "policy", None))
    effects.append(summary_row("untouched", "detector_rate", "demo-dpo", 0.0001))
    summary = {"effects": effects, "verdicts": ["ok: all"], "objective": 0.25}
    identity = Identity("report", {}, {})
    manifest = commit(
        directory,
        identity,
        Outcome((), {}, summary),
        resolved_config={},
        code_version="",
        wall_seconds=0.0,
    )
    printed = io.StringIO()
    console = Console(file=printed, width=80, soft_wrap=True, highlight=False)
    assert _print_summary(console, manifest, directory) == 0.25
    *lines, page, objective = printed.getvalue().splitlines()
    assert objective == "objective: 0.25"
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.count("-0.357 p=0.012") == 6
    assert text.count("-0.357 no p") == 1
    assert text.count("not measured") == 2
    assert "0.777" not in text
    assert "reward" not in text
    # Folded, and not cut.
    assert "untouched" in text
    assert "…" not in text
    assert page.endswith("report/report.html")


def test_an_empty_run_directory_is_refused(compose: Any) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir"):
        validate(compose("experiment=smoke", "run.dir="))


def test_defaults_are_those_of_a_run_without_overrides(compose: Any) -> None:
    # Composed a second time, as within a run that Hydra started.
    assert default_values() == validate(compose()).model_dump(mode="json")
    assert default_values()["policy"]["num_steps"] != (
        validate(compose("experiment=smoke")).policy.num_steps
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("seed: expected a number"), 2),
        (ArtifactError("runs/mine: damaged"), 2),
        (UnavailableError("runs/mine: timed out"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_status_says_whether_it_helps_to_try_again(
    error: BaseException, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(__main__, "run", fail)
    monkeypatch.setattr("sys.argv", ["charactertrain", f"run.dir={tmp_path}/run"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == status
