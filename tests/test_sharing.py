"""Artifacts that several runs have in common: each is made once, whoever is killed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sharing_worker

from charactertrain import artifacts, pipeline
from charactertrain.artifacts import Outcome
from charactertrain.config import validate
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.pipeline import Share, Stage, Work
from charactertrain.storage import Directory, open_directory

STAGES = (
    Stage("prompts", (), {"seed": 1}, {}, "some"),
    Stage("responses", ("prompts",), {"seed": 1}, {}, "some"),
)


def run(directory: Directory, share: Share | None, write: Callable[[Work], Outcome]) -> None:
    for step in pipeline.make_plan(STAGES, directory, only=None, until=None):
        pipeline.execute(step, directory, write, code_version="1", share=share)


def writing(text: str) -> Callable[[Work], Outcome]:
    def write(work: Work) -> Outcome:
        work.directory.write_bytes("text.txt", text.encode())
        return Outcome(("text.txt",))

    return write


def unwanted(work: Work) -> Outcome:
    raise AssertionError(f"{work.stage.name} is made again")


@pytest.fixture(name="share")
def empty_share(tmp_path: Path) -> Share:
    """A share that nothing was put into."""
    return Share(open_directory(str(tmp_path / "share")), print, lease_seconds=60)


@pytest.fixture(name="place")
def run_directories(tmp_path: Path) -> Callable[[str], Directory]:
    """Run directories by their names."""
    return lambda name: open_directory(str(tmp_path / name))


def test_what_one_run_made_the_next_one_has(
    share: Share, place: Callable[[str], Directory], capsys: pytest.CaptureFixture[str]
) -> None:
    run(place("a"), share, writing("first"))
    assert not capsys.readouterr().out
    run(place("b"), share, unwanted)
    assert capsys.readouterr().out.count("where another run made it") == len(STAGES)
    for stage in STAGES:
        directory = place("b").child(stage.name)
        manifest = artifacts.require(directory, stage.name)
        artifacts.verify_checksums(directory, manifest)
        assert share.place(stage.name, manifest.fingerprint).exists("manifest.json")
    assert place("b").read_bytes("responses/text.txt") == b"first"


def test_other_settings_have_artifacts_of_their_own(
    share: Share, place: Callable[[str], Directory]
) -> None:
    run(place("a"), share, writing("first"))
    changed = Stage("responses", ("prompts",), {"seed": 2}, {}, "some")
    made = []

    def write(work: Work) -> Outcome:
        made.append(work.stage.name)
        return writing("second")(work)

    for step in pipeline.make_plan([STAGES[0], changed], place("b"), only=None, until=None):
        pipeline.execute(step, place("b"), write, code_version="1", share=share)
    assert made == ["responses"]
    assert place("b").read_bytes("prompts/text.txt") == b"first"
    assert place("b").read_bytes("responses/text.txt") == b"second"


def test_what_was_made_of_other_rows_is_not_mixed_in(
    share: Share, place: Callable[[str], Directory]
) -> None:
    """Equal fingerprints and other rows, as from other hardware."""
    run(place("a"), share, writing("from the share"))
    step, _ = pipeline.make_plan(STAGES, place("b"), only=None, until=None)
    pipeline.execute(step, place("b"), writing("own"), code_version="1")
    run(place("b"), share, writing("own"))
    assert place("b").read_bytes("responses/text.txt") == b"own"
    assert place("a").read_bytes("responses/text.txt") == b"from the share"


def test_what_was_begun_in_a_run_directory_goes_on_there(
    share: Share, place: Callable[[str], Directory]
) -> None:
    step, _ = pipeline.make_plan(STAGES, place("a"), only=None, until=None)
    artifacts.begin(place("a").child("prompts"), step.identity)
    run(place("a"), share, writing("own"))
    assert not share.directory.exists("prompts")
    assert place("a").read_bytes("prompts/text.txt") == b"own"


def test_a_damaged_artifact_of_a_share_is_named(
    share: Share, place: Callable[[str], Directory]
) -> None:
    run(place("a"), share, writing("first"))
    place_of = share.place(
        "prompts", artifacts.require(place("a").child("prompts"), "prompts").fingerprint
    )
    place_of.delete("text.txt")
    with pytest.raises(ArtifactError, match=r"share/prompts/\w+/text\.txt is missing"):
        run(place("b"), share, unwanted)


Start = Callable[[str, str], "subprocess.Popen[str]"]


@pytest.fixture(name="start")
def starter(tmp_path: Path) -> Iterator[Start]:
    """Starts runs that share, and ends them."""
    processes: list[subprocess.Popen[str]] = []
    (tmp_path / "share").mkdir()

    def start(name: str, stays_at: str) -> "subprocess.Popen[str]":
        arguments = [str(tmp_path / name), str(tmp_path / "share"), stays_at]
        process = subprocess.Popen(
            [sys.executable, sharing_worker.__file__, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def made(tmp_path: Path) -> list[str]:
    return sorted((tmp_path / "share" / "made").read_text().split())


EVERY_CHUNK = sorted(
    f"{stage.name}/{chunk}" for stage in sharing_worker.STAGES for chunk in sharing_worker.CHUNKS
)


def test_runs_at_the_same_time_make_each_chunk_once(start: Start, tmp_path: Path) -> None:
    runs = [start(f"run{number}", "none") for number in range(4)]
    for process in runs:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert made(tmp_path) == EVERY_CHUNK
    for number in range(4):
        directory = open_directory(str(tmp_path / f"run{number}" / "responses"))
        artifacts.verify_checksums(directory, artifacts.require(directory, "responses"))


@pytest.mark.parametrize("stage", ["prompts", "responses"])
def test_what_a_killed_run_began_another_finishes(start: Start, tmp_path: Path, stage: str) -> None:
    killed = start("killed", stage)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "staying\n"
    waiting = start("waiting", "none")
    assert waiting.stdout is not None
    assert any(f"process {killed.pid} on" in line for line in iter(waiting.stdout.readline, ""))
    killed.kill()
    output, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, output
    assert made(tmp_path) == EVERY_CHUNK
    again = start("killed", "none")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert made(tmp_path) == EVERY_CHUNK


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["run.share=s3://bucket/share"], "not to be had for URIs"),
        (["run.share=/share", "run.dir=s3://bucket/run"], "not to be had for URIs"),
        (
            ["cluster=ray", "sampler=vllm_gpu", "run.dir=/shared/run", "run.share=share"],
            r"run\.share 'share' is relative",
        ),
    ],
)
def test_a_share_that_cannot_work_is_refused(
    compose: Callable[..., dict[str, Any]], overrides: list[str], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        validate(compose(*overrides))
