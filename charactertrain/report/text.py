"""Texts and numbers as they appear on the page: made visible, highlighted, formatted."""

import math
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise, takewhile

from markupsafe import Markup, escape

from charactertrain.texts.measures import detector_spans

MAX_SHOWN_CHARACTERS = 4_000

Span = tuple[int, int]
"""Start and end in characters."""

# Control characters can blank a page, bidirectional overrides can reorder what stands around them,
# lone surrogates cannot be written as UTF-8 nor U+FFFE and U+FFFF as XML: all are shown as escapes.
_INVISIBLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff\\ufffe\\uffff]"
)


def printable(text: str) -> str:
    """The text with line ends made plain and every unsafe character shown as an escape."""
    lines = text.replace("\r\n", "\n")
    return _INVISIBLE.sub(lambda match: f"\\u{ord(match.group()):04x}", lines)


def shorten(text: str, num_characters: int) -> str:
    """The text on one line, cut with an ellipsis where it is longer than `num_characters`."""
    line = " ".join(printable(text).split())
    return line if len(line) <= num_characters else line[: num_characters - 1].rstrip() + "\u2026"


def highlight(text: str, pattern: str | None, changed: Sequence[Span] = ()) -> Markup:
    """The text as HTML, escaped, with the pattern's matches and what changed marked.

    The pattern sees the whole text, as the detector does; what lies beyond
    `MAX_SHOWN_CHARACTERS` is counted and not shown.

    Args:
        text: Anything that a model can write.
        pattern: A detector, whose matches stand in a `<mark>`; None for none.
        changed: Characters that stand in a `<span class="diff">`, in order.
    """
    shown, hidden = text[:MAX_SHOWN_CHARACTERS], len(text) - MAX_SHOWN_CHARACTERS
    found = _clipped(detector_spans(pattern, text) if pattern else (), len(shown))
    differing = _clipped(changed, len(shown))
    cuts = {0, len(shown), *(end for span in (*found, *differing) for end in span)}
    pieces = [
        _piece(printable(shown[start:stop]), start, found, differing)
        for start, stop in pairwise(sorted(cuts))
    ]
    if hidden > 0:
        note = Markup('<span class="missing"> [{} more characters not shown]</span>')
        pieces.append(note.format(count(hidden)))
    return Markup("").join(pieces)


def _clipped(spans: Iterable[Span], length: int) -> list[Span]:
    # The spans of a text of megabytes may be a million: they come in order, so the rest is left.
    inside = takewhile(lambda span: span[0] < length, spans)
    return [(start, min(stop, length)) for start, stop in inside if start < stop]


def _piece(text: str, at: int, found: Sequence[Span], differing: Sequence[Span]) -> Markup:
    piece = escape(text)
    if _covers(found, at):
        piece = Markup("<mark>{}</mark>").format(piece)
    if _covers(differing, at):
        piece = Markup('<span class="diff">{}</span>').format(piece)
    return piece


def _covers(spans: Sequence[Span], at: int) -> bool:
    """Whether the last span that begins at `at` or before it reaches beyond it."""
    index = bisect_right(spans, (at, sys.maxsize)) - 1
    return index >= 0 and at < spans[index][1]


def number(value: float | None, digits: int = 3) -> str:
    """The value with a fixed number of digits; small values that would read as 0 keep one digit."""
    if value is None or not math.isfinite(value):
        return "n/a"
    rounded = f"{value:.{digits}f}"
    if float(rounded) == 0.0:
        return f"{value:.1g}" if value else f"{0:.{digits}f}"
    return rounded


def signed(value: float | None, digits: int = 3) -> str:
    """The value as `number` gives it, with a plus sign where it is above zero."""
    plus = "+" if value is not None and math.isfinite(value) and value > 0 else ""
    return plus + number(value, digits)


def interval(low: float, high: float, digits: int = 3) -> str:
    """Both ends of an interval in brackets, or that there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "no interval"
    return f"[{number(low, digits)}, {number(high, digits)}]"


def p_value(value: float) -> str:
    """The value to three digits; one below a thousandth says no more than that."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int | None) -> str:
    """The whole number with thousands separated."""
    return "n/a" if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """The time in the two largest units that fit, e.g. 2 min 44 s."""
    if seconds is None or not math.isfinite(seconds):
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
