"""Reading probe files: conversations to put a model through, the shipped ones and a researcher's.

A YAML file is a probe: conditions, which are conversations with places to fill, and items, which
fill them. A JSONL file holds further items of a shipped probe, one a line. Plain data only, nothing
coerced; every problem is reported with its file, item and field, or its line.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from charactertrain.exceptions import ConfigError
from charactertrain.probes.measures import MEASURES, Better

SHIPPED_DIR = Path(__file__).parent
SHIPPED = tuple(sorted(path.stem for path in SHIPPED_DIR.glob("*.yaml")))
"""Names of the probes that come with the package."""
PLAIN = "plain"
"""The condition that a probe's others are compared with."""
MAX_PROBLEMS = 20

_PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_+]{0,47}$")]
_Text = Annotated[str, Field(min_length=1, max_length=20_000)]
_NEEDS = {"correct": "accepted", "error": "accepted", "repeats_mistake": "mistaken"}


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Condition(_Record):
    """One way of asking: what the user says, with `{places}` that an item fills."""

    name: _Name
    """`plain`: compared with; `x+y`: the two conditions x and y at once, for their interaction."""
    system: str = ""
    turns: Annotated[list[_Text], Field(min_length=1)]
    """The user's."""
    given_replies: list[_Text] = []
    """In place of the model's own to the first turns."""
    measures: list[str]
    """Names of `measures.MEASURES`; `every_trait` for the contrast of each trait."""

    @property
    def places(self) -> set[str]:
        """The names in braces."""
        texts = [self.system, *self.turns, *self.given_replies]
        return {name for text in texts for name in _PLACE.findall(text)}


class Item(BaseModel):
    """What fills the places, in keys of its own, and what is known of the answer."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")
    __pydantic_extra__: dict[str, _Text]

    id: Annotated[str, Field(min_length=1, max_length=200)]
    conditions: list[str] = []
    """That it is asked in; none named: in all."""
    accepted: list[_Text] = []
    """Right answers, any of which will do."""
    mistaken: list[_Text] = []
    """Wrong ones that the user names."""

    @property
    def fields(self) -> dict[str, str]:
        """What fills the places."""
        return dict(self.__pydantic_extra__ or {})


class ProbeFile(_Record):
    """A probe: every item in every condition is one conversation."""

    title: Annotated[str, Field(min_length=1, max_length=100)]
    question: Annotated[str, Field(min_length=1, max_length=300)]
    better: Better | None
    """Of the measures, against the base; None where neither is."""
    conditions: Annotated[list[Condition], Field(min_length=1)]
    items: Annotated[list[Item], Field(min_length=2)]


def filled(text: str, fields: Mapping[str, str]) -> str:
    """A condition's text with its places filled; other braces stay."""
    return _PLACE.sub(lambda place: fields[place[1]], text)


def load(names: Sequence[str], locations: Sequence[str]) -> dict[str, ProbeFile]:
    """The shipped probes among `names`, and those of files, by name and in the order of names.

    The order of the locations plays no part: a run goes on whichever it is.

    Raises:
        ConfigError: A file is wrong, or its name is taken.
    """
    found = {name: load_shipped(name) for name in names if name in SHIPPED}
    for location in locations:
        name, probe = load_file(location)
        if name in SHIPPED or name in names or name in found:
            raise ConfigError(
                f"evaluation.probes.files: {location} would be called {name!r}, as another "
                "probe is; a probe is called after its file, so rename the file"
            )
        found[name] = probe
    return dict(sorted(found.items()))


def fingerprints(names: Sequence[str], locations: Sequence[str]) -> dict[str, str]:
    """A hash of what `load` gives, by name: 32 hexadecimal digits."""
    return {
        name: hashlib.blake2b(probe.model_dump_json().encode(), digest_size=16).hexdigest()
        for name, probe in load(names, locations).items()
    }


def load_shipped(name: str) -> ProbeFile:
    """A probe that comes with the package, a name of `SHIPPED`."""
    return _load_yaml(SHIPPED_DIR / f"{name}.yaml")


def load_file(location: str) -> tuple[str, ProbeFile]:
    """A researcher's probe, and its name, which is that of the file.

    Args:
        location: A YAML file as those in `SHIPPED_DIR`, or a JSONL file whose lines are items, each
            with the key `probe`: the shipped probe whose conditions it is asked in.

    Raises:
        ConfigError: The file is missing or wrong; one line for each problem.
    """
    path = Path(location).expanduser()
    if path.suffix == ".jsonl":
        return path.stem, _load_jsonl(path)
    if path.suffix in {".yaml", ".yml"}:
        return path.stem, _load_yaml(path)
    raise ConfigError(
        f"evaluation.probes.files: {path} has the suffix {path.suffix!r}; expected .yaml or .jsonl"
    )


def _load_yaml(path: Path) -> ProbeFile:
    text = _text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        repeated = list(_repeated_keys(root)) if root else []
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line}: not valid YAML: {error.problem}. Check indents, colons and quotes."
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}. Mend or remove it.") from None
    if repeated:
        raise ConfigError("\n".join(f"{path}:{problem}" for problem in repeated))
    return _checked(path, data, [])


