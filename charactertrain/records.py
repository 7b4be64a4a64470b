"""The row types that flow between stages: one frozen dataclass each, and its Arrow schema.

`schema(Row)` is derived from the dataclass, so that the two cannot disagree.
"""

import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa

Split = Literal["train", "validation", "test"]
"""Splits are made by scenario family: a family's prompts are all in one split."""

FinishReason = Literal["stop", "length"]

PromptKind = Literal["trait", "identity", "values", "disagreement", "everyday", "general"]
"""What a message is about: the trait itself, the assistant, a question of value, a point of
dispute, a request in which the trait shows lightly, or one where it should not show at all."""

NO_TRAIT = "general"
"""The trait id of general prompts, for which no trait is at stake; no trait may have it."""

Int32 = Annotated[int, pa.int32()]
Float32 = Annotated[float, pa.float32()]
"""Token ids and log-probabilities: half the bytes of Arrow's defaults, and as engines give them."""


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
class Facet:
    """A situation in which a trait matters: one family of prompts, in one split."""

    trait_id: str
    """`NO_TRAIT` where the kind is general."""
    kind: PromptKind
    facet: str
    family: str
    split: Split
    source: Literal["constitution", "model", "shipped"]
    """Who named it."""


@dataclass(frozen=True)
class Brief:
    """What one message is to be like; an axis that the model is not told of is empty."""

    prompt_id: str
    persona: str
    style: str
    length: str


@dataclass(frozen=True)
class PromptCall:
    """One call of the model, for one or several messages on one facet."""

    call_id: str
    facet: Facet
    language: str
    """ISO 639-1."""
    briefs: tuple[Brief, ...]


@dataclass(frozen=True)
class Prompt:
    """A message that a person might send, for which a trait matters."""

    prompt_id: str
    trait_id: str
    """`NO_TRAIT` where the kind is general."""
    family: str
    """Scenario cluster; the unit of the split."""
    kind: PromptKind
    text: str
    split: Split
    facet: str = ""
    persona: str = ""
    style: str = ""
    length: str = ""
    """What the model was asked for; empty where it was not told."""
    language: str = ""
    """ISO 639-1; empty where it is not known."""
    source: Literal["model", "file"] = "model"
    """Written by the model, or brought by the researcher."""


@dataclass(frozen=True)
class Draft(Prompt):
    """A prompt that passed the filters of its own, before near-duplicates are removed."""

    band_keys: tuple[Int32, ...] = ()
    """Of its MinHash signature (`near_duplicates`)."""


@dataclass(frozen=True)
class Probe:
    """A response whose truth is known: it was or was not written with the trait shown."""

    probe_id: str
    trait_id: str
    prompt: str
    variant: str
    text: str
    token_ids: tuple[Int32, ...]
    contrast: float
    """Nats per token."""


@dataclass(frozen=True)
class Response:
    """One sampled response to a prompt."""

    response_id: str
    prompt_id: str
    trait_id: str
    family: str
    """The prompt's."""
    split: Split
    prompt: str
    """The prompt's text."""
    variant: str
    """How plainly the character was shown when it was written: a name of `templates.VARIANTS`."""
    phrasing: int
    """Which of the variant's wordings was used; 0 where the character was not shown."""
    text: str
    token_ids: tuple[Int32, ...]
    logprobs: tuple[Float32, ...]
    """Per token under the sampler as prompted, in nats."""
    sequence_logprob: float
    """Their sum."""
    finish_reason: FinishReason


