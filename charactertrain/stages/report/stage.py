"""report: every earlier artifact as one page, with verdicts on what the run was to show."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from charactertrain.artifacts import Json, Outcome
from charactertrain.pipeline import Work
from charactertrain.report import model_card, page
from charactertrain.report.effects_view import POLICY
from charactertrain.report.preference_view import GateView
from charactertrain.report.text import count, interval, number
from charactertrain.report.training_view import PreferenceModelView
from charactertrain.report.view import ReportView, TraitView, Verdict
from charactertrain.stages.context import Context
from charactertrain.stages.report import effects as report_effects
from charactertrain.stages.report import view as report_view

_MAX_LISTED_TRAITS = 8


def run(work: Work, context: Context) -> Outcome:
    """Write the page and the model card; the summary is what the console prints."""
    view = build_view(work, context)
    work.directory.write_bytes("report.html", page.render(view).encode())
    work.directory.write_bytes("model_card.md", model_card.render(view).encode())
    return Outcome(
        files=("report.html", "model_card.md"),
        summary={
            "effects": effect_rows(view.traits),
            "gates": [report_effects.gate_row(gate) for gate in view.gates],
            "verdicts": [printed(_gate_passed("policy", gate)) for gate in view.gates]
            + [printed(verdict) for verdict in view.verdicts],
            "objective": objective(view.traits),
        },
    )


def build_view(work: Work, context: Context) -> ReportView:
    """All that the page shows, with its verdicts."""
    view = report_view.assemble(work, context)
    return replace(view, verdicts=tuple(preference_model_verdicts(view.preference_model)))


def effect_rows(traits: Sequence[TraitView]) -> list[Json]:
    """One row per trait, measure and arm that is known, in the order of the constitution."""
    return [
        {
            "trait": trait.trait_id,
            "measure": measure,
            "arm": arm,
            "base": effect.base,
            "value": effect.arm,
            "difference": effect.difference,
            "ci_low": effect.ci_low,
            "ci_high": effect.ci_high,
            "p_holm": effect.p_holm,
        }
        for trait in traits
        for measure, effects in trait.effects.items()
        for arm, effect in effects.items()
        if math.isfinite(effect.difference)
    ]


def objective(traits: Sequence[TraitView]) -> float | None:
    """Mean rise of the policy's contrast over traits in nats per token; None where not measured."""
    contrasts = [trait.effects.get("contrast", {}).get(POLICY) for trait in traits]
    rises = [effect.difference for effect in contrasts if effect is not None]
    return fmean(rises) if rises else None


def printed(verdict: Verdict) -> str:
    """A verdict as a line of text."""
    mark = "unmeasured" if verdict.ok is None else "ok" if verdict.ok else "NOT"
    return f"{mark}: {verdict.text}"


def preference_model_verdicts(model: PreferenceModelView | None) -> list[Verdict]:
    """Whether the model that the policy was trained on is good enough, and not too good."""
    if model is None:
        return [Verdict(text="preference model: its quality", ok=None)]
    of_placebo = " (a placebo, trained on shuffled labels)" if model.labels == "shuffled" else ""
    subject = f"preference model{of_placebo}"
    gates = [_gate_passed(subject, gate) for gate in model.gates]
    return [
        *(gates or [Verdict(text=f"{subject}: its gates", ok=None)]),
        _errs(subject, model),
    ]


def _gate_passed(subject: str, gate: GateView) -> Verdict:
    found = f"{number(gate.value)} {interval(gate.ci_low, gate.ci_high)}"
    return Verdict(
        text=f"{subject}: {gate.measure}, {'at most' if gate.is_ceiling else 'at least'} "
        f"{gate.threshold:g}; {'not measured' if gate.value is None else found}",
        ok=gate.is_met,
    )


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _MAX_LISTED_TRAITS
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(items[:_MAX_LISTED_TRAITS]) + rest


def _errs(subject: str, model: PreferenceModelView) -> Verdict:
    text = (
        f"{subject}: accuracy below 100 % (no error would mean that something other than the "
        "trait tells the pairs apart)"
    )
    overall = model.accuracy_overall
    if overall is None:
        return Verdict(text=f"{text}; not measured", ok=None)
    perfect = [
        trait_id or "general prompts"
        for trait_id, accuracy in model.accuracy_by_trait.items()
        if accuracy is not None and accuracy.accuracy >= 1
    ]
    found = f"{number(overall.accuracy)} {interval(overall.ci_low, overall.ci_high)}"
    note = f"; 100 % for {_listed(perfect)}" if perfect else ""
    return Verdict(
        text=f"{text}; {found} of {count(overall.num_pairs)} pairs{note}", ok=overall.accuracy < 1
    )
