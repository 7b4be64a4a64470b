"""The evaluation's parts of the page made ready for the template: charts by arm, and readings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from charactertrain.report.arm_plots import Group, Look, arm_key, forest_plot
from charactertrain.report.differences import Differences, word_differences
from charactertrain.report.effects_view import (
    BASE,
    POLICY,
    Arm,
    ByArm,
    Measure,
    ProbeRow,
    ProbeView,
)
from charactertrain.report.reading import MEASURE_LABELS, read_probe
from charactertrain.report.revealed_view import RevealedPreferences
from charactertrain.report.sections import Chart
from charactertrain.report.text import Span, highlight, interval, number, signed
from charactertrain.report.view import Reply, ReportView, Sample

_SUFFIXES = {
    "_change": "change from plain",
    "_interaction": "beyond either change alone",
    "_slope": "slope over turns",
    "_lost": "share lost of those right at first",
    "_retention": "share left of the effect without a condition (base: 1)",
}
"""Of a measure's name, where a row is not of its level."""

# Only SVG from `arm_plots` becomes Markup here: ElementTree has escaped every text in it.


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """What one arm answered, ready to be shown beside the base's answer."""

    arm: str
    """Name of the arm."""
    text: Markup
    """The reply with the detector's matches and what differs marked."""
    reply: Reply
    """The reply itself."""
    note: str
    """What the marks do not say; empty where there is nothing to say."""


def measure_charts(view: ReportView, arms: Mapping[str, Look]) -> dict[Measure, Markup]:
    """Forest plot over traits by measure; a measure that no trait has is absent."""
    return trait_charts({trait.trait_id: trait.effects for trait in view.traits}, arms)


def trait_charts(
    traits: Mapping[str, Mapping[Measure, ByArm]], arms: Mapping[str, Look]
) -> dict[Measure, Markup]:
    """Forest plot over traits by measure, of their effects by arm."""
    return {
        measure: _measure_chart(
            f"effects {measure}",
            measure,
            [(trait_id, effects.get(measure, {})) for trait_id, effects in traits.items()],
            arms,
        )
        for measure in MEASURE_LABELS
        if any(measure in effects for effects in traits.values())
    }


def against_charts(view: ReportView, arms: Mapping[str, Look]) -> dict[Measure, Markup]:
    """How far the policy is ahead of the other arms over traits, by measure."""
    return {
        measure: Markup(
            forest_plot(
                f"against {measure}",
                f"{label.title}, policy minus the arm\n({label.unit})",
                [(trait.trait_id, trait.against.get(measure, {})) for trait in view.traits],
                arms,
            )
        )
        for measure, label in MEASURE_LABELS.items()
        if any(measure in trait.against for trait in view.traits)
    }


def kind_charts(view: ReportView, arms: Mapping[str, Look]) -> dict[Measure, Markup]:
    """Forest plot over kinds of prompt by measure; a measure that no kind has is absent."""
    groups = {
        measure: [
            (kind, effects[measure]) for kind, effects in view.kinds.items() if measure in effects
        ]
        for measure in MEASURE_LABELS
    }
    return {
        measure: _measure_chart(f"kinds {measure}", measure, found, arms)
        for measure, found in groups.items()
        if found
    }


def _measure_chart(
    name: str, measure: Measure, groups: Sequence[Group], arms: Mapping[str, Look]
) -> Markup:
    label = MEASURE_LABELS[measure]
    title = f"{label.title}, difference from the base\n({label.unit})"
    return Markup(forest_plot(name, title, groups, arms))


def probe_charts(probe: ProbeView, arms: Mapping[str, Look]) -> tuple[Chart, ...]:
    """A forest plot over conditions for each measure of a probe, of all traits together."""
    by_measure: dict[str, list[ProbeRow]] = {}
    for row in whole_rows(probe):
        by_measure.setdefault(row.measure, []).append(row)
    return tuple(
        Chart(
            title=measure_title(measure),
            svg=Markup(
                forest_plot(
                    f"probe {probe.name} {measure}",
                    f"difference from the base\n({rows[0].unit})",
                    [(row.condition, row.effects) for row in rows],
                    arms,
                )
            ),
        )
        for measure, rows in by_measure.items()
    )