@dataclass(frozen=True)
class Opinion:
    """What another ranker says of a prompt's responses."""

    ranker: str
    same_winner: float | None
    """Share of the pairs that both decide in which both prefer the same; None if there is none."""


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
    num_tokens: tuple[Int32, ...]
    """Length of each response, in the order of `response_ids`."""
    method: str
    swap_consistency: float | None
    """Share of pairs whose winner is the same in both orders; None where order plays no part."""
    cyclic_triads: float | None
    """Share of triads whose preferences go in a circle; None without a decided triad."""
    split_half: float | None
    """Kendall's tau of the utilities from either half of the evidence; None without halves."""
    opinions: tuple[Opinion, ...]
    """Of other rankers, on the prompts on which they were asked."""
    prompt_tokens: int
    """That engines were given for it."""
    cached_tokens: int
    """Of them, found in a prefix cache."""


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one prompt and how likely the first is the better."""

    pair_id: str
    prompt_id: str
    trait_id: str
    """`NO_TRAIT` where the comparison is of quality alone."""
    family: str
    """Of the prompt."""
    split: Split
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    probability: float
    """P(chosen preferred to rejected), 0.5 to 1."""
    weight: float
    """So that the pairs of one prompt sum to the trait's weight."""
    margin: float
    """In logits, by which chosen is to be ahead; 0 for ours."""
    chosen_id: str
    rejected_id: str
    chosen_variant: str
    """A name of `templates.VARIANTS`, or `file`."""
    rejected_variant: str
    chosen_tokens: int | None
    """As sampled; None where the pair came from a file."""
    rejected_tokens: int | None


@dataclass(frozen=True)
class Reply:
    """A response of one arm to a held-out prompt."""

    sample_id: str
    prompt_id: str
    trait_id: str
    kind: PromptKind
    """The prompt's."""
    arm: str
    prompt: str
    text: str
    token_ids: tuple[Int32, ...]
    sequence_logprob: float
    """Under the arm's own model, in nats."""
    finish_reason: FinishReason


@dataclass(frozen=True)
class EvaluationSample:
    """A reply with its measures."""

    sample_id: str
    prompt_id: str
    trait_id: str
    kind: PromptKind
    """The prompt's."""
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
    gold_reward: float | None
    """The gold model's; None where the run has none."""
    kl: float
    """(1/T) [log pi(y|x) - log pi_base(y|x)] in nats per token: k1 estimate.

    For the base: by how much drawing and scoring differ, near 0.
    """


@dataclass(frozen=True)
class Script:
    """One conversation that an arm is put through: a probe in one of its conditions."""

    script_id: str
    probe: str
    condition: str
    """`plain` is the one that the probe's others are compared with."""
    cluster: str
    """What is resampled: the prompt or item that conditions share."""
    trait_id: str
    """`NO_TRAIT` where no trait is at stake."""
    system: str
    """Empty for none."""
    turns: tuple[str, ...]
    """The user's, in order."""
    given_replies: tuple[str, ...]
    """In place of the arm's own to the first turns."""
    measures: tuple[str, ...]
    """Of each reply's text: names of `probe_measures.MEASURES`."""
    accepted: tuple[str, ...]
    """Right answers, where there is a truth."""
    mistaken: tuple[str, ...]
    """A wrong one that the user names."""


@dataclass(frozen=True)
class ScriptReply:
    """A reply of one arm to one turn of a script, by one measure of its text."""

    sample_id: str
    script_id: str
    probe: str
    condition: str
    cluster: str
    trait_id: str
    """That is measured; `NO_TRAIT` where none is at stake."""
    arm: str
    turn: int
    """0 for the first; replies that were given count."""
    messages: tuple[Message, ...]
    """The conversation before it."""
    text: str
    num_tokens: int
    finish_reason: FinishReason
    contrast: float | None
    """Under the frozen base, nats per token; None where no trait is at stake."""
    detected: bool | None
    """Whether the trait's detector matched; None where there is none."""
    measure: str
    """What `score` is; empty where the text itself is not measured."""
    score: float | None
    """0 to 1."""


@dataclass(frozen=True)
class ScriptDraft(ScriptReply):
    """A reply that was written and is not yet scored under the base."""

    token_ids: tuple[Int32, ...]


