"""Which of two traits a model takes up: what it is offered, its replies, and how they are read."""

import random
from collections.abc import Sequence

from charactertrain import ranking
from charactertrain.records import NO_TRAIT, Offer, OfferCondition, OfferReply, Reject, TraitChoice
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.templates import (
    CHECK_MESSAGES,
    JUDGE_CHOICES,
    TIE_CHOICE,
    TRAIT_WORDS,
    offer_conversation,
    taken_up_conversation,
    told_conversation,
)

TEMPERATURE = 0.25
"""Nats per token: the difference in likelihood at which a reply is read as one of two words with a
probability of 0.73. As wide as that, differences between two words add up and can be taken off."""

NUM_RIVALS = 8
"""Words that traits are offered against. With 40 of them each has few choices, its rating and so
the mean of all swing: 3 traits of 32 pairs had intervals of 274 points to either side, and 122
with 8."""

_CONDITIONS: tuple[OfferCondition, ...] = ("free", "random", "told")


def words_of(trait_ids: Sequence[str]) -> dict[str, str]:
    """The word for each trait that a model is offered: its id, with spaces."""
    return {trait_id: trait_id.replace("_", " ") for trait_id in trait_ids}


def offers(trait_ids: Sequence[str], *, pairs_per_trait: int, seed: int) -> list[Offer]:
    """Every pair of words under all conditions and in both orders, the same for all arms.

    Each trait is offered in `pairs_per_trait` pairs against a few of the shipped words, which are
    dealt so that each comes up as often. Then all words that came up are offered around a ring,
    each against the next, so that every two are linked. Pairs take the messages in turn.

    Args:
        trait_ids: Of the constitution.
        pairs_per_trait: 2 or more.
        seed: Of the run.
    """
    rng = random.Random(derive_seed(seed, "trait choices"))
    traits = {word: trait_id for trait_id, word in words_of(trait_ids).items()}
    others = rng.sample([word for word in TRAIT_WORDS if word not in traits], NUM_RIVALS)
    dealt: list[str] = []
    while len(dealt) < pairs_per_trait * len(traits):
        dealt += rng.sample(others, len(others))
    rivals = iter(dealt)
    pairs = [(word, next(rivals)) for word in traits for _ in range(pairs_per_trait)]
    ring = sorted({word for pair in pairs for word in pair})
    rng.shuffle(ring)
    pairs += zip(ring, [*ring[1:], ring[0]], strict=True)
    messages = rng.sample(CHECK_MESSAGES, len(CHECK_MESSAGES))
    return [
        _offer(traits, condition, messages[number % len(messages)], order, number)
        for number, pair in enumerate(pairs)
        for condition in _CONDITIONS
        for order in (pair, pair[::-1])
    ]


def _offer(
    traits: dict[str, str],
    condition: OfferCondition,
    prompt: str,
    order: tuple[str, str],
    number: int,
) -> Offer:
    first, second = order
    return Offer(
        offer_id=stable_id("offer", number, condition, first, second),
        trait_id=traits.get(first) or traits.get(second) or NO_TRAIT,
        condition=condition,
        prompt=prompt,
        first=first,
        second=second,
    )


class OfferWriter:
    """Samples what one arm replies to offers."""

    def __init__(
        self, sampler: Sampler, *, arm: str, placement: str, settings: SamplingSettings, seed: int
    ) -> None:
        """`placement`: where the offer stands, as that of traits."""
        self._sampler, self._arm, self._placement = sampler, arm, placement
        self._settings, self._seed = settings, seed

    def process(self, rows: list[Offer]) -> tuple[list[OfferReply], list[Reject]]:
        """A reply to each offer; empty ones and offers that do not fit the context are rejects."""
        results = self._sampler.sample([self._request(row) for row in rows], self._settings)
        replies, rejects = [], []
        for offer, result in zip(rows, results, strict=True):
            if isinstance(result, Sample) and result.token_ids:
                replies.append(self._reply(offer, result))
                continue
            why = ("empty", "the reply has no tokens")
            if isinstance(result, Failure):
                why = (result.reason, result.detail)
            rejects.append(Reject(result.request_id, offer.trait_id, "evaluation", *why))
        return replies, rejects

    def _request(self, offer: Offer) -> SampleRequest:
        # The same seeds in all arms, so that they differ by their weights alone.
        return SampleRequest(
            stable_id(self._arm, offer.offer_id),
            offer_conversation(offer, placement=self._placement),
            derive_seed(self._seed, "trait choice", offer.offer_id),
        )

    def _reply(self, offer: Offer, sample: Sample) -> OfferReply:
        return OfferReply(
            reply_id=sample.request_id,
            trait_id=offer.trait_id,
            arm=self._arm,
            offer=offer,
            text=sample.text,
            token_ids=sample.token_ids,
            finish_reason=sample.finish_reason,
        )