def whole_rows(probe: ProbeView) -> list[ProbeRow]:
    """The rows of a probe that are of all traits together."""
    return [row for row in probe.rows if row.trait_id is None]


def measure_title(measure: str) -> str:
    """A probe's measure in words."""
    for suffix, words in _SUFFIXES.items():
        if measure.endswith(suffix):
            return f"{measure_title(measure.removesuffix(suffix))}, {words}"
    return measure.replace("_", " ")


def probe_summary(probe: ProbeView) -> tuple[str, ...]:
    """How the policy's rows read against the base, then each row that is worse or has changed."""
    whole = whole_rows(probe)
    by_trait = [row for row in probe.rows if row.trait_id is not None]
    lines = [f"Policy against base, {_counted(whole)}"]
    for row in whole:
        reading, found = read_probe(row.effects.get(POLICY), row.better), row.effects.get(POLICY)
        if found is not None and reading in {"worse", "changed"}:
            lines.append(
                f"{reading.capitalize()}: {row.condition}, {measure_title(row.measure)} "
                f"{number(found.arm)} against {number(found.base)}, {signed(found.difference)} "
                f"{interval(found.ci_low, found.ci_high)}."
            )
    if by_trait:
        lines.append(f"Trait by trait, {_counted(by_trait)}")
    return tuple(lines)


def revealed_chart(found: RevealedPreferences | None, arms: Mapping[str, Look]) -> Markup | None:
    """Forest plot over traits of how ratings above chance changed; None where there are none."""
    if found is None:
        return None
    title = "rating above chance, difference from the base\n(Elo points)"
    return Markup(
        forest_plot("revealed preferences", title, list(found.changes.items()), arms, digits=0)
    )


def revealed_looks(found: RevealedPreferences | None, arms: Mapping[str, Look]) -> dict[str, Look]:
    """The looks of the arms that were offered traits."""
    offered = found.order_agreement if found else {}
    return {name: look for name, look in arms.items() if name in offered}


def _counted(rows: Sequence[ProbeRow]) -> str:
    readings = Counter(read_probe(row.effects.get(POLICY), row.better) for row in rows)
    counts = ", ".join(f"{reading} in {count}" for reading, count in readings.items())
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}: {counts}."


def arm_keys(arms: Mapping[str, Look]) -> dict[str, Markup]:
    """The mark of each arm, for legend and tables."""
    return {name: Markup(arm_key(name, look)) for name, look in arms.items()}


def panels(sample: Sample, detector: str | None, arms: Sequence[Arm]) -> tuple[Panel, ...]:
    """Every arm's reply beside the base's, which is marked where it differs from the policy's."""
    base = sample.replies[BASE]
    found = {
        arm.name: word_differences(base.text, sample.replies[arm.name].text)
        for arm in arms
        if arm.name != BASE and arm.name in sample.replies
    }
    beside = found.get(POLICY, Differences((), (), 1.0))
    others = [
        _panel(name, sample.replies[name], detector, differences.second, _note(differences))
        for name, differences in found.items()
    ]
    # The policy stands beside the base; whatever else there is follows.
    others.sort(key=lambda panel: panel.arm != POLICY)
    return (_panel(BASE, base, detector, beside.first, ""), *others)


def _note(differences: Differences) -> str:
    if differences.shared == 1.0:
        return "word for word the base's"
    is_marked = differences.first or differences.second
    return "" if is_marked else "hardly a word in common with the base's, so nothing is marked"


def _panel(
    arm: str, reply: Reply, detector: str | None, changed: Sequence[Span], note: str
) -> Panel:
    return Panel(arm=arm, text=highlight(reply.text, detector, changed), reply=reply, note=note)
