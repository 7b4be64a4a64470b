"""The charts of the readings during policy training, made as those in `plots`."""

import math
from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from charactertrain.report.data_view import Estimate
from charactertrain.report.plots import curve_plot
from charactertrain.report.sections import Chart
from charactertrain.report.svg import HIGHER, INK, LOWER, MUTED, PAPER, inline_svg, page_style
from charactertrain.report.text import interval, signed
from charactertrain.report.watch_view import WatchReading, WatchView

_SIZE_INCHES = (4.3, 3.4)
_TICK_STEPS = (1, 2, 5, 10)
_MAX_STEP_LABELS = 10
_PANELS = {
    "entropy": "Entropy, nats per token",
    "length_tokens": "Length, tokens",
    "distinct_2": "Distinct bigrams, share",
}


def watch_panels(watch: WatchView) -> tuple[Chart, ...]:
    """What collapses with a policy that degenerates, each by step."""
    return tuple(
        Chart(
            title=title,
            svg=Markup(
                curve_plot(
                    f"watch {name}",
                    title,
                    [(reading.step, getattr(reading, name)) for reading in watch.readings],
                )
            ),
        )
        for name, title in _PANELS.items()
    )


def over_optimisation_chart(watch: WatchView) -> Markup:
    """Change of both rewards against the distance from the reference, as in Gao et al. (2023)."""
    # Only SVG becomes Markup here: ElementTree has escaped every text in it.
    return Markup(over_optimisation_plot(watch.readings, watch.exported_step))


def over_optimisation_plot(readings: Sequence[WatchReading], exported_step: int) -> str:
    """Change of both rewards against the square root of the KL, with the steps as labels."""
    with page_style("over-optimisation"):
        figure = Figure(figsize=_SIZE_INCHES)
        axes = figure.add_axes((0.14, 0.14, 0.83, 0.76))
        axes.axhline(0, color=MUTED, linewidth=1, linestyle=":")
        trained = [reading.reward_change for reading in readings]
        gold = [reading.gold_change for reading in readings if reading.gold_change is not None]
        distances = [reading.distance for reading in readings]
        described = [_described("Reward trained on", readings, trained)]
        _draw_rewards(axes, distances, trained, ("s--", LOWER, PAPER, "trained on"))
        if gold:
            described.append(_described("Gold reward", readings, gold))
            _draw_rewards(axes, distances, gold, ("o-", HIGHER, HIGHER, "gold"))
        exported = [reading for reading in readings if reading.step == exported_step]
        for reading in exported:
            axes.axvline(reading.distance, color=INK, linewidth=1, linestyle=":", label="exported")
        described.append(f"Weights of step {exported_step} exported.")
        _label_steps(axes, readings)
        axes.margins(0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICK_STEPS))
        axes.set_xlabel("square root of the KL, nats per response")
        axes.set_ylabel("change of the mean reward")
        # Above the axes: it would cover one curve or the other.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
        return inline_svg(figure, " ".join(described))


def _draw_rewards(
    axes: Axes,
    distances: Sequence[float],
    changes: Sequence[Estimate],
    look: tuple[str, str, str, str],
) -> None:
    line, colour, face, label = look
    for distance, change in zip(distances, changes, strict=True):
        axes.plot([distance] * 2, [change.ci_low, change.ci_high], color=colour, linewidth=1)
    axes.plot(
        distances,
        [change.value for change in changes],
        line,
        color=colour,
        markerfacecolor=face,
        markersize=5,
        linewidth=1.5,
        label=label,
    )


def _label_steps(axes: Axes, readings: Sequence[WatchReading]) -> None:
    # Counted from the end: the last reading is the one to know.
    stride = math.ceil(len(readings) / _MAX_STEP_LABELS)
    for reading in readings[::-1][::stride]:
        changes = [change for change in (reading.reward_change, reading.gold_change) if change]
        axes.annotate(
            str(reading.step),
            (reading.distance, max(change.value for change in changes)),
            xytext=(4, 5),
            textcoords="offset points",
            color=INK,
        )


def _described(title: str, readings: Sequence[WatchReading], changes: Sequence[Estimate]) -> str:
    rows = (
        f"step {reading.step} {signed(change.value)} {interval(change.ci_low, change.ci_high)}"
        for reading, change in zip(readings, changes, strict=True)
    )
    return f"{title}, change since the first reading: {'; '.join(rows)}."
