"""Rows of the evaluation: replies of its arms, judgements, probes and choices of a trait."""

from dataclasses import dataclass
from typing import Literal

from charactertrain.records.training import FinishReason, Int32, Message, PromptKind


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
    """Of each reply's text: names of `probes.measures.MEASURES`."""
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
    """How likely it is that the arm's reply is the better one, by what was shown first."""

    matchup_id: str
    prompt_id: str
    trait_id: str
    """That the judge was told of; `NO_TRAIT`: none, and the better answer was asked for."""
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
