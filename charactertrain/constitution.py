"""Constitutions: the trait files that researchers write, read and checked.

A trait file is input and not configuration, hence it may leave out what has a natural
default, and it is checked as text that somebody else wrote: plain data only, nothing
coerced, every problem reported with its line, trait and field.
"""

import difflib
import re
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import regex
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from charactertrain.exceptions import ConstitutionError

MAX_FILE_BYTES = 1024 * 1024
MAX_DEPTH = 10
"""Levels of nesting; a trait file needs five."""
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
MAX_PROBLEMS = 20
"""Problems listed in one message; the rest are counted."""
MAX_PROBLEM_CHARACTERS = 1000

_ID = re.compile(r"[a-z][a-z0-9_]{0,47}")
_WORDS = re.compile(r"[\w']+")
_BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_EXPECTED = {
    "string_type": ("text", "Put the value in quotes if it is meant as text."),
    "float_type": ("a number", "Write it as a plain number such as 1.0."),
    "tuple_type": ("a list", "Start each item on a line of its own with '- '."),
    "model_type": ("a mapping", "Write it as lines of 'key: value'."),
}
_YAML_KINDS = {
    "bool": "a boolean (yes, no, on and off are booleans in YAML)",
    "float": "a number",
    "null": "nothing",
    "seq": "a list",
    "map": "a mapping",
}

