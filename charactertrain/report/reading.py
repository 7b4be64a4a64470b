"""What the numbers of a report allow one to say: by effect, by trait and in one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from charactertrain.evaluation import gates as evaluation_gates
from charactertrain.evaluation.gates import OUTCOME_MEASURES
from charactertrain.probes.measures import Better
from charactertrain.report.data_view import Estimate
from charactertrain.report.effects_view import POLICY, Effect, Measure
from charactertrain.report.text import interval, number, shorten
from charactertrain.report.view import ReportView, TraitView

Reading = Literal["higher", "lower", "not established", "not measured"]
"""How an effect reads: clear of zero to one side, not clear of it, or not there."""

Outcome = Literal["shown", "reversed", "mixed", "not established", "not measured"]
"""How a trait reads over its outcome measures."""

ProbeReading = Literal[
    "better", "worse", "higher", "lower", "changed", "not established", "not measured"
]
"""How a probe's effect reads, by which way is better."""


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
    "win_rate": MeasureLabel(
        title="Win rate",
        unit="share, 0 to 1",
        explanation="How often a judge finds that a response shows the trait more than the base's "
        "to the same prompt, asked in both orders. The base's is one half by definition.",
    ),
    "win_rate_length_controlled": MeasureLabel(
        title="Win rate at equal length",
        unit="share, 0 to 1",
        explanation="The win rate that is left when a difference in length is taken out.",
    ),
    "reward": MeasureLabel(
        title="Reward",
        unit="preference model's scalar",
        explanation="What the preference model gives. The policy was trained to raise it, so it "
        "does not count towards the outcome.",
    ),
    "gold_reward": MeasureLabel(
        title="Gold reward",
        unit="gold model's scalar",
        explanation="What a preference model gives that learnt from other prompts and that no "
        "policy was trained on.",
    ),
}

OVERALL_LABELS: dict[str, tuple[str, str]] = {
    "length": ("Length", "tokens"),
    "natural_length": ("Length with room to end", "tokens"),
    "distinct_2": ("Distinct bigrams", "share"),
    "within_prompt_diversity": ("Diversity within a prompt", "0 to 1"),
    "opening_share": ("Replies with the commonest opening", "share"),
    "boilerplate_share": ("Replies with the commonest five words", "share"),
    "kl": ("KL from the base", "nats per token"),
    "quality_win_rate": ("Judged the better answer, whatever the trait", "share"),
    "quality_win_rate_length_controlled": ("The same at equal length", "share"),
}
"""Title and unit of each measure over all responses; another is shown by its name."""


def read_effect(effect: Effect | None) -> Reading:
    """What one effect allows one to say, by the rule that the gates go by."""
    if effect is None or not math.isfinite(effect.difference):
        return "not measured"
    found = evaluation_gates.established(effect.ci_low, effect.ci_high, effect.p_holm)
    return found or "not established"


def read_trait(trait: TraitView, arm: str = POLICY) -> Outcome:
    """What the outcome measures of one trait allow one to say of an arm together."""
    readings = {read_effect(trait.effects.get(name, {}).get(arm)) for name in OUTCOME_MEASURES}
    if {"higher", "lower"} <= readings:
        return "mixed"
    if "higher" in readings:
        return "shown"
    if "lower" in readings:
        return "reversed"
    return "not established" if "not established" in readings else "not measured"


_PROBE_READINGS: Mapping[Better | None, Mapping[Reading, ProbeReading]] = {
    "higher": {"higher": "better", "lower": "worse"},
    "lower": {"higher": "worse", "lower": "better"},
    "unchanged": {"higher": "changed", "lower": "changed"},
    None: {"higher": "higher", "lower": "lower"},
}


def read_probe(effect: Effect | None, better: Better | None) -> ProbeReading:
    """What one effect of a probe allows one to say, in the direction that the probe asks for."""
    reading = read_effect(effect)
    if reading in {"not established", "not measured"}:
        return "not measured" if reading == "not measured" else "not established"
    return _PROBE_READINGS[better][reading]


def read_recognised(recognised: Estimate | None) -> str:
    """What the changes of revealed preferences are worth, by how well a told word is recognised."""
    if recognised is None:
        return (
            "How well a reply shows the word it took up was not measured: nobody knows what the "
            "changes below are worth."
        )
    share = f"{number(recognised.value)} {interval(recognised.ci_low, recognised.ci_high)}"
    told = f"Of the base's replies that were told one of the two words, {share} are read as it"
    if not recognised.ci_low > 0.5:
        return f"{told}, which is not above the one half of chance: nothing below means anything."
    return (
        f"{told}; one half is chance. The nearer to it, the more a preference is lost in reading "
        "it, and the fewer points are left of a change."
    )


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
    by_outcome = traits_by_outcome(view.traits)
    clauses = [
        clause.format(traits=_numbered(by_outcome[outcome]))
        for outcome, clause in _CLAUSES.items()
        if by_outcome[outcome]
    ]
    first = f"{subject} shows {_shown(by_outcome['shown'], len(view.traits))}"
    return "; ".join([first, *clauses]) + "."


def answer(view: ReportView) -> str:
    """Whether the character changed, in one or two words."""
    found = {outcome: len(ids) for outcome, ids in traits_by_outcome(view.traits).items()}
    if not view.traits or found["not measured"] == len(view.traits):
        return "Not measured."
    if found["shown"] == len(view.traits):
        return "Yes."
    if found["shown"]:
        return "In part."
    return "Not as wanted." if found["reversed"] or found["mixed"] else "Not established."


def traits_by_outcome(traits: tuple[TraitView, ...]) -> dict[Outcome, list[str]]:
    """Trait ids by how the policy's effects on them read; every outcome is a key."""
    by_outcome: dict[Outcome, list[str]] = {"shown": [], **{key: [] for key in _CLAUSES}}
    for trait in traits:
        by_outcome[read_trait(trait)].append(trait.trait_id)
    return by_outcome


def _shown(trait_ids: list[str], num_traits: int) -> str:
    of_all = f"of {num_traits} trait{'' if num_traits == 1 else 's'} more than its base"
    return f"{len(trait_ids)} {of_all} ({_listed(trait_ids)})" if trait_ids else f"none {of_all}"


def _numbered(trait_ids: list[str]) -> str:
    return f"{len(trait_ids)} ({_listed(trait_ids)})"


def _listed(trait_ids: list[str]) -> str:
    return ", ".join(shorten(trait_id, 40) for trait_id in trait_ids)
