"""The stages in order: which would run, be skipped, go on or be refused, and running them.

A stage is described here and implemented elsewhere: this module imports nothing heavy, so that
a plan is made in an instant and before anything is started.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from charactertrain import artifacts, leases
from charactertrain.artifacts import Identity, Json, Manifest, Outcome
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.storage import Directory


@dataclass(frozen=True)
class Stage:
    """One job that makes one artifact."""

    name: str
    inputs: tuple[str, ...]
    """Names of the stages whose artifacts it reads."""
    identity_config: Json
    """What decides its result, apart from its inputs."""
    resolved_config: Json
    """Its whole config, for the manifest."""
    size: str
    """What it will make, for the plan; such as '288 responses'."""


class Action(StrEnum):
    """What happens to a stage."""

    RUN = "run"
    RESUME = "resume"
    SKIP = "skip"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Step:
    """A stage, what happens to it in this run, and why."""

    stage: Stage
    identity: Identity
    action: Action
    reasons: tuple[str, ...]
    """What makes it refuse; empty otherwise."""
    made_by: str | None = None
    """The code version of the artifact that is there."""


@dataclass(frozen=True)
class Work:
    """What an implementation of a stage is handed."""

    stage: Stage
    identity: Identity
    directory: Directory
    inputs: Mapping[str, tuple[Directory, Manifest]]


def make_plan(
    stages: Sequence[Stage], run_directory: Directory, *, only: str | None, until: str | None
) -> list[Step]:
    """Decide for each selected stage, in order, from what is in the run directory.

    Identities chain: a stage's fingerprint covers those of its inputs, so a change anywhere
    upstream changes every stage below it. An artifact whose input is to be made again refuses:
    its fingerprint fits, but what is made again may come out otherwise, as on other hardware.
    """
    selected = select(stages, only=only, until=until)
    chained = identities(stages)
    made_again: set[str] = set()
    steps = []
    for stage in stages:
        if stage.name not in selected:
            continue
        identity = chained[stage.name]
        step = _step(stage, identity, run_directory.child(stage.name))
        if step.action is Action.SKIP and made_again.intersection(stage.inputs):
            reasons = tuple(_made_again(name) for name in stage.inputs if name in made_again)
            step = replace(step, action=Action.REFUSE, reasons=reasons)
        if step.action is not Action.SKIP:
            made_again.add(stage.name)
        steps.append(step)
    return steps


def identities(stages: Sequence[Stage]) -> dict[str, Identity]:
    """The identity of each stage, by its name; a stage's covers those of its inputs."""
    chained: dict[str, Identity] = {}
    for stage in stages:
        inputs = {name: chained[name].fingerprint for name in stage.inputs}
        chained[stage.name] = Identity(stage.name, stage.identity_config, inputs)
    return chained


def _made_again(name: str) -> str:
    return (
        f"inputs.{name}: it is to be made again, and may differ from the one that this artifact "
        "was made of"
    )


def select(stages: Sequence[Stage], *, only: str | None, until: str | None) -> list[str]:
    """Names of the stages that `run.only` and `run.until` choose.

    The latter chooses its stage and those that it is made of, directly or through others.
    """
    names = [stage.name for stage in stages]
    for key, value in (("run.only", only), ("run.until", until)):
        if value is not None and value not in names:
            raise ConfigError(f"{key}: no stage {value!r}; expected one of {', '.join(names)}")
    if only is not None and until is not None:
        raise ConfigError("run.only and run.until exclude each other; give one of them")
    if only is not None:
        return [only]
    if until is None:
        return names
    needed = {until}
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.inputs)
    return [name for name in names if name in needed]


def _step(stage: Stage, identity: Identity, directory: Directory) -> Step:
    manifest, made_by = artifacts.read_manifest(directory), None
    if manifest is not None:
        made_by = manifest.code_version
        if manifest.fingerprint == identity.fingerprint:
            return Step(stage, identity, Action.SKIP, (), made_by)
        found = manifest.identity
    else:
        started = artifacts.unfinished(directory)
        if started is None:
            return Step(stage, identity, Action.RUN, ())
        if started.fingerprint == identity.fingerprint:
            return Step(stage, identity, Action.RESUME, ())
        found = started
    reasons = tuple(artifacts.differences(identity, found))
    return Step(stage, identity, Action.REFUSE, reasons, made_by)