# Plain decimals only: YAML 1.1 would read 010 as 8 and 9:30 as 570. Dates, merge keys ('<<')
# and default values ('=') stay text too, as a writer means them.
_NUMBER = re.compile(
    r"[-+]?(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(?:[eE][-+]?[0-9]{1,3})?$"
    r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_RESOLVERS = {
    first: [(tag, form) for tag, form in resolvers if tag.endswith((":bool", ":null"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
} | {first: [("tag:yaml.org,2002:float", _NUMBER)] for first in "-+.0123456789"}

Location = tuple[int | str, ...]
Problem = tuple[Location, str]


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
                f"expected 1 to {max_characters} characters of text, found {_shown(value)}. "
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
            f"underscores, found {_shown(value)}. Rename the trait, for example 'curiosity'."
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
            f"expected a Python regular expression, found {_shown(value)}: {error}. Mend it; "
            "in YAML, single quotes keep backslashes as they are."
        ) from None
    for probe in ("", "So it is."):
        found = compiled.search(probe)
        if found and not found[0]:
            raise _error(
                f"expected a pattern that needs at least one character, found {_shown(value)}, "
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
                f"expected a pattern that is quick on any text, found {_shown(pattern)}, which "
                f"took longer than {MAX_PATTERN_SECONDS} s on {_shown(probe[:20])}... A repeat "
                "inside a repeat is the usual reason; simplify it."
            ) from None
        except regex.error as error:
            raise _error(
                f"expected a pattern that the package regex reads too, found {_shown(pattern)}: "
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
            raise _error(f"expected distinct facets, found {_shown(facet)} twice. Remove one.")
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


def load_constitution(name_or_path: str, *, shipped_dir: Path) -> Constitution:
    """The constitution of a trait file.

    Args:
        name_or_path: A shipped name, such as `claude` for `claude.yaml` in `shipped_dir`, or
            the path of a YAML file.
        shipped_dir: Where the shipped trait files are.

    Raises:
        ConstitutionError: The file is missing or wrong; one line for each problem.
    """
    path, content = _read(name_or_path, shipped_dir)
    node, data = _parse(path, _decoded(path, content))
    problems = [*_field_problems(data), *_duplicate_ids(data)]
    if problems:
        raise ConstitutionError(_report(path, node, problems))
    return Constitution.model_validate(data)


def _read(name_or_path: str, shipped_dir: Path) -> tuple[Path, bytes]:
    shipped = sorted(path.stem for path in shipped_dir.glob("*.yaml"))
    path = Path(name_or_path)
    if name_or_path in shipped:
        path = shipped_dir / f"{name_or_path}.yaml"
    elif name_or_path.startswith("~/"):
        path = path.expanduser()
    try:
        with path.open("rb") as file:
            return path, file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        found = f"nothing at {path.absolute()}"
    except IsADirectoryError:
        found = f"the directory {path.absolute()}"
    except (OSError, ValueError) as error:
        found = f"one that cannot be read: {error}"
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    suggestion = f"Did you mean {near[0]!r}? " if near else ""
    raise ConstitutionError(
        f"constitution {name_or_path!r}: expected a trait file, found {found}. {suggestion}"
        f"Give the path of a YAML file or a shipped name: {', '.join(shipped) or 'none here'}."
    )


def _decoded(path: Path, content: bytes) -> str:
    if len(content) > MAX_FILE_BYTES:
        raise ConstitutionError(
            f"{path}: expected at most {MAX_FILE_BYTES} bytes, found more. "
            "Split the traits over several files."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConstitutionError(
            f"{path}:{line}: expected UTF-8 text, found the byte 0x{content[error.start]:02x} "
            f"at offset {error.start}. Save the file as UTF-8."
        ) from None


class _TraitFileLoader(yaml.SafeLoader):
    """Plain data only: no tags, no aliases, no repeated keys, no dates, no merge keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.yaml_implicit_resolvers = _RESOLVERS
        self.problems: list[Problem] = []
        self._steps: list[object] = []

    def compose_node(
        self, parent: yaml.Node | None, index: yaml.Node | int | None
    ) -> yaml.Node | None:
        """Called by PyYAML for each node; `index` is the item's number or the key's node."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if len(self._steps) >= MAX_DEPTH:
            problem = f"more than {MAX_DEPTH} levels of nesting"
            raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)  # type: ignore[arg-type]
        self._steps.append(index.value if isinstance(index, yaml.ScalarNode) else index)
        self._check_event(event)
        node = super().compose_node(parent, index)  # type: ignore[arg-type]
        if isinstance(node, yaml.MappingNode) and not isinstance(event, yaml.AliasEvent):
            self._check_keys(node)
        self._steps.pop()
        return node

    def _refuse(self, problem: str, *key: str) -> None:
        here = [step for step in self._steps if isinstance(step, int | str)]
        self.problems.append(((*here, *key), problem))

    def _check_event(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._refuse(f"found the alias *{event.anchor}. Write the value out in each place.")
        elif (tag := getattr(event, "tag", None)) is not None:
            self._refuse(
                f"found the tag {tag!r}. Trait files are plain data: lists, mappings, "
                "text and numbers; no tag is read. Remove it."
            )

    def _check_keys(self, node: yaml.MappingNode) -> None:
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            kind = key.tag.split(":")[-1]
            if kind in _YAML_KINDS:
                self._refuse(
                    f"expected keys that are text, found the key {_shown(key.value)} on line "
                    f"{line}, which is {_YAML_KINDS[kind]}. Put it in quotes or remove it."
                )
            elif name in first_lines:
                self._refuse(
                    f"expected each key once, found it on lines {first_lines[name]} and {line}. "
                    "YAML would silently keep the last; remove one.",
                    name,
                )
            first_lines.setdefault(name, line)


def _parse(path: Path, text: str) -> tuple[yaml.Node, object]:
    """The node tree, which knows the lines, and the data."""
    try:
        loader = _TraitFileLoader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node and not loader.problems else None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ConstitutionError(f"{path}{_yaml_problem(error, text)}") from None
    if node is None:
        raise ConstitutionError(
            f"{path}: expected the keys name, description and traits, found an empty file."
        )
    if loader.problems:
        raise ConstitutionError(_report(path, node, loader.problems))
    return node, data


def _yaml_problem(error: Exception, text: str) -> str:
    match error:
        case yaml.MarkedYAMLError(problem_mark=mark) if mark:
            context = f"{error.context}, " if error.context else ""
            return (
                f":{mark.line + 1}:{mark.column + 1}: not valid YAML: {context}{error.problem}. "
                "Check indents, colons and quotes there; put text with ': ' or ' #' in quotes."
            )
        case yaml.reader.ReaderError():
            line = text.count("\n", 0, error.position) + 1
            code = f"U+{error.character:04X}"
            return f":{line}: expected text, found the control character {code}. Remove it."
        case _:
            return f': an escape such as "\\u00e9" cannot be read: {error}. Mend or remove it.'


def _field_problems(data: object) -> Iterator[Problem]:
    try:
        Constitution.model_validate(data)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            yield item["loc"], _explanation(item["type"], item["loc"], item["input"], item["msg"])


def _explanation(kind: str, location: Location, value: object, message: str) -> str:
    if kind == "missing":
        return f"expected the key {location[-1]!r}, found {_shown(value)}. Add it."
    if kind == "extra_forbidden":
        models: dict[int, type[_Record]] = {1: Constitution, 3: Trait, 4: Detector}
        known = list(models[len(location)].model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        suggestion = f"Did you mean {near[0]!r}?" if near else "Remove it."
        return f"unknown key. {suggestion} Known keys: {', '.join(known)}."
    if kind in _EXPECTED:
        expected, advice = _EXPECTED[kind]
        return f"expected {expected}, found {_shown(value)}. {advice}"
    return message


def _duplicate_ids(data: object) -> Iterator[Problem]:
    traits = data.get("traits") if isinstance(data, dict) else None
    first_numbers: dict[str, int] = {}
    for index, trait in enumerate(traits if isinstance(traits, list) else []):
        trait_id = trait.get("id") if isinstance(trait, dict) else None
        if not isinstance(trait_id, str):
            continue
        first = first_numbers.setdefault(trait_id.casefold(), index)
        if first != index:
            yield (
                ("traits", index, "id"),
                f"expected ids that differ in more than case, found {_shown(trait_id)} here and "
                f"in trait {first + 1}. Rename one.",
            )


def _shown(value: object) -> str:
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


def _report(path: Path, root: yaml.Node, problems: list[Problem]) -> str:
    """One line a problem, in the order of the file as far as they are listed."""
    lines = [
        (_nodes(root, location)[-1].start_mark.line + 1, _place(root, location) + problem)
        for location, problem in problems[:MAX_PROBLEMS]
    ]
    lines.sort(key=lambda line: line[0])
    shown = [f"{path}:{line}: {text[:MAX_PROBLEM_CHARACTERS]}" for line, text in lines]
    if len(problems) > MAX_PROBLEMS:
        shown.append(f"{path}: and {len(problems) - MAX_PROBLEMS} more problems.")
    return "\n".join(shown)


def _place(root: yaml.Node, location: Location) -> str:
    parts: list[str] = []
    if location[:1] == ("traits",) and len(location) > 1 and isinstance(location[1], int):
        trait_id = _nodes(root, (*location[:2], "id"))[3:]
        shown = f" ({_shown(trait_id[0].value)})" if trait_id else ""
        parts.append(f"trait {location[1] + 1}{shown}")
        location = location[2:]
    keys = [step for step in location if isinstance(step, str)]
    names = [key if key.isidentifier() else repr(key) for key in keys]
    if names:
        parts.append(f"field {'.'.join(names)}")
    parts.extend(f"item {step + 1}" for step in location if isinstance(step, int))
    return ", ".join(parts) + ": " if parts else ""


def _nodes(root: yaml.Node, location: Location) -> list[yaml.Node]:
    """The nodes on the way to a location, the root first, as far as it exists."""
    nodes = [root]
    for step in location:
        node = _child(nodes[-1], step)
        if node is None:
            break
        nodes.append(node)
    return nodes


def _child(node: yaml.Node, step: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return next(iter(node.value[step : step + 1]), None)
    return None
