"""The evaluation's parts of the page made ready for the template: charts by arm, and readings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from charactertrain.report.arm_plots import Group, Look, arm_key, forest_plot
from charactertrain.report.differences import Differences, word_differences
from charactertrain.report.effects_view import BASE, POLICY, Arm, ByArm, Measure, ProbeView
from charactertrain.report.reading import MEASURE_LABELS, read_probe
from charactertrain.report.sections import Chart
from charactertrain.report.text import Span, highlight, interval, number, signed
from charactertrain.report.view import Reply, ReportView, Sample

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
    """A forest plot over conditions for each measure of a probe."""
    by_measure: dict[str, list[Group]] = {}
    for row in probe.rows:
        by_measure.setdefault(row.measure, []).append((row.condition, row.effects))
    return tuple(
        Chart(
            title=measure,
            svg=Markup(
                forest_plot(
                    f"probe {probe.name} {measure}",
                    f"{measure}, difference from the base",
                    groups,
                    arms,
                )
            ),
        )
        for measure, groups in by_measure.items()
    )


def probe_summary(probe: ProbeView) -> tuple[str, ...]:
    """How the policy's rows read against the base, then each row that is worse or has changed."""
    readings = [read_probe(row.effects.get(POLICY), probe.better) for row in probe.rows]
    counts = ", ".join(f"{reading} in {count}" for reading, count in Counter(readings).items())
    total = len(readings)
    lines = [f"Policy against base, {total} row{'' if total == 1 else 's'}: {counts}."]
    for row, reading in zip(probe.rows, readings, strict=True):
        if reading in {"worse", "changed"}:
            found = row.effects[POLICY]
            lines.append(
                f"{reading.capitalize()}: {row.condition}, {row.measure} {number(found.arm)} "
                f"against {number(found.base)}, {signed(found.difference)} "
                f"{interval(found.ci_low, found.ci_high)}."
            )
    return tuple(lines)


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
