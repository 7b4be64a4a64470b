"""The row types that flow between stages: one frozen dataclass each, and its Arrow schema.

`schema(Row)` is derived from the dataclass, so that the two cannot disagree.
"""

import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar

import pyarrow as pa

Split = Literal["train", "validation", "test"]
"""Splits are made by scenario family: a family's prompts are all in one split."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, in the form that `datasets` and TRL read."""

    role: str
    content: str


@dataclass(frozen=True)
class Trait:
    """A character trait: a nudge, never a rule."""

    trait_id: str
    statement: str
    """First person, as the researcher wrote it."""
    facets: tuple[str, ...]
    """Situations in which the trait matters; one scenario family each."""
    detector: str | None
    """Regular expression of a judge-free measure, or None."""
    weight: float
    source: str
    """The constitution's name."""


@dataclass(frozen=True)
class Prompt:
    """A message that a person might send, for which a trait matters."""

    prompt_id: str
    trait_id: str
    family: str
    """Scenario cluster; the unit of the split."""
    kind: Literal["trait", "general"]
    text: str
    split: Split


@dataclass(frozen=True)
class PromptSlot:
    """A message to be written: the plan that gives prompts their coverage."""

    slot_id: str
    trait_id: str
    facet: str
    family: str
    split: Split


@dataclass(frozen=True)
class Probe:
    """A response whose truth is known: it was or was not written with the trait shown."""

    probe_id: str
    trait_id: str
    prompt: str
    variant: str
    text: str
    token_ids: tuple[int, ...]
    contrast: float
    """Nats per token."""


@dataclass(frozen=True)
class Response:
    """One sampled response to a prompt."""

    response_id: str
    prompt_id: str
    trait_id: str
    split: Split
    prompt: str
    """The prompt's text."""
    variant: str
    """How the character was shown when it was written: a name of `templates.VARIANTS`."""
    text: str
    token_ids: tuple[int, ...]
    sequence_logprob: float
    """Sum over the response's tokens under the sampler as prompted, in nats."""
    finish_reason: FinishReason


@dataclass(frozen=True)
class Ranking:
    """A prompt's responses in the order of fit to the trait."""

    prompt_id: str
    trait_id: str
    split: Split
    response_ids: tuple[str, ...]
    """Best first."""
    utilities: tuple[float, ...]
    """Bradley-Terry utilities in the order of `response_ids`, mean zero, logits."""
    pair_probabilities: tuple[float, ...]
    """P(i preferred to j) for i < j in the order of `response_ids`, row by row."""
    method: str
    swap_consistency: float | None
    """Share of pairs whose winner is the same in both orders; None where order plays no part."""


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt and how likely the first is the better."""

    pair_id: str
    prompt_id: str
    trait_id: str
    split: Split
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    probability: float
    """P(chosen preferred to rejected), 0.5 to 1."""
    weight: float
    """So that the pairs of one prompt sum to the trait's weight."""
    chosen_id: str
    rejected_id: str
    chosen_variant: str
    rejected_variant: str
    chosen_tokens: int
    rejected_tokens: int


@dataclass(frozen=True)
class Reply:
    """A response of one arm to a held-out prompt, the trait not shown."""

    sample_id: str
    prompt_id: str
    trait_id: str
    arm: str
    prompt: str
    text: str
    token_ids: tuple[int, ...]
    sequence_logprob: float
    """Under the arm's own model, in nats."""
    finish_reason: FinishReason


@dataclass(frozen=True)
class EvaluationSample:
    """A reply with its measures."""

    sample_id: str
    prompt_id: str
    trait_id: str
    arm: str
    prompt: str
    text: str
    num_tokens: int
    finish_reason: FinishReason
    contrast: float
    """Under the frozen base, nats per token."""
    detected: bool | None
    """Whether the trait's detector matched; None where the trait has none."""
    reward: float
    """The preference model's scalar."""
    kl: float
    """(1/T) [log pi(y|x) - log pi_base(y|x)] in nats per token: k1 estimate.

    For the base: by how much drawing and scoring differ, near 0.
    """


@dataclass(frozen=True)
class Reject:
    """A row that did not become one, and why. Nothing is dropped silently."""

    row_id: str
    stage: str
    reason: str
    detail: str


Row = TypeVar("Row")

_SCALARS: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


def _arrow_type(annotation: object) -> tuple[pa.DataType, bool]:
    """The Arrow type of an annotation and whether it may be null."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Literal:
        return pa.string(), False
    if origin is tuple:
        inner, _ = _arrow_type(arguments[0])
        return pa.list_(inner), False
    if origin in (types.UnionType, typing.Union):
        (inner_annotation,) = [a for a in arguments if a is not type(None)]
        return _arrow_type(inner_annotation)[0], True
    assert isinstance(annotation, type), f"no Arrow type for {annotation}"
    if is_dataclass(annotation):
        return pa.struct(list(schema(annotation))), False
    return _SCALARS[annotation], False


@cache
def _hints(row_type: type) -> dict[str, Any]:
    return typing.get_type_hints(row_type)


def schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a record type."""
    hints = _hints(row_type)
    columns = []
    for field in fields(row_type):
        arrow_type, nullable = _arrow_type(hints[field.name])
        columns.append(pa.field(field.name, arrow_type, nullable=nullable))
    return pa.schema(columns)


def to_table(rows: Iterable[Any], row_type: type) -> pa.Table:
    """Records as an Arrow table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=schema(row_type))


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """Records from an Arrow table that has the record type's schema."""
    hints = typing.get_type_hints(row_type)
    return [row_type(**_python_values(values, hints)) for values in table.to_pylist()]


def _python_values(values: dict[str, object], hints: dict[str, Any]) -> dict[str, Any]:
    return {name: _python_value(value, hints[name]) for name, value in values.items()}


def _python_value(value: object, annotation: object) -> object:
    if isinstance(value, list):
        inner = typing.get_args(annotation)[0]
        return tuple(_python_value(item, inner) for item in value)
    if isinstance(value, dict):
        assert isinstance(annotation, type), f"a struct column is a record, not {annotation}"
        return annotation(**_python_values(value, _hints(annotation)))
    return value
