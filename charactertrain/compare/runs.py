"""A finished run as a comparison reads it, from its directory alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from charactertrain import artifacts
from charactertrain.artifacts import Json, Manifest
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.records import EvaluationSample
from charactertrain.report.effects_view import BASE, POLICY
from charactertrain.report.settings import flat_settings
from charactertrain.stages.definitions import NAMES
from charactertrain.storage import Directory, open_directory


@dataclass(frozen=True)
class Answer:
    """The first replies to one held-out prompt."""

    trait_id: str
    kind: str
    base: EvaluationSample
    policy: EvaluationSample


@dataclass(frozen=True)
class FinishedRun:
    """One run that has an evaluation."""

    name: str
    """The end of its directory that no other run of the comparison has."""
    uri: str
    results: Json
    """Its report.json."""
    gates: tuple[Json, ...]
    """How its policy stands, from its report; none where it has no report yet."""
    settings: dict[str, str]
    """Every setting of its stages as JSON, by its place with dots."""
    answers: dict[str, Answer]
    """By the prompt's text: runs that wrote the same prompt may have given it other ids."""
    evaluation: Manifest
    wall_seconds: float
    """Of all its stages."""


def read_runs(locations: Sequence[str]) -> tuple[FinishedRun, ...]:
    """The runs in the order in which they are given.

    Raises:
        ArtifactError: A directory has no finished evaluation, or one of another form.
        ConfigError: Fewer than two are given, or one is given twice.
    """
    directories = [open_directory(location) for location in locations]
    uris = [directory.uri for directory in directories]
    twice = sorted({uri for uri in uris if uris.count(uri) > 1})
    if twice or len(uris) < 2:
        found = f"{twice[0]} is given twice" if twice else f"{len(uris)} given"
        raise ConfigError(
            f"expected two or more run directories that differ, found: {found}. Name each run once"
        )
    return tuple(
        _read(name, directory)
        for name, directory in zip(short_names(uris), directories, strict=True)
    )


def short_names(uris: Sequence[str]) -> list[str]:
    """The last part of each place, or as many parts as it takes to tell them apart.

    None is called after the base, which stands beside them.
    """
    parts = [PurePosixPath(uri).parts for uri in uris]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len({*names, BASE}) == len(names) + 1:
            return names
    return list(uris)


def _read(name: str, run: Directory) -> FinishedRun:
    directory = run.child("evaluation")
    evaluation = artifacts.require(directory, "evaluation")
    results = json.loads(directory.read_bytes("report.json"))
    missing = [key for key in ("arms", "traits", "overall") if key not in results]
    if missing:
        raise ArtifactError(
            f"{directory.uri}/report.json: expected {', '.join(missing)}, found "
            f"{', '.join(results) or 'nothing'}. It was made by version {evaluation.code_version}; "
            "run its evaluation again with this one, in another run.dir"
        )
    found = (artifacts.read_manifest(run.child(stage)) for stage in NAMES[:-1])
    manifests = [manifest for manifest in found if manifest is not None]
    report = artifacts.read_manifest(run.child("report"))
    settings: dict[str, str] = {}
    for manifest in manifests:
        settings |= flat_settings(manifest.resolved_config)
    return FinishedRun(
        name=name,
        uri=run.uri,
        results=results,
        gates=_gates(report, evaluation),
        settings=settings,
        answers=_answers(directory, evaluation),
        evaluation=evaluation,
        wall_seconds=sum(manifest.wall_seconds for manifest in manifests),
    )


def _gates(report: Manifest | None, evaluation: Manifest) -> tuple[Json, ...]:
    """Of the report that was made of this evaluation; none where there is no such report."""
    if report is None or report.identity.inputs.get("evaluation") != evaluation.fingerprint:
        return ()
    return tuple(report.summary["gates"])


def _answers(directory: Directory, manifest: Manifest) -> dict[str, Answer]:
    first: dict[str, dict[str, EvaluationSample]] = {}
    for sample in artifacts.read_rows(directory, manifest, "samples", EvaluationSample):
        first.setdefault(sample.prompt, {}).setdefault(sample.arm, sample)
    return {
        prompt: Answer(arms[BASE].trait_id, arms[BASE].kind, arms[BASE], arms[POLICY])
        for prompt, arms in first.items()
        if {BASE, POLICY} <= arms.keys()
    }
