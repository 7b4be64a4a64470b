"""Plans of composed configs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from charactertrain.config import RunConfig, validate
from charactertrain.config.plan import PlanSection, validate_plan
from charactertrain.constitution import Constitution
from charactertrain.plan.sizing import Plan, make_plan
from charactertrain.trait_file import load_constitution

ROOT = Path(__file__).resolve().parent.parent.parent

Composed = Callable[..., tuple[RunConfig, Constitution, PlanSection]]
Planned = Callable[..., Plan]


@pytest.fixture(name="composed", scope="session")
def composer_of_plans() -> Composed:
    """Config, constitution and assumptions, as `charactertrain plan` composes them."""

    def compose(*overrides: str) -> tuple[RunConfig, Constitution, PlanSection]:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            found = hydra_compose("config", overrides=["+plan=sizing", *overrides])
        values: Any = OmegaConf.to_container(found, resolve=True)
        section = validate_plan(values.pop("plan"))
        config = validate(values)
        shipped = ROOT / "constitutions"
        return config, load_constitution(config.constitution, shipped_dir=shipped), section

    return compose


@pytest.fixture(name="planned", scope="session")
def planner(composed: Composed) -> Planned:
    """The plan of a composed config."""

    def plan(*overrides: str) -> Plan:
        return make_plan(*composed(*overrides))

    return plan
