"""The arms of an evaluation: whose replies are compared with the base's."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from charactertrain import artifacts
from charactertrain.artifacts import Json, Manifest, iter_rows
from charactertrain.exceptions import ConfigError
from charactertrain.records import Prompt
from charactertrain.storage import Directory, open_directory

ArmKind = Literal[
    "base",
    "prompted",
    "policy",
    "seed",
    "dpo",
    "best_of_n",
    "neutral",
    "placebo",
    "ablation",
    "run",
]
"""`seed`: another run with this one's settings and another seed."""

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


def compared_policies(directories: Sequence[str]) -> dict[str, str]:
    """Fingerprint of each other run's policy, by the arm's name.

    Raises:
        ArtifactError: One has no finished policy.
        ConfigError: Two have one name, or a name is that of an arm of this run.
    """
    names = [PurePosixPath(directory).name for directory in directories]
    taken = [*(arm.name for arm in OWN_ARMS), *names]
    double = sorted({name for name in names if taken.count(name) > 1})
    if double:
        raise ConfigError(
            f"evaluation.compare: the name {double[0]!r} is given twice or is one of "
            f"{', '.join(arm.name for arm in OWN_ARMS)}; arms are called after their run's "
            "directory, so give each run another directory name"
        )
    return {
        name: _policy(open_directory(directory)).fingerprint
        for name, directory in zip(names, directories, strict=True)
    }


def find(directories: Sequence[str], ours: Mapping[str, Manifest]) -> tuple[Arm, ...]:
    """Our own arms, and one for each other run.

    Args:
        directories: Of the other runs.
        ours: Manifests of this run's stages by name, the policy's among them.

    Raises:
        ConfigError: A run was made from another base, so that it has no effect on this one.
    """
    return (*OWN_ARMS, *(_other(open_directory(each), ours) for each in directories))


def _other(run: Directory, ours: Mapping[str, Manifest]) -> Arm:
    policy = _policy(run)
    base = policy.identity.config["model"]["weights"]
    own_base = ours["policy"].identity.config["model"]["weights"]
    if base != own_base:
        raise ConfigError(
            f"evaluation.compare: {run.uri} was trained from another base ({base}) than this run "
            f"({own_base}); compare policies of one base"
        )
    ablated = tuple(policy.identity.config["ablate"])
    kind: ArmKind = "seed" if _differs_by_seed(run, ours) else _kind(run, policy)
    return Arm(PurePosixPath(run.root).name, kind, run, ablated)


def _differs_by_seed(run: Directory, ours: Mapping[str, Manifest]) -> bool:
    """Whether traits, preference model and policy have our settings and another seed.

    Prompts may differ: they are written anew, or brought along so that all runs have the same.
    """
    for name in ("traits", "preference_model", "policy"):
        other = artifacts.read_manifest(run.child(name))
        if other is None or _without_seed(other) != _without_seed(ours[name]):
            return False
    theirs, own = _policy(run).identity, ours["policy"].identity
    return bool(theirs.config["seed"] != own.config["seed"])


def _without_seed(manifest: Manifest) -> Json:
    return {key: value for key, value in manifest.identity.config.items() if key != "seed"}


def _kind(run: Directory, policy: Manifest) -> ArmKind:
    objective = policy.identity.config["policy"]["objective"]["kind"]
    if objective in ("dpo", "best_of_n"):
        kind: ArmKind = objective
        return kind
    responses = artifacts.read_manifest(run.child("responses"))
    if responses is not None and responses.identity.config["model"]["traits_shown"] == "none":
        return "neutral"
    model = artifacts.read_manifest(run.child("preference_model"))
    if model is not None and model.identity.config["preference_model"]["labels"] == "shuffled":
        return "placebo"
    return "ablation" if policy.identity.config["ablate"] else "run"


def _policy(run: Directory) -> Manifest:
    return artifacts.require(run.child("policy"), "policy")


def unseen(arm: Arm, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts of which the arm's own run trained on neither the text nor the family."""
    if arm.source is None:
        return list(prompts)
    source = arm.source.child("prompts")
    trained = {
        key
        for batch in iter_rows(source, artifacts.require(source, "prompts"), "prompts", Prompt)
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
    """
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for arm in arms:
        if arm.kind != "ablation":
            continue
        kept = sorted(set(traits) - set(arm.ablated))
        if len(arm.ablated) == 1:
            pair = (arm.name, "policy")
            found.setdefault("leave_one_out", {}).setdefault(arm.ablated[0], pair)
        if len(kept) == 1:
            found.setdefault("one_trait_only", {}).setdefault(kept[0], ("base", arm.name))
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
