"""The arms of an evaluation: whose replies are compared with the base's."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from charactertrain import artifacts
from charactertrain.artifacts import Json, Manifest, iter_rows
from charactertrain.exceptions import ConfigError
from charactertrain.records import Prompt
from charactertrain.report.effects_view import ArmKind
from charactertrain.storage import Directory, open_directory

_NAME = re.compile(r"[\w.=,+-]*[\w=,+-]", re.ASCII)
"""Of an arm: it becomes part of file names, and stands in tables."""

CONTROLS: dict[ArmKind, str] = {
    "dpo": "objective=dpo",
    "best_of_n": "objective=best_of_n",
    "neutral": "experiment=neutral",
    "placebo": "experiment=placebo",
}
"""Arms that an effect is to be held against, and what makes them."""


@dataclass(frozen=True)
class Arm:
    """One source of replies."""

    name: str
    kind: ArmKind
    source: Directory | None = None
    """Run directory of another run's policy."""
    ablated: tuple[str, ...] = ()
    """Traits that its training was without."""


OWN_ARMS = (Arm("base", "base"), Arm("prompted", "prompted"), Arm("policy", "policy"))
"""Of every evaluation: the base as it is, the base shown the trait, and the policy."""


def compared_policies(directories: Sequence[str]) -> dict[str, str | None]:
    """Fingerprint of each other run's policy, by the arm's name; None where it is not finished.

    Raises:
        ConfigError: Two have one name, or a name is that of an arm of this run or no name.
    """
    found: dict[str, str | None] = {}
    for directory in directories:
        run = open_directory(directory)
        name = _name(run)
        if name in found or name in (arm.name for arm in OWN_ARMS) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"evaluation.compare: {directory} would be the arm {name!r}. Arms are called after "
                "their run's directory: expected a name of letters, digits and '._=,+-' that "
                f"is none of {', '.join([*(arm.name for arm in OWN_ARMS), *found])}"
            )
        policy = artifacts.read_manifest(run.child("policy"))
        found[name] = None if policy is None else policy.fingerprint
    return found


def check_finished(directories: Sequence[str]) -> None:
    """Raise ArtifactError if another run has no finished policy."""
    for directory in directories:
        _policy(open_directory(directory))


def find(directories: Sequence[str], own: Directory) -> tuple[Arm, ...]:
    """Our own arms, and one for each other run, by name.

    Args:
        directories: Of the other runs.
        own: Directory of this run.

    Raises:
        ConfigError: A run was made from another base, so that it has no effect on this one.
    """
    others = sorted((open_directory(each) for each in directories), key=_name)
    return (*OWN_ARMS, *(_other(run, own) for run in others))


def _name(run: Directory) -> str:
    return PurePosixPath(run.root).name


def _other(run: Directory, own: Directory) -> Arm:
    policy, ours = _policy(run).identity.config, _policy(own).identity.config
    base, own_base = policy["model"]["weights"], ours["model"]["weights"]
    if base != own_base:
        raise ConfigError(
            f"evaluation.compare: {run.uri} was trained from another base ({base}) than this run "
            f"({own_base}); compare policies of one base"
        )
    return Arm(_name(run), _kind(run, own), run, tuple(policy["ablate"]))


def _kind(run: Directory, own: Directory) -> ArmKind:
    """What the run is to this one: told by what its stages were made with, and not by its name."""
    theirs, ours = _settings(run), _settings(own)
    if theirs != ours and _without(theirs, "ablate") == _without(ours, "ablate"):
        return "ablation"
    if theirs != ours and _without(theirs, "seed") == _without(ours, "seed"):
        return "seed"
    control = _control(theirs)
    return "run" if control is None or control == _control(ours) else control


def _settings(run: Directory) -> dict[str, Json]:
    """The identity of each stage that decides what the policy is; prompts may be others.

    They are written anew by another seed, or brought along so that several runs have the same.
    """
    names = ("traits", "responses", "rankings", "pairs", "preference_model", "policy")
    found = {name: artifacts.read_manifest(run.child(name)) for name in names}
    return {name: manifest.identity.config for name, manifest in found.items() if manifest}


def _without(settings: Mapping[str, Json], key: str) -> dict[str, Json]:
    return {
        stage: {name: value for name, value in config.items() if name != key}
        for stage, config in settings.items()
    }


def _control(settings: Mapping[str, Json]) -> ArmKind | None:
    objective = settings["policy"]["policy"]["objective"]["kind"]
    if objective == "dpo":
        return "dpo"
    if objective == "best_of_n":
        return "best_of_n"
    if settings.get("responses", {}).get("model", {}).get("traits_shown") == "none":
        return "neutral"
    model = settings.get("preference_model", {}).get("preference_model", {})
    return "placebo" if model.get("labels") == "shuffled" else None


def _policy(run: Directory) -> Manifest:
    return artifacts.require(run.child("policy"), "policy")


def unseen(arm: Arm, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts of which the arm's own run trained on neither the text nor the family."""
    if arm.source is None:
        return list(prompts)
    source = arm.source.child("prompts")
    manifest = artifacts.require(source, "prompts")
    trained = {
        key
        for table in ("prompts", "general")
        for batch in iter_rows(source, manifest, table, Prompt)
        for prompt in batch
        if prompt.split != "test"
        for key in (("text", prompt.text), ("family", prompt.family))
    }
    return [
        prompt
        for prompt in prompts
        if trained.isdisjoint({("text", prompt.text), ("family", prompt.family)})
    ]


def described(arms: Sequence[Arm]) -> list[Json]:
    """The arms, as the results list them."""
    return [
        {
            "name": arm.name,
            "kind": arm.kind,
            "source": None if arm.source is None else arm.source.uri,
            "ablated": list(arm.ablated),
        }
        for arm in arms
    ]


def ablations(
    arms: Sequence[Arm], traits: Collection[str]
) -> dict[str, dict[str, tuple[str, str]]]:
    """For each trait the arm without its training and the arm with it, by design of the study.

    `leave_one_out`: the run without the trait, and the policy. `one_trait_only`: the base, and the
    run without all the others. A design that no arm is of is left out.

    Raises:
        ConfigError: Two arms are without the same traits.
    """
    found: dict[str, dict[str, tuple[str, str]]] = {}
    seen: dict[frozenset[str], str] = {}
    for arm in arms:
        if arm.kind != "ablation":
            continue
        same = seen.setdefault(frozenset(arm.ablated), arm.name)
        if same != arm.name:
            raise ConfigError(
                f"evaluation.compare: {same} and {arm.name} are both without "
                f"{', '.join(arm.ablated)}, and a cell of the attribution is one run; name one"
            )
        kept = sorted(set(traits) - set(arm.ablated))
        if len(arm.ablated) == 1:
            pair = (arm.name, "policy")
            found.setdefault("leave_one_out", {})[arm.ablated[0]] = pair
        if len(kept) == 1:
            found.setdefault("one_trait_only", {})[kept[0]] = ("base", arm.name)
    return found


def missing(arms: Sequence[Arm]) -> dict[str, str]:
    """Controls that there is no arm of, and how to make each."""
    present = {arm.kind for arm in arms}
    return {
        kind: f"no run with it is compared: make one ({setting}, another run.dir) and name it in "
        "evaluation.compare"
        for kind, setting in CONTROLS.items()
        if kind not in present
    }
