"""The page that compares finished runs: its view, and the page of it.

As in `view`, no field has a default: what a run does not have is absent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from charactertrain.report import arm_plots, effect_sections
from charactertrain.report.effects_view import BASE, Arm, ByArm, Measure
from charactertrain.report.page import environment
from charactertrain.report.preference_view import GateView
from charactertrain.report.view import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow:
    """One run."""

    name: str
    """As in the charts."""
    directory: str
    """Where it is."""
    created: str
    """When its evaluation was made, ISO 8601."""
    code_version: str
    """Version of the code that made it."""
    wall_seconds: float
    """Of all its stages."""
    num_prompts: int
    """Held-out prompts that base and policy answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingRow:
    """A setting in which not all runs agree."""

    key: str
    """Its place in the config, with dots."""
    values: Mapping[str, str]
    """Value as JSON by run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """One gate in every run that has it."""

    name: str
    """Of the gate."""
    gates: Mapping[str, GateView]
    """By run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraitTexts:
    """Texts of one trait's prompts."""

    trait_id: str
    """Of the trait."""
    samples: tuple[Sample, ...]
    """Replies to the same prompt: the first run's base, then each run's policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonView:
    """The whole page; an effect's arm is the policy of the run of that name."""

    runs: tuple[RunRow, ...]
    """In the order in which they were given."""
    num_common_prompts: int
    """Held-out prompts that all of them answered."""
    settings: tuple[SettingRow, ...]
    """Settings that differ."""
    traits: Mapping[str, Mapping[Measure, ByArm]]
    """Effects by trait, measure and run."""
    overall: Mapping[str, ByArm]
    """Effects on all replies together, by measure and run."""
    gates: tuple[GateRow, ...]
    """What each policy must reach."""
    texts: tuple[TraitTexts, ...]
    """Replies to the same prompts."""


def render(view: ComparisonView) -> str:
    """The comparison as one HTML document without scripts; the same view gives the same bytes."""
    runs = [Arm(name=run.name, kind="run", source=None, num_unasked=0) for run in view.runs]
    looks = arm_plots.looks(runs)
    base = Arm(name=BASE, kind="base", source=None, num_unasked=0)
    return (
        environment()
        .get_template("comparison.html")
        .render(
            view=view,
            arms=(base, *runs),
            looks=looks,
            keys=effect_sections.arm_keys(looks),
            charts=effect_sections.trait_charts(view.traits, looks),
        )
    )
