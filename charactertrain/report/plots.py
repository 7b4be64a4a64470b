"""The charts of the report: plain values in, an inline SVG string out, the same bytes each time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from charactertrain.report.data_view import HistogramBin
from charactertrain.report.preference_view import (
    Accuracy,
    Calibration,
    CurvePoint,
    HeldOutLoss,
    Shortcut,
    ShortcutReading,
)
from charactertrain.report.svg import (
    GRID,
    HIGHER,
    INK,
    LOWER,
    MUTED,
    NEUTRAL,
    PAPER,
    inline_svg,
    page_style,
)
from charactertrain.report.text import interval, number, shorten, signed

_WIDE_INCHES, _PANEL_INCHES = 4.3, 3.3
_ROW_INCHES = 0.5
_TICK_STEPS = (1, 2, 5, 10)
_MAX_LABEL_CHARACTERS = 30
_MAX_POINTS_WITH_MARKERS = 40
# Reward for what is no better has the colour of what fails.
_SHORTCUT_COLOURS: dict[ShortcutReading, str] = {
    "rewarded": LOWER,
    "penalised": HIGHER,
    "not established": NEUTRAL,
}
_MARKS = ("D", "^")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalRow:
    """One row of an interval plot."""

    label: str
    """Name at the left, above the interval."""
    value: float
    """Point estimate; NaN draws nothing."""
    low: float
    """Lower end; NaN draws the point alone."""
    high: float
    """Upper end."""
    note: str
    """Text at the right, above the interval."""
    colour: str
    """Colour of point and interval."""
    is_filled: bool
    """A hollow point says, without colour, that the interval includes the reference."""
    marks: tuple[float | None, ...]
    """Up to two values to compare with, as a diamond and a triangle; None draws nothing."""


def accuracy_plot(accuracies: Sequence[tuple[str, Accuracy | None]]) -> str:
    """Held-out accuracies with their intervals, against chance and the baselines, by label."""
    rows = [_accuracy_row(label, accuracy) for label, accuracy in accuracies]
    return interval_plot("accuracy", "Share of held-out pairs ordered right", rows, reference=0.5)


def _accuracy_row(label: str, accuracy: Accuracy | None) -> IntervalRow:
    is_above = accuracy is not None and accuracy.ci_low > 0.5
    return IntervalRow(
        label=label,
        value=accuracy.accuracy if accuracy else math.nan,
        low=accuracy.ci_low if accuracy else math.nan,
        high=accuracy.ci_high if accuracy else math.nan,
        note=number(accuracy.accuracy) if accuracy else "not measured",
        colour=HIGHER if is_above else NEUTRAL,
        is_filled=is_above,
        marks=(accuracy.length_only, accuracy.provenance_only) if accuracy else (),
    )


def shortcuts_plot(shortcuts: Sequence[Shortcut]) -> str:
    """Forest plot of what each edit adds to the reward, about 0."""
    rows = [
        IntervalRow(
            label=shortcut.edit,
            value=shortcut.value,
            low=shortcut.ci_low,
            high=shortcut.ci_high,
            note=signed(shortcut.value),
            colour=_SHORTCUT_COLOURS[shortcut.reading],
            is_filled=shortcut.reading != "not established",
            marks=(),
        )
        for shortcut in shortcuts
    ]
    return interval_plot("shortcuts", "Reward added (standard deviations)", rows, reference=0.0)


def interval_plot(name: str, title: str, rows: Sequence[IntervalRow], *, reference: float) -> str:
    """Points with intervals, one row each, against a vertical line at `reference`."""
    with page_style(name):
        height = _ROW_INCHES * len(rows) + 0.6
        figure = Figure(figsize=(_WIDE_INCHES, height))
        axes = figure.add_axes((0.03, 0.5 / height, 0.94, 1 - 0.55 / height))
        axes.set_yticks([])
        axes.axvline(reference, color=INK, linewidth=1)
        for index, row in enumerate(rows):
            _draw_row(axes, -index, row)
        axes.set_ylim(0.72 - len(rows), 0.75)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
        axes.set_xlabel(title)
        described = "; ".join(
            f"{row.label} {row.note} {interval(row.low, row.high)}" for row in rows
        )
        return inline_svg(figure, f"{title}, with 95 % intervals. {shorten(described, 2_000)}")


def _draw_row(axes: Axes, y: float, row: IntervalRow) -> None:
    across = axes.get_yaxis_transform()
    axes.axhline(y - 0.28, color=GRID, linewidth=0.6)
    label = shorten(row.label, _MAX_LABEL_CHARACTERS)
    axes.text(0, y + 0.16, label, transform=across, va="bottom")
    axes.text(1, y + 0.16, row.note, transform=across, va="bottom", ha="right", color=MUTED)
    if math.isfinite(row.low) and math.isfinite(row.high):
        axes.plot([row.low, row.high], [y, y], color=row.colour, linewidth=2.5)
    for mark, shape in zip(row.marks, _MARKS, strict=False):
        if mark is not None and math.isfinite(mark):
            axes.plot([mark], [y], shape, color=INK, markersize=6, markerfacecolor="none")
    if math.isfinite(row.value):
        face = row.colour if row.is_filled else PAPER
        axes.plot([row.value], [y], "o", color=row.colour, markersize=7, markerfacecolor=face)


def curve_plot(name: str, title: str, points: Sequence[tuple[int, float]]) -> str:
    """One metric by step; values that are not finite leave a gap."""
    with page_style(name):
        figure = Figure(figsize=(_PANEL_INCHES, 1.9))
        axes = figure.add_axes((0.2, 0.25, 0.78, 0.7))
        marker = "o" if len(points) <= _MAX_POINTS_WITH_MARKERS else ""
        steps, values = _with_gaps(points)
        axes.plot(steps, values, color=HIGHER, marker=marker, markersize=3, linewidth=1.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.set_xlabel("step")
        return inline_svg(figure, _described_curve(title, points))


def loss_plot(
    curve: Sequence[CurvePoint], held_out: Sequence[HeldOutLoss], best_step: int | None
) -> str:
    """Training and held-out loss by step, with the step whose weights were kept marked."""
    lines = (
        ("training", [(point.step, point.loss) for point in curve], "-", NEUTRAL),
        ("held-out", [(point.step, point.loss) for point in held_out], "o--", HIGHER),
    )
    described = ""
    with page_style("preference-losses"):
        figure = Figure(figsize=(_WIDE_INCHES, 2.8))
        axes = figure.add_axes((0.12, 0.17, 0.85, 0.7))
        for label, points, look, colour in lines:
            if points:
                steps, losses = _with_gaps(points)
                axes.plot(steps, losses, look, color=colour, markersize=4, label=label)
                described += _described_curve(f"{label.capitalize()} loss", points) + " "
        if best_step is not None:
            axes.axvline(best_step, color=INK, linewidth=1, linestyle=":", label="weights kept")
            described += f"Weights of step {best_step} kept."
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        # Above the axes: it would cover one curve or the other.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
        return inline_svg(figure, described)


def _with_gaps(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    values = [value if math.isfinite(value) else math.nan for _, value in points]
    return [step for step, _ in points], values


def _described_curve(title: str, points: Sequence[tuple[int, float]]) -> str:
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        return f"{title} by step: no finite value."
    (first_step, first), (last_step, last) = finite[0], finite[-1]
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    return (
        f"{title} by step: {number(first)} at step {first_step}, {number(last)} at step "
        f"{last_step}, lowest {number(low)}, highest {number(high)}."
    )


def calibration_plot(before: Calibration | None, after: Calibration | None) -> str:
    """Reliability diagram: observed frequency against predicted probability."""
    with page_style("calibration"):
        figure = Figure(figsize=(_WIDE_INCHES, 3.6))
        axes = figure.add_axes((0.12, 0.14, 0.85, 0.83))
        shown = [calibration for calibration in (before, after) if calibration]
        low = _lowest(shown)
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1, linestyle=":", label="perfect")
        if before:
            _draw_bins(axes, before, ("s", LOWER, PAPER, "--"), "before temperature")
        if after:
            _draw_bins(axes, after, ("o", HIGHER, HIGHER, "-"), "after temperature")
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("mean label")
        axes.legend(loc="upper left")
        described = ", ".join(f"ECE {number(calibration.ece)}" for calibration in shown)
        return inline_svg(figure, f"Calibration on held-out pairs: {described}.")


def _lowest(shown: Sequence[Calibration]) -> float:
    bins = [bin_ for calibration in shown for bin_ in calibration.bins]
    return min([0.5, *(min(bin_.confidence, bin_.frequency) for bin_ in bins)])


def _draw_bins(
    axes: Axes, calibration: Calibration, look: tuple[str, str, str, str], label: str
) -> None:
    marker, colour, face, line = look
    axes.plot(
        [bin_.confidence for bin_ in calibration.bins],
        [bin_.frequency for bin_ in calibration.bins],
        marker=marker,
        color=colour,
        markerfacecolor=face,
        linestyle=line,
        linewidth=1.5,
        label=label,
    )


def histogram_plot(bins: Sequence[HistogramBin]) -> str:
    """Pairs by the strength of their soft label."""
    with page_style("label-strength"):
        figure = Figure(figsize=(_WIDE_INCHES, 2.2))
        axes = figure.add_axes((0.12, 0.22, 0.85, 0.74))
        axes.bar(
            [bin_.low for bin_ in bins],
            [bin_.count for bin_ in bins],
            [bin_.high - bin_.low for bin_ in bins],
            align="edge",
            color=HIGHER,
            edgecolor=PAPER,
        )
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=_TICK_STEPS))
        axes.set_xlabel("probability that the chosen response is better")
        axes.set_ylabel("pairs")
        axes.spines["bottom"].set_color(GRID)
        described = ", ".join(
            f"{number(bin_.low, 2)} to {number(bin_.high, 2)}: {bin_.count}" for bin_ in bins
        )
        return inline_svg(figure, f"Pairs by label strength. {described}.")
