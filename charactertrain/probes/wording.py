"""How the measures of probes read English: sentences, and patterns of words in any case."""

import re

_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, by its full stops, question and exclamation marks, and lines."""
    return _ENDS.split(text.strip())


def any_of(*patterns: str) -> re.Pattern[str]:
    """One pattern that finds what any of them finds, in upper and lower case."""
    return re.compile("|".join(patterns), re.IGNORECASE)
