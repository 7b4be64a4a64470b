"""What the numbers of a report allow one to say: by effect, by trait and in one sentence."""

import math
from dataclasses import dataclass
from typing import Literal

from charactertrain.report.text import shorten
from charactertrain.report.training_view import Measure
from charactertrain.report.view import Effect, ReportView, TraitView

Reading = Literal["higher", "lower", "not established", "not measured"]
"""How an effect reads: its interval is above zero, below zero, includes zero, or is not there."""

Outcome = Literal["shown", "reversed", "mixed", "not established", "not measured"]
"""How a trait reads over its outcome measures."""

OUTCOME_MEASURES: tuple[Measure, ...] = ("contrast", "detector_rate")
"""Measures that decide the outcome. Reward is left out: the policy was trained to raise it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureLabel:
    """How a measure is named and explained on the page."""

    title: str
    """Name in headings."""
    unit: str
    """Unit, or range."""
    explanation: str
    """What it measures, in one or two sentences."""


MEASURE_LABELS: dict[Measure, MeasureLabel] = {
    "contrast": MeasureLabel(
        title="Contrast",
        unit="nats per token",
        explanation="How much more likely the frozen base finds a response when it is shown the "
        "trait than when it is not.",
    ),
    "detector_rate": MeasureLabel(
        title="Detector rate",
        unit="share, 0 to 1",
        explanation="In how many responses the trait's text pattern is found. No model judges.",
    ),
    "reward": MeasureLabel(
        title="Reward",
        unit="preference model's scalar",
        explanation="What the preference model gives. The policy was trained to raise it, so it "
        "does not count towards the outcome.",
    ),
}


def read_effect(effect: Effect | None) -> Reading:
    """What the interval of one effect allows one to say; an end at zero includes zero."""
    if effect is None or not math.isfinite(effect.difference):
        return "not measured"
    if effect.ci_low > 0:
        return "higher"
    if effect.ci_high < 0:
        return "lower"
    return "not established"


def read_trait(trait: TraitView) -> Outcome:
    """What the outcome measures of one trait allow one to say together."""
    readings = {read_effect(trait.effects.get(measure)) for measure in OUTCOME_MEASURES}
    if {"higher", "lower"} <= readings:
        return "mixed"
    if "higher" in readings:
        return "shown"
    if "lower" in readings:
        return "reversed"
    return "not established" if "not established" in readings else "not measured"


_CLAUSES: dict[Outcome, str] = {
    "reversed": "it shows {traits} less",
    "mixed": "contrast and detector rate disagree on {traits}",
    "not established": "no effect is established for {traits}",
    "not measured": "nothing was measured for {traits}",
}


def headline(view: ReportView) -> str:
    """One sentence on what was trained, on what, and which effects are there and which are not."""
    subject = f"{view.run.model_name}, trained on the constitution {view.run.constitution_name},"
    if not view.traits:
        return f"{subject} was not evaluated: nothing can be said about its behaviour."
    by_outcome: dict[Outcome, list[str]] = {"shown": [], **{key: [] for key in _CLAUSES}}
    for trait in view.traits:
        by_outcome[read_trait(trait)].append(trait.trait_id)
    clauses = [
        clause.format(traits=_numbered(by_outcome[outcome]))
        for outcome, clause in _CLAUSES.items()
        if by_outcome[outcome]
    ]
    first = f"{subject} shows {_shown(by_outcome['shown'], len(view.traits))}"
    return "; ".join([first, *clauses]) + "."


def _shown(trait_ids: list[str], num_traits: int) -> str:
    of_all = f"of {num_traits} trait{'' if num_traits == 1 else 's'} more than its base"
    return f"{len(trait_ids)} {of_all} ({_listed(trait_ids)})" if trait_ids else f"none {of_all}"


def _numbered(trait_ids: list[str]) -> str:
    return f"{len(trait_ids)} ({_listed(trait_ids)})"


def _listed(trait_ids: list[str]) -> str:
    return ", ".join(shorten(trait_id, 40) for trait_id in trait_ids)