def check_plan(steps: Sequence[Step], run_directory: Directory, *, code_version: str) -> None:
    """Raise ArtifactError if any stage refuses, saying what differs and the ways out."""
    refused = [step for step in steps if step.action is Action.REFUSE]
    if not refused:
        return
    first = refused[0]
    reasons = "\n".join(f"  {reason}" for reason in first.reasons)
    names = ", ".join(step.stage.name for step in refused)
    versions = ""
    if first.made_by not in (None, code_version):
        versions = (
            f" It was made by version {first.made_by} and this is {code_version}: what one of them "
            "does not name, it does not have."
        )
    raise ArtifactError(
        f"{run_directory.uri}/{first.stage.name} was made with other settings or of other "
        f"inputs:\n{reasons}\nNothing was changed.{versions} Stages that would not match: {names}. "
        "Ways out: give the settings and put back the inputs that it was made with; choose another "
        "run.dir; or move those directories away, all of them, to make them anew."
    )


def check_inputs(steps: Sequence[Step], run_directory: Directory) -> None:
    """Raise ArtifactError if an input is neither there nor made by an earlier step."""
    made: set[str] = set()
    for step in steps:
        for name in step.stage.inputs:
            if name in made:
                continue
            manifest = artifacts.require(run_directory.child(name), name)
            expected = step.identity.inputs[name]
            if manifest.fingerprint != expected and step.action is not Action.SKIP:
                identity = manifest.identity
                raise ArtifactError(
                    f"{run_directory.uri}/{name} was made with other settings than this run asks "
                    f"for (fingerprint {manifest.fingerprint[:12]}, expected {expected[:12]}; "
                    f"its config: {identity.config}). Run it again in another run.dir, or give "
                    "the settings it was made with."
                )
        made.add(step.stage.name)


@dataclass(frozen=True)
class Share:
    """Where runs have artifacts in common, each made once: `<stage>/<fingerprint>/`."""

    directory: Directory
    say: Callable[[str], None]
    """Shows a line: that another run is waited for, or made what is taken."""
    lease_seconds: float = leases.LEASE_SECONDS
    """After which a run that was killed while it made an artifact is overtaken."""

    def place(self, name: str, fingerprint: str) -> Directory:
        """The directory of one artifact."""
        return self.directory.child(name).child(fingerprint)


def execute(
    step: Step,
    run_directory: Directory,
    implementation: Callable[[Work], Outcome],
    *,
    code_version: str,
    share: Share | None = None,
) -> Manifest:
    """Run one step and commit its artifact; the manifest, also of a stage that is skipped.

    What is there now counts and not what was there when the plan was made, hours ago perhaps.
    """
    name = step.stage.name
    directory = run_directory.child(name)
    if step.action is Action.SKIP or artifacts.read_manifest(directory) is not None:
        return _finished(step, directory)
    inputs = {}
    for source in step.stage.inputs:
        place = run_directory.child(source)
        inputs[source] = (place, artifacts.require(place, source))
    work = Work(step.stage, step.identity, directory, inputs)
    if share is None or not _can_share(share, work):
        return _make(work, implementation, code_version, check=lambda: None)
    shared = share.place(name, step.identity.fingerprint)
    with leases.hold(shared, say=share.say, seconds=share.lease_seconds) as lease:
        if artifacts.read_manifest(shared) is None:
            work = replace(work, directory=shared)
            _make(work, implementation, code_version, check=lease.check)
        else:
            share.say(f"taken from {shared.uri}, where another run made it")
    return artifacts.take(shared, directory, name)


def _can_share(share: Share, work: Work) -> bool:
    """Whether what is made in the share would be of this run's inputs, and is not begun here.

    Equal fingerprints ask for the same, and other hardware may write other rows: so each input
    must be the share's own.
    """
    if artifacts.unfinished(work.directory) is not None:
        return False
    for name, (_, manifest) in work.inputs.items():
        shared = artifacts.read_manifest(share.place(name, manifest.fingerprint))
        if shared is None or shared.files != manifest.files:
            return False
    return True


def _make(
    work: Work,
    implementation: Callable[[Work], Outcome],
    code_version: str,
    *,
    check: Callable[[], None],
) -> Manifest:
    """Make an artifact; `check` is called before it is committed, and may refuse."""
    artifacts.begin(work.directory, work.identity)
    started = time.monotonic()
    outcome = implementation(work)
    check()
    return artifacts.commit(
        work.directory,
        work.identity,
        outcome,
        resolved_config=work.stage.resolved_config,
        code_version=code_version,
        wall_seconds=time.monotonic() - started,
    )


def _finished(step: Step, directory: Directory) -> Manifest:
    """The manifest of the step's artifact; raises ArtifactError if another's is in its place."""
    manifest = artifacts.require(directory, step.stage.name)
    if manifest.fingerprint != step.identity.fingerprint:
        lines = "\n".join(
            f"  {line}" for line in artifacts.differences(step.identity, manifest.identity)
        )
        raise ArtifactError(
            f"{directory.uri}: expected no artifact or the one of this run, found one that another "
            f"run made since this run began:\n{lines}\nNothing was overwritten. Use another "
            "run.dir for one of the two runs."
        )
    return manifest
