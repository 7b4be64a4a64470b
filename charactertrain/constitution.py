"""Constitutions: traits, and what their fields may hold.

A constitution is input and not configuration, hence it may leave out what has a natural default.
"""

import re
import unicodedata
import warnings
from typing import Annotated

import regex
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from charactertrain.records import NO_TRAIT

MAX_TRAITS = 256
MIN_FACETS = 3
"""Where a trait names any: the split needs a family of each kind."""
MAX_FACETS = 64
MAX_STATEMENT_CHARACTERS = 600
MAX_FACET_CHARACTERS = 200
MAX_NAME_CHARACTERS = 100
MAX_DESCRIPTION_CHARACTERS = 2000
MAX_PATTERN_CHARACTERS = 500
MAX_PATTERN_SECONDS = 1.0
# Each with ends, since a pattern that must end in "!" gives up at once on a text without one.
_SLOW_PROBES = tuple(
    body + end
    for body in ("a" * 200, "a word " * 40, "!" * 200, "1" * 200)
    for end in ("0", "a", "! 0", "? 0", ". 0")
)
MAX_WEIGHT = 100.0

_ID = re.compile(r"[a-z][a-z0-9_]{0,47}")
_WORDS = re.compile(r"[\w']+")
_BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def described(value: object) -> str:
    """A value of a trait file as messages name it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"the boolean {str(value).lower()} (yes, no, on and off are booleans in YAML)"
        case int() | float():
            return f"the number {value:g}"
        case str():
            return f"{value!r}" if len(value) <= 60 else f"{value[:57]!r}..."
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return f"a mapping with the keys {', '.join(map(str, value)) or 'none'}"
        case _:
            return f"a {type(value).__name__}"


def _error(message: str) -> PydanticCustomError:
    # Pydantic fills braces in the message only from a context, and none is given.
    return PydanticCustomError("trait_file", message)


def _check_visible(text: str, *, allowed: str) -> None:
    """Refuses what a reviewer cannot see, and lone surrogates, which no file can store."""
    for position, character in enumerate(text):
        is_control = unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
        is_bidi = unicodedata.bidirectional(character) in _BIDI_CONTROLS
        if (is_control or is_bidi) and character not in allowed:
            raise _error(
                f"expected visible characters on one line, found the control character "
                f"U+{ord(character):04X} at character {position + 1}. Remove it; to wrap a "
                "long text over several lines, use YAML's folded form '>-'."
            )


def _text(max_characters: int, *, allowed: str = "") -> AfterValidator:
    """Text with something in it; a folded YAML block's last line end is dropped."""

    def check(value: str) -> str:
        text = value.strip(" \t\r\n")
        if not any(character.isalnum() for character in text):
            raise _error(
                f"expected 1 to {max_characters} characters of text, found {described(value)}. "
                "Write it out, or remove it if it is not needed."
            )
        if len(text) > max_characters:
            raise _error(
                f"expected 1 to {max_characters} characters, found {len(text)}. Shorten it."
            )
        _check_visible(text, allowed=allowed)
        return text

    return AfterValidator(check)


def _check_id(value: str) -> str:
    if not _ID.fullmatch(value):
        raise _error(
            "expected a lower-case letter followed by at most 47 lower-case letters, digits or "
            f"underscores, found {described(value)}. Rename the trait, for example 'curiosity'."
        )
    if value == NO_TRAIT:
        raise _error(
            f"expected another id: {NO_TRAIT!r} names prompts for which no trait is at stake. "
            "Rename the trait."
        )
    return value


def _check_weight(value: float) -> float:
    if not 0 < value <= MAX_WEIGHT:  # which nan is not either
        raise _error(
            f"expected a finite number above 0 and at most {MAX_WEIGHT:g}, found {value}. "
            "1.0 is the usual weight; remove the trait if it should not count."
        )
    return value