@dataclass(frozen=True)
class Matchup:
    """The base's reply and another arm's to one prompt, to be judged blind to whose is which."""

    matchup_id: str
    prompt_id: str
    trait_id: str
    arm: str
    prompt: str
    base_text: str
    arm_text: str
    length_difference: int
    """Tokens of the arm's reply less those of the base's."""


@dataclass(frozen=True)
class Judgement:
    """How likely it is that the arm's reply fits the trait better, by what was shown first."""

    matchup_id: str
    prompt_id: str
    trait_id: str
    arm: str
    arm_first: float | None
    """With the arm's reply shown first; None where the judge gave no verdict."""
    arm_second: float | None
    """With the base's shown first."""
    length_difference: int


OfferCondition = Literal["free", "random", "told"]
"""How a trait is taken up: as the model would rather, by chance, or as it is told (the first)."""


@dataclass(frozen=True)
class Offer:
    """Two words for traits that a model may take up one of, and the message that it answers."""

    offer_id: str
    trait_id: str
    """Whose word is one of the two; `NO_TRAIT` where neither is a trait of the constitution."""
    condition: OfferCondition
    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class OfferReply:
    """What one arm replied to an offer."""

    reply_id: str
    trait_id: str
    arm: str
    offer: Offer
    text: str
    token_ids: tuple[Int32, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class TraitChoice:
    """Which of the two words a reply to an offer took up."""

    reply_id: str
    trait_id: str
    arm: str
    offer: Offer
    text: str
    num_tokens: int
    finish_reason: FinishReason
    readings: tuple[float, ...]
    """How likely it is that it was the first: one number by likelihood; two by a judge, which is
    given the first word first and then last."""


@dataclass(frozen=True)
class Reject:
    """A row that did not become one, and why. Nothing is dropped silently."""

    row_id: str
    trait_id: str
    stage: str
    reason: str
    detail: str


ReviewKind = Literal[
    "verdict",
    "naming",
    "drop_response",
    "restore_response",
    "drop_prompt",
    "restore_prompt",
    "wording",
]


@dataclass(frozen=True)
class ReviewEvent:
    """What a person said in the review page. Never changed: a later one may stand against it."""

    event_id: str
    at: str
    """UTC, ISO 8601."""
    reviewer: str
    kind: ReviewKind
    trait_id: str
    prompt_id: str
    """Empty where a trait's wording is edited."""
    first_id: str
    """Of a verdict's two responses the one with the lesser id; else the response, if any."""
    second_id: str
    """Of a verdict; empty otherwise."""
    first_checksum: str
    """`reviews.text_checksum` of the response that was seen; of the prompt, where it is dropped."""
    second_checksum: str
    answer: str
    """verdict: `first`, `second`, `tie`, `neither`, `unsure` or `withdrawn`. naming: a trait's id,
    `none` or `unsure`. wording: the new statement. Empty otherwise."""
    note: str
    """In the reviewer's words; the reason of what is dropped."""
    left_id: str
    """The response that stood on the left of a blind comparison; empty where it was not blind."""
    picked_by: str
    """How the item was chosen: a name of `review.picking.WAYS`, or `browsing`."""
    variant: str
    """Of a naming: how the response was written. Empty otherwise."""


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
    if origin is Annotated:
        return arguments[1], False
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
    return typing.get_type_hints(row_type, include_extras=True)


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
    found = list(rows)
    arrow_schema = schema(row_type)
    # By column: a dictionary per row costs more than a data stage's own work on it.
    columns = [
        pa.array([_arrow_value(getattr(row, column.name)) for row in found], column.type)
        for column in arrow_schema
    ]
    return pa.Table.from_arrays(columns, schema=arrow_schema)


def _arrow_value(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return [_arrow_value(item) for item in value]
    return value


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """Records from an Arrow table that has the record type's schema."""
    hints: dict[str, Any] = _hints(row_type)  # type: ignore[arg-type]  # a class is hashable
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
