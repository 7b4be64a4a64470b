"""The interval plots of effects by arm, made as those in `plots`; an arm looks alike everywhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from charactertrain.report.effects_view import POLICY, Arm, ByArm, Effect
from charactertrain.report.reading import read_effect
from charactertrain.report.svg import (
    ARM_COLOURS,
    GRID,
    INK,
    MUTED,
    PAPER,
    inline_svg,
    page_style,
)
from charactertrain.report.text import interval, printable, shorten, signed

# Seven and eight have no common factor: 56 arms go by before one looks like another.
_MARKERS = ("o", "s", "^", "D", "v", "p", "X")
_WIDTH_INCHES = 4.3
_LINE_INCHES = 0.25
_FOOT_INCHES = 0.68
_LEFT, _RIGHT = 0.28, 0.85
"""Where the intervals begin and end: names stand before them, differences after."""
_MAX_NAME_CHARACTERS = 14
_MAX_LABEL_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How an arm is drawn."""

    colour: str
    """A colour of `svg`."""
    marker: str
    """A shape of matplotlib that can be filled."""


Group = tuple[str, ByArm]
"""What is measured in every arm, such as a trait, with the effects."""


def looks(arms: Sequence[Arm]) -> dict[str, Look]:
    """Colour and shape by name of each arm but the base, which is the line at 0.

    The policy's are always the same, whatever it is compared with.
    """
    names = [arm.name for arm in arms if arm.kind != "base"]
    names.sort(key=lambda name: name != POLICY)
    return {
        name: Look(
            colour=ARM_COLOURS[index % len(ARM_COLOURS)], marker=_MARKERS[index % len(_MARKERS)]
        )
        for index, name in enumerate(names)
    }


def forest_plot(
    name: str, title: str, groups: Sequence[Group], arms: Mapping[str, Look], *, digits: int = 3
) -> str:
    """Differences from the base with their intervals: a line for each arm, under its group.

    Args:
        name: Of the plot, which no other plot on the page has.
        title: Under the axis: what is measured, and its unit.
        groups: Traits, kinds of prompt or conditions, from top to bottom.
        arms: What each looks like, from top to bottom within a group. One that was measured in no
            group is left out.
        digits: Of the differences that stand beside the intervals.
    """
    drawn = {arm: look for arm, look in arms.items() if any(arm in found for _, found in groups)}
    with page_style(name):
        num_lines = sum(1 + len(drawn) * bool(effects) for _, effects in groups)
        height = _LINE_INCHES * num_lines + _FOOT_INCHES
        figure = Figure(figsize=(_WIDTH_INCHES, height))
        bottom = _FOOT_INCHES / height
        axes = figure.add_axes((_LEFT, bottom, _RIGHT - _LEFT, 1 - bottom - 0.02 / height))
        axes.set_yticks([])
        axes.axvline(0, color=INK, linewidth=1)
        y = 0
        for label, effects in groups:
            _write_header(axes, y, label if effects else f"{label}: not measured")
            if effects:
                for line, (arm, look) in enumerate(drawn.items(), 1):
                    _write_arm(axes, y - line, arm, _in_short(effects.get(arm), digits))
                    _draw_effect(axes, y - line, effects.get(arm), look)
                y -= len(drawn)
            y -= 1
        axes.set_ylim(0.5 - num_lines, 0.5)
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
        axes.set_xlabel(printable(title))
        described = f"{printable(title)}, with 95 % intervals. {_described(groups, drawn, digits)}"
        return inline_svg(figure, described.replace("\n", " "))


def _write_header(axes: Axes, y: float, label: str) -> None:
    # Across the whole figure, left of the axes too.
    start = -_LEFT / (_RIGHT - _LEFT)
    across = axes.get_yaxis_transform()
    text = shorten(label, _MAX_LABEL_CHARACTERS)
    axes.text(start, y, text, transform=across, va="center", fontweight="bold")
    end = (1 - _LEFT) / (_RIGHT - _LEFT)
    ends = [start, end], [y + 0.5] * 2
    axes.plot(*ends, color=GRID, linewidth=0.6, transform=across, clip_on=False)


def _write_arm(axes: Axes, y: float, name: str, note: str) -> None:
    across = axes.get_yaxis_transform()
    start = -_LEFT / (_RIGHT - _LEFT)
    shown = shorten(name, _MAX_NAME_CHARACTERS)
    axes.text(start + 0.02, y, shown, transform=across, va="center", color=MUTED)
    colour = MUTED if note == "n/a" else INK
    axes.text(1.02, y, note, transform=across, va="center", color=colour)


def _in_short(effect: Effect | None, digits: int) -> str:
    return "n/a" if effect is None else signed(effect.difference, digits)


def _draw_effect(axes: Axes, y: float, effect: Effect | None, look: Look) -> None:
    if effect is None or not math.isfinite(effect.difference):
        return
    if math.isfinite(effect.ci_low) and math.isfinite(effect.ci_high):
        axes.plot([effect.ci_low, effect.ci_high], [y, y], color=look.colour, linewidth=2.2)
    is_established = read_effect(effect) != "not established"
    axes.plot(
        [effect.difference],
        [y],
        look.marker,
        color=look.colour,
        markersize=7,
        markeredgewidth=1.5,
        markerfacecolor=look.colour if is_established else PAPER,
    )


def _described(groups: Sequence[Group], arms: Mapping[str, Look], digits: int) -> str:
    lines = [
        f"{label}, {arm}: {_in_words(effects.get(arm), digits)}"
        for label, effects in groups
        for arm in arms
    ]
    return shorten("; ".join(lines), 4_000)


def _in_words(effect: Effect | None, digits: int) -> str:
    if effect is None or not math.isfinite(effect.difference):
        return "not measured"
    bounds = interval(effect.ci_low, effect.ci_high, digits)
    return f"{signed(effect.difference, digits)} {bounds}"


def arm_key(name: str, look: Look) -> str:
    """The arm's mark alone, for a legend or a table."""
    with page_style(f"key {name}"):
        figure = Figure(figsize=(0.28, 0.18))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.add_patch(_patch(Path([(-14, 0), (14, 0)]), look.colour))
        style = MarkerStyle(look.marker)
        shape = style.get_path().transformed(style.get_transform() + Affine2D().scale(10))
        axes.add_patch(_patch(shape, look.colour))
        axes.set_xlim(-15, 15)
        axes.set_ylim(-9.5, 9.5)
        return inline_svg(figure, shorten(name, _MAX_LABEL_CHARACTERS))


def _patch(path: Path, colour: str) -> PathPatch:
    # Not a marker nor clipped: these have ids, and the page shows a key many times.
    return PathPatch(path, facecolor=colour, edgecolor=colour, linewidth=1.5, clip_on=False)
