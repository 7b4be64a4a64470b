"""Whose replies are compared: our own arms, and those of other runs by their manifests."""

from pathlib import Path
from typing import Any

import pytest

from charactertrain import artifacts
from charactertrain.artifacts import Identity, Outcome
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.records import Prompt, to_table
from charactertrain.stages.evaluation.arms import (
    OWN_ARMS,
    Arm,
    ablations,
    check_finished,
    compared_policies,
    described,
    find,
    missing,
    unseen,
)
from charactertrain.storage import Directory, open_directory

WEIGHTS = {"path": "embedded:tiny"}


def commit(run: Directory, stage: str, config: dict[str, Any], files: tuple[str, ...] = ()) -> str:
    identity = Identity(stage, config, {})
    directory = run.child(stage)
    artifacts.begin(directory, identity)
    manifest = artifacts.commit(
        directory,
        identity,
        Outcome(files),
        resolved_config={},
        code_version="1",
        wall_seconds=1.0,
    )
    return manifest.fingerprint


SETTINGS = {
    "kind": "policy_gradient",
    "labels": "ranked",
    "shown": "at_stake",
    "ranker": "judge",
    "ablate": [],
    "weights": WEIGHTS,
    "seed": 1,
    "steps": 8,
}


def make_run(path: Path, **changes: Any) -> str:
    """A run directory whose policy was made with `SETTINGS` and changes; its fingerprint."""
    made = SETTINGS | changes
    run = open_directory(str(path))
    seed = {"seed": made["seed"]}
    commit(run, "traits", {})
    commit(run, "responses", {**seed, "model": {"traits_shown": made["shown"]}})
    commit(run, "rankings", {**seed, "rankings": {"ranker": made["ranker"]}})
    commit(run, "pairs", {**seed, "ablate": list(made["ablate"])})
    commit(run, "preference_model", {**seed, "preference_model": {"labels": made["labels"]}})
    return commit(
        run,
        "policy",
        {
            **seed,
            "model": {"weights": made["weights"]},
            "policy": {"objective": {"kind": made["kind"]}, "num_steps": made["steps"]},
            "ablate": list(made["ablate"]),
        },
    )


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"kind": "dpo"}, "dpo"),
        ({"kind": "best_of_n"}, "best_of_n"),
        ({"shown": "none"}, "neutral"),
        ({"labels": "shuffled"}, "placebo"),
        ({"ablate": ("warm",)}, "ablation"),
        ({"seed": 2}, "seed"),
        ({"seed": 2, "steps": 9}, "run"),
        ({"seed": 2, "ranker": "contrast"}, "run"),
        ({"seed": 2, "shown": "none"}, "neutral"),
        ({"seed": 2, "ablate": ("warm",)}, "run"),
        ({"kind": "dpo", "ablate": ("warm",)}, "dpo"),
        ({}, "run"),
    ],
)
def test_an_arm_is_what_its_run_was_made_with(
    settings: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    make_run(tmp_path / "other", **settings)
    make_run(tmp_path / "ours")
    arms = find([str(tmp_path / "other")], open_directory(str(tmp_path / "ours")))
    assert arms[:3] == OWN_ARMS
    assert (arms[3].name, arms[3].kind) == ("other", kind)
    (_, _, _, listed) = described(arms)
    assert listed["source"] == str(tmp_path / "other")
    wanted = missing(arms)
    assert kind not in wanted
    assert len(wanted) == (3 if kind in ("dpo", "best_of_n", "neutral", "placebo") else 4)


def test_a_run_of_another_base_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "other", weights={"path": "embedded:large"})
    make_run(tmp_path / "ours")
    ours = open_directory(str(tmp_path / "ours"))
    with pytest.raises(ConfigError, match=r"another base .*embedded:large.*one base"):
        find([str(tmp_path / "other")], ours)


