"""Templates and what they are given: every text escaped, made visible and bounded."""

import functools
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from charactertrain.report.text import count, duration, interval, number, printable, shorten

MAX_TEXT_CHARACTERS = 20_000
"""Shown of one text; the rest is counted."""
MAX_LINE_CHARACTERS = 280
"""Shown of a text in a list."""
_CURVE_WIDTH, _CURVE_HEIGHT = 220.0, 44.0


def render(template: str, **values: Any) -> str:
    """A page as HTML."""
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("charactertrain.review"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        ago=ago,
        count=count,
        duration=duration,
        line=lambda text: shorten(str(text), MAX_LINE_CHARACTERS),
        moment=moment,
        number=number,
        whole=whole,
    )
    environment.globals.update(curve_points=curve_points, interval=interval)
    return environment


def _finalize(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return "" if value is None else value


def whole(text: str) -> Markup:
    """A text as it was written, up to `MAX_TEXT_CHARACTERS`."""
    shown = escape(printable(text[:MAX_TEXT_CHARACTERS]))
    hidden = len(text) - MAX_TEXT_CHARACTERS
    if hidden <= 0:
        return shown
    note = Markup('<span class="quiet"> [{} more characters not shown]</span>')
    return shown + note.format(count(hidden))


def moment(iso: str) -> str:
    """A time as people read it, in UTC."""
    return datetime.fromisoformat(iso).astimezone(UTC).strftime("%d %b %Y %H:%M UTC")


def ago(seconds_since_epoch: float | None) -> str:
    """How long ago something happened."""
    if seconds_since_epoch is None:
        return "not yet"
    return f"{duration(max(0.0, time.time() - seconds_since_epoch))} ago"


def curve_points(values: tuple[float, ...]) -> str:
    """Points of an SVG line of the values, left to right, in a box of 220 by 44."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = _CURVE_WIDTH / max(1, len(values) - 1)
    points = (
        (index * step, _CURVE_HEIGHT - 2 - (value - low) / span * (_CURVE_HEIGHT - 4))
        for index, value in enumerate(values)
    )
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def link(path: str, query: Mapping[str, str], **changes: object) -> str:
    """An address with some of its query changed; an empty value takes a key out."""
    kept = {key: value for key, value in {**query, **changes}.items() if value not in ("", None)}
    return f"{path}?{urlencode(kept)}"
