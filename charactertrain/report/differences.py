"""What differs between two texts, by words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from charactertrain.report.text import Span

MAX_WORDS = 600
"""Words of each text that are compared: the time grows with the square of their number."""
MIN_SHARED = 0.1
"""Share of words in common below which nothing is marked: all of it would be."""
_MIN_RUN = 2
"""Fewest words in common between two changes; a lone article in both is no common ground."""


@dataclass(frozen=True, slots=True)
class Differences:
    """Where two texts differ, as start and end in characters."""

    first: tuple[Span, ...]
    """Of the first text, what the second has not."""
    second: tuple[Span, ...]
    """Of the second text, what the first has not."""
    shared: float
    """Share of the words of both that are in common, in order, 0 to 1."""


def word_differences(first: str, second: str) -> Differences:
    """What differs between the beginnings of two texts; none where hardly a word is in common.

    Texts of any length take bounded time: the first `MAX_WORDS` words of each are compared.
    """
    if first == second:
        return Differences((), (), 1.0)
    words, others = _words(first), _words(second)
    # Words that are frequent in a text begin no run in common: a loop of a few words would take
    # seconds, since each of them fits everywhere.
    matcher = SequenceMatcher(
        None, [first[a:b] for a, b in words], [second[a:b] for a, b in others], autojunk=True
    )
    blocks = [
        block
        for block in matcher.get_matching_blocks()
        if block.size >= _MIN_RUN
        # At either end, and the sentinel that closes the list.
        or not block.size
        or (block.a, block.b) == (0, 0)
        or (block.a + block.size, block.b + block.size) == (len(words), len(others))
    ]
    num_shared = sum(block.size for block in blocks)
    shared = 2 * num_shared / max(len(words) + len(others), 1)
    if shared < MIN_SHARED:
        return Differences((), (), shared)
    return Differences(
        _between(words, [(block.a, block.a + block.size) for block in blocks]),
        _between(others, [(block.b, block.b + block.size) for block in blocks]),
        shared,
    )


def _words(text: str) -> list[Span]:
    # Not over the whole of a text: of megabytes only the beginning is looked at.
    found = []
    for match in re.finditer(r"\S+", text):
        found.append(match.span())
        if len(found) == MAX_WORDS:
            break
    return found


def _between(words: Sequence[Span], common: Sequence[Span]) -> tuple[Span, ...]:
    """Characters of the words that lie between the runs in common, which are in order."""
    spans, end = [], 0
    for start, stop in common:
        if end < start:
            spans.append((words[end][0], words[start - 1][1]))
        end = stop
    return tuple(spans)
