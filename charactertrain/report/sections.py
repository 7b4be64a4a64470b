"""Parts of the page made ready for the template: charts, and tables that need counting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from charactertrain.report import plots
from charactertrain.report.data_view import PromptCount
from charactertrain.report.preference_view import Accuracy
from charactertrain.report.training_view import Phase, PolicyStep, PreferenceModelView

MAX_STEP_ROWS = 100
"""Steps in the table of policy metrics; a longer run is thinned and the page says so."""

MetricName = Literal[
    "reward",
    "kl",
    "length_tokens",
    "entropy",
    "clip_fraction",
    "zero_variance_fraction",
    "loss",
    "seconds",
]
METRIC_TITLES: dict[MetricName, str] = {
    "reward": "Reward",
    "kl": "KL to reference, nats per token",
    "length_tokens": "Length, tokens",
    "entropy": "Entropy, nats",
    "clip_fraction": "Clipped share of tokens",
    "zero_variance_fraction": "Groups without variance",
    "loss": "Loss",
    "seconds": "Seconds",
}
TIME_TITLES = {
    "sample_seconds": "waiting for rollouts",
    "train_seconds": "training",
    "sync_seconds": "sending weights to the engines",
    "probe_seconds": "checking that they arrived",
}
PHASE_TITLES: dict[Phase, str] = {
    "warm_start": "Warm start",
    "optimise": "Optimisation against the preference model",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A chart with its caption."""

    title: str
    """Caption."""
    svg: Markup
    """Inline SVG."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeRow:
    """What a part of a step took."""

    title: str
    """Part of the step."""
    seconds: float
    """Mean over steps."""
    share: float
    """Of all parts together, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseSection:
    """One phase of policy training as charts and a table."""

    title: str
    """Heading."""
    num_steps: int
    """Steps in the phase; 0 when it was not run or not recorded."""
    metrics: tuple[MetricName, ...]
    """Metrics that the phase has."""
    absent: tuple[MetricName, ...]
    """Metrics that it has not."""
    charts: tuple[Chart, ...]
    """One chart a metric."""
    rows: tuple[PolicyStep, ...]
    """Steps in the table, thinned to about `MAX_STEP_ROWS`."""
    time: tuple[TimeRow, ...]
    """Where the time of a step went; empty when it was not recorded by parts."""
    max_staleness: int | None
    """Steps by which the oldest weights of any token were behind; None without rollouts."""
    refills: int
    """Groups that took the place of such as teach nothing, over all steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """Prompts of one trait and kind, by split."""

    trait_id: str | None
    """Trait at stake; None for general prompts."""
    kind: str
    """trait or general."""
    num_families: int
    """Scenario families."""
    counts: tuple[int, ...]
    """Prompts by split, in the order of the table's columns."""


def accuracies(model: PreferenceModelView) -> tuple[tuple[str, Accuracy | None], ...]:
    """Held-out accuracy overall, then by trait, the worst first; traits not measured come last."""
    overall = [("all pairs", model.accuracy_overall)] if model.accuracy_overall else []
    by_trait = [
        ("no trait at stake" if trait_id is None else trait_id, accuracy)
        for trait_id, accuracy in model.accuracy_by_trait.items()
    ]
    by_trait.sort(key=lambda row: row[1].accuracy if row[1] else math.inf)
    return (*overall, *by_trait)


def accuracy_chart(model: PreferenceModelView) -> Markup | None:
    """Held-out accuracies as a chart; None when there are none."""
    rows = accuracies(model)
    return Markup(plots.accuracy_plot(rows)) if rows else None


def calibration_chart(model: PreferenceModelView) -> Markup | None:
    """Reliability diagram; None when calibration was not measured."""
    before, after = model.before_temperature, model.after_temperature
    return Markup(plots.calibration_plot(before, after)) if before or after else None


def preference_charts(model: PreferenceModelView) -> dict[str, Chart]:
    """Further charts of the preference model by name; what was not measured is absent."""
    charts = {}
    if model.shortcuts:
        svg = Markup(plots.shortcuts_plot(model.shortcuts))
        charts["shortcuts"] = Chart(title="What edits add to the reward", svg=svg)
    if model.curve or model.held_out_losses:
        svg = Markup(plots.loss_plot(model.curve, model.held_out_losses, model.best_step))
        charts["losses"] = Chart(title="Loss, on training and on held-out pairs", svg=svg)
    accuracy = [(point.step, point.accuracy) for point in model.curve if point.accuracy is not None]
    if accuracy:
        title = "Accuracy on training pairs"
        svg = Markup(plots.curve_plot(f"preference {title}", title, accuracy))
        charts["accuracy"] = Chart(title=title, svg=svg)
    return charts


def phase_section(phase: Phase, policy: Sequence[PolicyStep]) -> PhaseSection:
    """One phase of policy training, with a chart for every metric that it has."""
    steps = [step for step in policy if step.phase == phase]
    curves = {metric: _curve(metric, steps) for metric in METRIC_TITLES}
    return PhaseSection(
        title=PHASE_TITLES[phase],
        num_steps=len(steps),
        metrics=tuple(metric for metric, points in curves.items() if points),
        absent=tuple(metric for metric, points in curves.items() if not points),
        charts=tuple(
            Chart(
                title=METRIC_TITLES[metric],
                svg=Markup(plots.curve_plot(f"{phase} {metric}", METRIC_TITLES[metric], points)),
            )
            for metric, points in curves.items()
            if points
        ),
        rows=_thinned(steps),
        time=_time(steps),
        max_staleness=max(
            (step.max_staleness for step in steps if step.max_staleness is not None), default=None
        ),
        refills=sum(step.refills or 0 for step in steps),
    )


def _time(steps: Sequence[PolicyStep]) -> tuple[TimeRow, ...]:
    # A step whose weights went nowhere has no such part; it took no time.
    sums = {
        title: sum(getattr(step, name) or 0.0 for step in steps)
        for name, title in TIME_TITLES.items()
    }
    total = sum(sums.values())
    return tuple(
        TimeRow(title=title, seconds=seconds / len(steps), share=seconds / total)
        for title, seconds in sums.items()
        if total > 0
    )


def _curve(metric: MetricName, steps: Sequence[PolicyStep]) -> list[tuple[int, float]]:
    values = [(step.step, getattr(step, metric)) for step in steps]
    if all(value is None for _, value in values):
        return []
    return [(step, math.nan if value is None else value) for step, value in values]


def _thinned(steps: Sequence[PolicyStep]) -> tuple[PolicyStep, ...]:
    stride = math.ceil(len(steps) / MAX_STEP_ROWS) or 1
    thinned = steps[::stride]
    # The last step is the policy that was evaluated, so it is always shown.
    return (*thinned, steps[-1]) if steps and thinned[-1] != steps[-1] else tuple(thinned)


def prompt_rows(prompts: Sequence[PromptCount], splits: Sequence[str]) -> tuple[PromptRow, ...]:
    """Prompt counts summed over families, by trait and kind."""
    groups: dict[tuple[str | None, str], list[PromptCount]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.trait_id, prompt.kind), []).append(prompt)
    return tuple(
        PromptRow(
            trait_id=trait_id,
            kind=kind,
            num_families=len({member.family for member in members}),
            counts=tuple(
                sum(member.count for member in members if member.split == split) for split in splits
            ),
        )
        for (trait_id, kind), members in groups.items()
    )