def _check_pattern(value: str) -> str:
    if len(value) > MAX_PATTERN_CHARACTERS:
        raise _error(
            f"expected at most {MAX_PATTERN_CHARACTERS} characters, found {len(value)}. Shorten it."
        )
    _check_visible(value, allowed="")
    try:
        with warnings.catch_warnings():
            # A pattern that Python warns about may mean something else in its next version.
            warnings.simplefilter("error")
            compiled = re.compile(value)
    except (re.error, Warning, ValueError, OverflowError, RecursionError) as error:
        raise _error(
            f"expected a Python regular expression, found {described(value)}: {error}. Mend it; "
            "in YAML, single quotes keep backslashes as they are."
        ) from None
    for probe in ("", "So it is."):
        found = compiled.search(probe)
        if found and not found[0]:
            raise _error(
                f"expected a pattern that needs at least one character, found {described(value)}, "
                "which matches the empty string and so would match every response. "
                "Make a part of it required."
            )
    _check_speed(value)
    return value


def _check_speed(pattern: str) -> None:
    """Refuses a detector that a text can keep busy for ever, or that `regex` reads otherwise."""
    for probe in _SLOW_PROBES:
        try:
            regex.search(pattern, probe, timeout=MAX_PATTERN_SECONDS)
        except TimeoutError:
            raise _error(
                f"expected a pattern that is quick on any text, found {described(pattern)}, which "
                f"took longer than {MAX_PATTERN_SECONDS} s on {described(probe[:20])}... A repeat "
                "inside a repeat is the usual reason; simplify it."
            ) from None
        except regex.error as error:
            raise _error(
                f"expected a pattern that the package regex reads too, found {described(pattern)}: "
                f"{error}. Simplify it."
            ) from None


def _list_of(max_items: int, *, min_items: int = 0) -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        if not min_items <= len(value) <= max_items:
            raise _error(
                f"expected {min_items} to {max_items} items, found {len(value)}. "
                + ("Split the file." if value else "Add at least one.")
            )
        return tuple(value)

    return BeforeValidator(check)


def normalised_facet(facet: str) -> str:
    """What a facet is told apart by: its words in lower case, joined by hyphens."""
    return "-".join(_WORDS.findall(facet.lower()))


def _check_facets(facets: tuple[str, ...]) -> tuple[str, ...]:
    # A facet is a family of prompts and the unit of the split: twice would leak into the test.
    seen: set[str] = set()
    for facet in facets:
        if normalised_facet(facet) in seen:
            raise _error(f"expected distinct facets, found {described(facet)} twice. Remove one.")
        seen.add(normalised_facet(facet))
    if 0 < len(facets) < MIN_FACETS:
        raise _error(
            f"expected {MIN_FACETS} facets or more, one each to train, validate and test on, found "
            f"{len(facets)}. Add some, or leave the key out to use the shipped facets."
        )
    return facets


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Detector(_Record):
    """A judge-free measure: the share of responses in which the pattern is found."""

    pattern: Annotated[str, AfterValidator(_check_pattern)]
    """Python regular expression, for `re.search`; case-sensitive unless it says (?i)."""


class Trait(_Record):
    """One statement about the character, in the first person: a nudge, never a rule."""

    id: Annotated[str, AfterValidator(_check_id)]
    statement: Annotated[str, _text(MAX_STATEMENT_CHARACTERS)]
    facets: Annotated[
        tuple[Annotated[str, _text(MAX_FACET_CHARACTERS)], ...],
        _list_of(MAX_FACETS),
        AfterValidator(_check_facets),
    ] = ()
    """Situations in which the trait matters; one scenario family each."""
    weight: Annotated[float, AfterValidator(_check_weight)] = 1.0
    """Share in the training data relative to the other traits, above 0 to 100."""
    detector: Detector | None = None


class Constitution(_Record):
    """The traits that together make a character."""

    name: Annotated[str, _text(MAX_NAME_CHARACTERS)]
    description: Annotated[str, _text(MAX_DESCRIPTION_CHARACTERS, allowed="\t\n")]
    traits: Annotated[tuple[Trait, ...], _list_of(MAX_TRAITS, min_items=1)]