def _load_jsonl(path: Path) -> ProbeFile:
    items, lines, probes = [], [], set()
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{where}: not JSON: {error}. Write one object a line.") from None
        probe = row.pop("probe", None) if isinstance(row, dict) else None
        if probe not in SHIPPED:
            raise ConfigError(
                f"{where}: expected an object whose key 'probe' is one of {', '.join(SHIPPED)}, "
                f"found {probe!r}. It says whose conditions the item is asked in."
            )
        items.append(row)
        lines.append(number)
        probes.add(str(probe))
    if len(probes) != 1:
        found = ", ".join(sorted(probes)) or "no lines"
        raise ConfigError(
            f"{path}: expected items of one probe, found {found}. Write a file for each."
        )
    shipped = load_shipped(probes.pop())
    shape = shipped.model_dump(exclude={"items", "title"})
    return _checked(
        path, {**shape, "title": f"{shipped.title}: {path.stem}", "items": items}, lines
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text: {error}. Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: expected a probe file, which cannot be read: {error.strerror}. Mend "
            "evaluation.probes.files."
        ) from None


def _repeated_keys(node: yaml.Node) -> Iterator[str]:
    """YAML would silently keep the last of them."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield (
                    f"{key.start_mark.line + 1}: expected each key once, found {key.value!r} "
                    "again. Remove one."
                )
            seen.add(str(key.value))
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        yield from _repeated_keys(child)


def _checked(path: Path, data: object, lines: list[int]) -> ProbeFile:
    """`lines`: of the items, where each is on a line of its own."""
    try:
        probe = ProbeFile.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{_place(problem['loc'], data, lines)}: {_explained(problem)}"
            for problem in error.errors(include_url=False)
        ]
    else:
        problems = [*_condition_problems(probe), *_item_problems(probe, lines)]
        if not problems:
            return probe
    more = [f"and {len(problems) - MAX_PROBLEMS} more problems"] * (len(problems) > MAX_PROBLEMS)
    raise ConfigError("\n".join(f"{path}: {text}" for text in [*problems[:MAX_PROBLEMS], *more]))


def _place(location: tuple[int | str, ...], data: Any, lines: list[int]) -> str:
    match location:
        case ("items", int(index), *rest):
            item = data["items"][index]
            name = item.get("id") if isinstance(item, dict) else None
            where = _item_name(index, name, lines)
        case (str(key), int(index), *rest):
            where = f"{key} {index + 1}"
        case _:
            rest, where = list(location), ""
    field = ".".join(str(step) for step in rest)
    return ", ".join(part for part in (where, f"field {field}" if field else "") if part) or "file"


def _item_name(index: int, name: object, lines: list[int]) -> str:
    where = f"line {lines[index]}" if lines else f"item {index + 1}"
    return f"{where} ({name!r})" if isinstance(name, str) else where


def _explained(problem: Any) -> str:
    found = problem["input"]
    shown = f"{found!r}"[:80]
    advice = {
        "missing": "Add the key.",
        "extra_forbidden": "Remove the key, or correct its name.",
        "string_type": "Put the value in quotes if it is meant as text.",
        "list_type": "Write a list, in brackets or with '- '.",
    }.get(problem["type"], "Mend it.")
    return f"{problem['msg']}, found {shown}. {advice}"


def _condition_problems(probe: ProbeFile) -> Iterator[str]:
    names = [condition.name for condition in probe.conditions]
    for condition in probe.conditions:
        if names.count(condition.name) > 1:
            yield f"condition {condition.name!r}: expected names that differ. Rename one."
        for measure in set(condition.measures) - set(MEASURES):
            yield (
                f"condition {condition.name!r}: unknown measure {measure!r}. Known: "
                f"{', '.join(MEASURES)}."
            )
        missing = {PLAIN, *condition.name.split("+")} - set(names)
        if "+" in condition.name and missing:
            yield (
                f"condition {condition.name!r}: an interaction needs the conditions "
                f"{', '.join(sorted(missing))} too. Add them, or rename it without '+'."
            )
        if len(condition.given_replies) >= len(condition.turns):
            yield (
                f"condition {condition.name!r}: {len(condition.given_replies)} replies are given "
                f"to {len(condition.turns)} turns, and the last reply is to be the model's own."
            )


def _item_problems(probe: ProbeFile, lines: list[int]) -> Iterator[str]:
    conditions = {condition.name: condition for condition in probe.conditions}
    seen: set[str] = set()
    for index, item in enumerate(probe.items):
        where = _item_name(index, item.id, lines)
        if item.id in seen:
            yield f"{where}: expected ids that differ. Rename one."
        seen.add(item.id)
        if unknown := set(item.conditions) - set(conditions):
            yield f"{where}: unknown conditions {sorted(unknown)}. Known: {', '.join(conditions)}."
            continue
        asked = [conditions[name] for name in item.conditions or conditions]
        places = set().union(*(condition.places for condition in asked))
        if missing := places - set(item.fields):
            yield f"{where}: expected the keys {sorted(missing)}, which conditions name. Add them."
        if unused := set(item.fields) - places:
            yield f"{where}: no condition names {sorted(unused)}. Remove or correct the keys."
        measures = {measure for condition in asked for measure in condition.measures}
        for key in sorted({_NEEDS[m] for m in measures & set(_NEEDS)}):
            if not getattr(item, key):
                yield f"{where}: expected {key!r}, which its measures compare with. Add it."
