"""Reading the trait files that researchers write.

A trait file is checked as text that somebody else wrote: plain data only, nothing coerced, every
problem reported with its line, trait and field.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from charactertrain.constitution import Constitution, Detector, Trait, described
from charactertrain.exceptions import ConstitutionError

MAX_FILE_BYTES = 1024 * 1024
MAX_DEPTH = 10
"""Levels of nesting; a trait file needs five."""
MAX_PROBLEMS = 20
"""Problems listed in one message; the rest are counted."""
MAX_PROBLEM_CHARACTERS = 1000

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
                    f"expected keys that are text, found the key {described(key.value)} on line "
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
                + _yaml_advice(str(error.problem))
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
        return f"expected the key {location[-1]!r}, found {described(value)}. Add it."
    if kind == "extra_forbidden":
        models: dict[int, type[BaseModel]] = {1: Constitution, 3: Trait, 4: Detector}
        known = list(models[len(location)].model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        suggestion = f"Did you mean {near[0]!r}?" if near else "Remove it."
        return f"unknown key. {suggestion} Known keys: {', '.join(known)}."
    if kind in _EXPECTED:
        expected, advice = _EXPECTED[kind]
        return f"expected {expected}, found {described(value)}. {advice}"
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
                f"expected ids that differ in more than case, found {described(trait_id)} here and "
                f"in trait {first + 1}. Rename one.",
            )


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
        shown = f" ({described(trait_id[0].value)})" if trait_id else ""
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


def _yaml_advice(problem: str) -> str:
    if "'\\t'" in problem:
        return "YAML indents with spaces: put spaces in place of the tab."
    if "unknown escape character" in problem:
        return "Put regular expressions in single quotes, which keep backslashes as they are."
    return "Check indents, colons and quotes there; put text with ': ' or ' #' in quotes."
