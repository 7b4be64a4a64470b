"""What the points of a sweep are called."""

import pytest

from charactertrain.__main__ import point_directory, point_values
from charactertrain.points import point_name


def test_a_point_is_named_after_its_settings_in_any_order() -> None:
    name = point_name(["seed=1", "policy.kl.coef=0.02"])
    assert name == "policy.kl.coef=0.02,seed=1"
    assert point_name(["policy.kl.coef=0.02", "seed=1"]) == name


@pytest.mark.parametrize(
    "override",
    [
        "run.dir=/elsewhere",
        "run.until=pairs",
        "cluster=ray",
        "cluster.num_workers=[2,8]",
        "deepspeed@policy.deepspeed=zero3",
        "sampler.resources.kv_cache_gib=2",
        "logging.wandb=offline",
        "+hydra.verbose=true",
    ],
)
def test_where_a_point_runs_does_not_name_it(override: str) -> None:
    assert point_name(["seed=1", override]) == "seed=1"


def test_names_that_had_to_be_changed_stay_apart() -> None:
    names = [
        point_name([f"constitution={path}"]) for path in ("/a/b.yaml", "/a-b.yaml", "a b.yaml")
    ]
    assert len(set(names)) == 3
    assert all("/" not in name and " " not in name for name in names)


def test_long_names_are_cut_and_stay_apart() -> None:
    long = [f"prompts.file={'x' * 300}{number}" for number in range(2)]
    names = {point_name([override]) for override in long}
    assert len(names) == 2
    assert all(len(name) < 140 for name in names)


def test_points_of_a_sweep_are_one_group() -> None:
    values = {"run": {"dir": "runs/kl", "share": None}, "logging": {"group": None, "wandb": "off"}}
    point = point_values(values, ["seed=1"])
    assert point["run"] == {"dir": "runs/kl/seed=1", "share": None}
    assert point["logging"] == {"group": "kl", "wandb": "off"}
    assert values["run"]["dir"] == "runs/kl"
    values["logging"]["group"] = "mine"
    assert point_values(values, ["seed=1"])["logging"]["group"] == "mine"


def test_a_point_without_settings_has_a_name() -> None:
    assert point_name([])
    assert point_name(["run.dry=true"]) == point_name([])


@pytest.mark.parametrize(
    ("sweep", "point"),
    [
        ("runs/kl/", "runs/kl/seed=1"),
        ("s3://bucket/kl?region=x", "s3://bucket/kl/seed=1?region=x"),
    ],
)
def test_a_point_is_in_the_directory_of_its_sweep(sweep: str, point: str) -> None:
    assert point_directory(sweep, ["seed=1"]) == point
