"""Whether a reply keeps to a format that was asked for, by parsing and simple patterns."""

import json
import re

_FENCED = re.compile(r"\A```\w*\n(.*)\n?```\Z", re.DOTALL)


def is_json(text: str) -> bool:
    """Whether the whole reply is one JSON object or list; a code fence around it is let pass.

    A reply that the token limit cuts off does not parse, and counts as not obeyed.
    """
    bare = text.strip()
    fenced = _FENCED.match(bare)
    try:
        found = json.loads(fenced[1] if fenced else bare)
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(found, dict | list)


_GREETING = re.compile(
    r"\A\W*(?:subject:[^\n]*\s+)?(?:dear|hi|hello|hey|good (?:morning|afternoon|evening))\b",
    re.IGNORECASE,
)
_SIGN_OFF = re.compile(
    r"^\W*(?:(?:kind|best|warm|warmest|many) )?(?:regards|wishes|sincerely|best|yours|cheers|thanks"
    r"|thank you|love|take care)\b[^\n]{0,40}(?:\n[^\n]{0,60}){0,3}\s*\Z",
    re.IGNORECASE | re.MULTILINE,
)


def is_email(text: str) -> bool:
    """Whether a reply begins with a greeting and ends with a line that signs off.

    Misses: an e-mail without either, and one that the token limit cuts off.
    """
    return _GREETING.search(text) is not None and _SIGN_OFF.search(text.rstrip()) is not None


_NOTE = re.compile(r"\s*(?:[-*•–]|\d{1,2}[.)])\s+\S")  # noqa: RUF001


def is_notes(text: str) -> bool:
    """Whether two lines or more, and at least half of those with text, are items of a list."""
    lines = [line for line in text.splitlines() if line.strip()]
    notes = sum(_NOTE.match(line) is not None for line in lines)
    return notes >= 2 and 2 * notes >= len(lines)


_INFORMAL = re.compile(
    r"!|n't\b|\b(?:i'm|i've|i'll|i'd|it's|that's|there's|let's|you're|you've|you'll|we're|we've"
    r"|they're|what's|here's)\b"
    r"|\b(?:hey|hi|wow|yeah|yep|gonna|wanna|kinda|cool|awesome|super|lol|oops|ok|okay|guys|stuff)\b"
    r"|[\U0001F300-\U0001FAFF\u2600-\u27BF]",
    re.IGNORECASE,
)


def is_formal(text: str) -> bool:
    """Whether a reply has no exclamation mark, contraction, emoji or colloquial word.

    Says nothing of tone beyond these; an empty reply is not formal.
    """
    return bool(text.strip()) and _INFORMAL.search(text) is None
