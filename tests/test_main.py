"""The command line: what is found wrong before anything starts, and what is written besides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from charactertrain.__main__ import _resolved_yaml, default_values, run
from charactertrain.artifacts import Identity, begin
from charactertrain.config import validate
from charactertrain.exceptions import ArtifactError, ConfigError
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


def test_a_dry_run_finds_that_an_input_is_missing(planned: Planned) -> None:
    with pytest.raises(ArtifactError, match="no traits artifact"):
        planned("run.only=rankings")


def test_a_dry_run_that_would_be_refused_is(planned: Planned, tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path / "run")).child("traits")
    begin(directory, Identity("traits", {"constitution": "another"}, {}))
    with pytest.raises(ArtifactError, match="was made with other settings"):
        planned()


def test_an_empty_run_directory_is_refused(compose: Any) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir"):
        validate(compose("experiment=smoke", "run.dir="))


def test_defaults_are_those_of_a_run_without_overrides(compose: Any) -> None:
    # Composed a second time, as within a run that Hydra started.
    assert default_values() == validate(compose()).model_dump(mode="json")
    assert default_values()["policy"]["num_steps"] != (
        validate(compose("experiment=smoke")).policy.num_steps
    )