class LikelihoodReader:
    """Reads a reply as the word under which the frozen base would rather have written it."""

    def __init__(self, sampler: Sampler, *, placement: str) -> None:
        """`sampler` holds the base's weights."""
        self._sampler, self._placement = sampler, placement

    def process(self, rows: list[OfferReply]) -> tuple[list[TraitChoice], list[Reject]]:
        """P(first) = sigma([log p(y given first) - log p(y given second)] / T / temperature)."""
        scores = iter(self._sampler.score([r for row in rows for r in self._requests(row)]))
        choices, rejects = [], []
        for row in rows:
            first, second = next(scores), next(scores)
            if not isinstance(first, Score) or not isinstance(second, Score):
                why = ("evaluation", "not_scored", f"{first} {second}"[:200])
                rejects.append(Reject(row.reply_id, row.trait_id, *why))
                continue
            length = len(row.token_ids)
            read = ranking.pair_probability_from_contrast(
                sum(first.logprobs) / length, sum(second.logprobs) / length, temperature=TEMPERATURE
            )
            choices.append(_choice(row, read))
        return choices, rejects

    def _requests(self, row: OfferReply) -> list[ScoreRequest]:
        shown = [
            told_conversation(row.offer.prompt, word, placement=self._placement)
            for word in (row.offer.first, row.offer.second)
        ]
        return [ScoreRequest(row.reply_id, each, row.token_ids) for each in shown]


class JudgeReader:
    """Asks a judge which word a reply shows more, with the words in both orders."""

    def __init__(self, sampler: Sampler) -> None:
        """`sampler` judges."""
        self._sampler = sampler

    def process(self, rows: list[OfferReply]) -> tuple[list[TraitChoice], list[Reject]]:
        """A choice per reply, and rejects for those without a verdict in both orders."""
        answers = iter(self._sampler.choose([r for row in rows for r in self._requests(row)]))
        choices, rejects = [], []
        for row in rows:
            given = [next(answers), next(answers)]
            failures = [answer for answer in given if isinstance(answer, Failure)]
            if failures:
                why = ("evaluation", failures[0].reason, failures[0].detail)
                rejects.append(Reject(row.reply_id, row.trait_id, *why))
                continue
            first, last = (
                ranking.judge_verdict_with_tie(*answer.logprobs)
                for answer in given
                if isinstance(answer, Choice)
            )
            choices.append(_choice(row, first, 1 - last))
        return choices, rejects

    def _requests(self, row: OfferReply) -> list[ChoiceRequest]:
        offer = row.offer
        return [
            ChoiceRequest(
                row.reply_id,
                taken_up_conversation(offer.prompt, row.text, *order),
                (*JUDGE_CHOICES, TIE_CHOICE),
            )
            for order in ((offer.first, offer.second), (offer.second, offer.first))
        ]


def _choice(row: OfferReply, *readings: float) -> TraitChoice:
    return TraitChoice(
        reply_id=row.reply_id,
        trait_id=row.trait_id,
        arm=row.arm,
        offer=row.offer,
        text=row.text,
        num_tokens=len(row.token_ids),
        finish_reason=row.finish_reason,
        readings=readings,
    )
