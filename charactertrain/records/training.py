"""Rows that a policy is trained from: traits, prompts, responses, rankings and pairs."""

from dataclasses import dataclass
from typing import Annotated, Literal

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
class HeldOutReward:
    """What the preference model gives a response that it did not learn from."""

    response_id: str
    prompt_id: str
    trait_id: str
    rewards: tuple[float, ...]
    """Of each member of the ensemble, the model that the policy is trained on first."""


@dataclass(frozen=True)
class Reject:
    """A row that did not become one, and why. Nothing is dropped silently."""

    row_id: str
    trait_id: str
    stage: str
    reason: str
    detail: str
