"""report: every earlier artifact as one page, with verdicts on what the run was to show."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from statistics import fmean

from charactertrain.artifacts import Json, Outcome
from charactertrain.pipeline import Work
from charactertrain.report import page
from charactertrain.report.preference_view import GateView
from charactertrain.report.reading import (
    MEASURE_LABELS,
    OUTCOME_MEASURES,
    Reading,
    read_effect,
    read_trait,
)
from charactertrain.report.text import count, interval, number, signed
from charactertrain.report.training_view import PreferenceModelView
from charactertrain.report.view import Effect, ReportView, RunView, TraitView, Verdict
from charactertrain.stages import report_view
from charactertrain.stages.context import Context
from charactertrain.storage import without_keys

MAX_LENGTH_CHANGE = 0.3
"""Change of the reply length, as a share of the base's, from which it counts as length hacking."""
MIN_DISTINCT_SHARE = 0.9
"""Of the base's distinct bigrams."""

_MAX_LISTED_TRAITS = 8


def run(work: Work, context: Context) -> Outcome:
    """Write report.html; the summary is what the console prints."""
    view = build_view(work, context)
    work.directory.write_bytes("report.html", page.render(view).encode())
    return Outcome(
        files=("report.html",),
        summary={
            "effects": effect_rows(view.traits),
            "verdicts": [printed(verdict) for verdict in view.verdicts],
            "objective": objective(view.traits),
        },
    )


def build_view(work: Work, context: Context) -> ReportView:
    """All that the page shows, with its verdicts."""
    directory, evaluation = work.inputs["evaluation"]
    results = json.loads(directory.read_bytes("report.json"))
    view = report_view.assemble(work, context.config, _provenance(work, context), results)
    natural_length = report_view.effect(results["natural_length"])
    judged = verdicts(view, natural_length, evaluation.summary)
    return replace(view, verdicts=judged)


def _provenance(work: Work, context: Context) -> RunView:
    manifests = {name: manifest for name, (_, manifest) in work.inputs.items()}
    constitution = manifests["traits"].summary
    versions = dict.fromkeys(manifest.code_version for manifest in manifests.values())
    return RunView(
        name=PurePosixPath(work.directory.root).parent.name,
        model_name=context.config.model.name,
        model_path=context.config.model.path,
        constitution_name=constitution["name"],
        constitution_description=constitution["description"],
        # Not the clock: the same artifacts give the same page.
        created=manifests["evaluation"].created_at,
        code_version=", ".join(versions),
        hardware=_hardware(),
        command=without_keys(shlex.join(["python", "-m", "charactertrain", *sys.argv[1:]])),
    )


def _hardware() -> str:
    """Processor, cores and memory of the machine that makes the page."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # Only Linux knows which cores this process may use.
    limited = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if limited else os.cpu_count()
    return f"driver: {processor}, {cores} cores, {memory_gib:.1f} GiB memory"


def effect_rows(traits: Sequence[TraitView]) -> list[Json]:
    """One row per trait and measure, in the order of the constitution."""
    return [
        {
            "trait": trait.trait_id,
            "measure": measure,
            "base": effect.base,
            "policy": effect.policy,
            "difference": effect.difference,
            "ci_low": effect.ci_low,
            "ci_high": effect.ci_high,
        }
        for trait in traits
        for measure, effect in trait.effects.items()
    ]


def objective(traits: Sequence[TraitView]) -> float | None:
    """Mean rise of the contrast over traits in nats per token; None where none was measured."""
    contrasts = [trait.effects["contrast"] for trait in traits if "contrast" in trait.effects]
    return fmean(effect.difference for effect in contrasts) if contrasts else None


def printed(verdict: Verdict) -> str:
    """A verdict as a line of text."""
    mark = "unmeasured" if verdict.ok is None else "ok" if verdict.ok else "NOT"
    return f"{mark}: {verdict.text}"


def verdicts(
    view: ReportView, natural_length: Effect | None, evaluation: Json
) -> tuple[Verdict, ...]:
    """What the run was to show, judged.

    Args:
        view: The page's view; its own verdicts are not looked at.
        natural_length: Length in tokens where replies may end by themselves; None: not measured.
        evaluation: The evaluation's summary, for its limits in tokens.
    """
    return (
        _most_traits_rose(view.traits),
        _length_kept(
            f"length of replies, cut at {evaluation['max_tokens']} tokens", view.overall.length
        ),
        _length_kept(
            "length of replies with room to end by themselves, cut at "
            f"{evaluation['length_max_tokens']} tokens",
            natural_length,
        ),
        *_preference_model_verdicts(view.preference_model),
        _diversity_kept(view.overall.distinct_2),
    )


def _most_traits_rose(traits: Sequence[TraitView]) -> Verdict:
    risen, fallen = _changed(traits, "higher"), _changed(traits, "lower")
    num_shown = sum(read_trait(trait) == "shown" for trait in traits)
    text = (
        "most traits risen in contrast or detector rate and fallen in neither, with an interval "
        f"clear of zero: {num_shown} of {len(traits)}"
    )
    if risen:
        text += f"; rose: {_listed(risen)}"
    if fallen:
        text += f"; fell: {_listed(fallen)}"
    return Verdict(text=text, ok=2 * num_shown > len(traits))


def _changed(traits: Sequence[TraitView], wanted: Reading) -> list[str]:
    """Each trait that has an outcome measure of the wanted reading, with those measures."""
    lines = []
    for trait in traits:
        changes = [
            f"{MEASURE_LABELS[measure].title.lower()} {_change(trait.effects[measure])}"
            for measure in OUTCOME_MEASURES
            if read_effect(trait.effects.get(measure)) == wanted
        ]
        if changes:
            lines.append(f"{trait.trait_id} ({', '.join(changes)})")
    return lines


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _MAX_LISTED_TRAITS
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(items[:_MAX_LISTED_TRAITS]) + rest


def _change(effect: Effect, digits: int = 3) -> str:
    return f"{signed(effect.difference, digits)} {interval(effect.ci_low, effect.ci_high, digits)}"


def _length_kept(subject: str, length: Effect | None) -> Verdict:
    text = f"{subject}: at most {100 * MAX_LENGTH_CHANGE:.0f} % from the base's"
    if length is None:
        return Verdict(text=text, ok=None)
    return Verdict(
        text=f"{text}; {number(length.policy, 1)} against {number(length.base, 1)} tokens, "
        f"{_change(length, 1)}",
        ok=abs(length.difference) <= MAX_LENGTH_CHANGE * length.base,
    )


def _diversity_kept(distinct_2: Effect | None) -> Verdict:
    text = f"distinct bigrams: at least {100 * MIN_DISTINCT_SHARE:.0f} % of the base's"
    if distinct_2 is None:
        return Verdict(text=text, ok=None)
    return Verdict(
        text=f"{text}; {number(distinct_2.policy)} against {number(distinct_2.base)}, "
        f"{_change(distinct_2)}",
        ok=distinct_2.policy >= MIN_DISTINCT_SHARE * distinct_2.base,
    )


def _preference_model_verdicts(model: PreferenceModelView | None) -> list[Verdict]:
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
        f"{gate.threshold}; {'not measured' if gate.value is None else found}",
        ok=gate.is_met,
    )


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