def test_compared_policies_are_named_by_their_directories_and_identified(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a" / "first")
    second = make_run(tmp_path / "second", labels="shuffled", ablate=("warm",))
    found = compared_policies([str(tmp_path / "a" / "first"), str(tmp_path / "second")])
    assert found == {"first": first, "second": second}
    assert first != second


def test_arms_are_in_the_order_of_their_names_however_they_are_given(tmp_path: Path) -> None:
    for name in ("ours", "b", "a"):
        make_run(tmp_path / name)
    ours = open_directory(str(tmp_path / "ours"))
    for order in (("a", "b"), ("b", "a")):
        arms = find([str(tmp_path / name) for name in order], ours)
        assert [arm.name for arm in arms[3:]] == ["a", "b"]


def test_a_run_without_traits_is_an_ablation_of_a_run_of_its_own_kind(tmp_path: Path) -> None:
    make_run(tmp_path / "ours", kind="dpo")
    make_run(tmp_path / "other", kind="dpo", ablate=("warm",))
    make_run(tmp_path / "again", kind="dpo", seed=2)
    directories = [str(tmp_path / name) for name in ("other", "again")]
    arms = find(directories, open_directory(str(tmp_path / "ours")))
    assert [(arm.name, arm.kind) for arm in arms[3:]] == [("again", "seed"), ("other", "ablation")]


@pytest.mark.parametrize("name", ["policy", "with space", "a:b", "ümlaut", ".."])
def test_compared_policies_refuse_names_that_are_taken_or_no_names(
    name: str, tmp_path: Path
) -> None:
    if name != "..":
        make_run(tmp_path / name)
    with pytest.raises(ConfigError, match=r"would be the arm .*; *|expected a name of letters"):
        compared_policies([str(tmp_path / name)])


def test_compared_policies_refuse_a_name_twice_and_say_what_is_not_finished(
    tmp_path: Path,
) -> None:
    for parent in ("a", "b"):
        make_run(tmp_path / parent / "same")
    with pytest.raises(ConfigError, match="'same'"):
        compared_policies([str(tmp_path / parent / "same") for parent in ("a", "b")])
    absent = [str(tmp_path / "absent")]
    assert compared_policies(absent) == {"absent": None}
    with pytest.raises(ArtifactError, match="absent"):
        check_finished(absent)


def test_prompts_that_another_run_was_trained_on_are_left_out_of_its_arm(tmp_path: Path) -> None:
    run = open_directory(str(tmp_path / "other"))
    theirs = [
        Prompt("x1", "warm", "f1", "trait", "Tea?", "train"),
        Prompt("x2", "warm", "f2", "trait", "Rain?", "validation"),
        Prompt("x3", "warm", "f3", "trait", "Snow?", "test"),
    ]
    name = "prompts/part-000000.parquet"
    run.child("prompts").write_table(name, to_table(theirs, Prompt))
    general = "general/part-000000.parquet"
    rows = [Prompt("g1", "general", "f9", "general", "Sums?", "train")]
    run.child("prompts").write_table(general, to_table(rows, Prompt))
    commit(run, "prompts", {}, (name, general))
    ours = [
        Prompt(f"p{i}", "warm", family, "trait", text, "test")
        for i, (family, text) in enumerate(
            [
                ("f4", "Tea?"),
                ("f5", "Rain?"),
                ("f3", "Snow?"),
                ("f1", "Sun?"),
                ("f6", "Wind?"),
                ("f7", "Sums?"),
            ]
        )
    ]
    kept = unseen(Arm("other", "run", run), ours)
    assert [prompt.text for prompt in kept] == ["Snow?", "Wind?"]
    assert unseen(OWN_ARMS[0], ours) == ours


def test_ablations_are_told_apart_by_what_was_left_out() -> None:
    arms = [
        *OWN_ARMS,
        Arm("no-warm", "ablation", None, ("warm",)),
        Arm("only-warm", "ablation", None, ("calm", "curious")),
    ]
    assert ablations(arms, ["warm", "calm", "curious"]) == {
        "leave_one_out": {"warm": ("no-warm", "policy")},
        "one_trait_only": {"warm": ("base", "only-warm")},
    }
    # Of two traits each run is both.
    two = ablations([*OWN_ARMS, Arm("no-warm", "ablation", None, ("warm",))], ["warm", "calm"])
    assert two == {
        "leave_one_out": {"warm": ("no-warm", "policy")},
        "one_trait_only": {"calm": ("base", "no-warm")},
    }
    assert ablations(OWN_ARMS, ["warm"]) == {}
    again = Arm("again", "ablation", None, ("warm",))
    with pytest.raises(ConfigError, match="no-warm and again are both without warm"):
        ablations([*arms, again], ["warm", "calm", "curious"])
