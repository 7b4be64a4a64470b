"""What is offered, what a model is shown of it, and how its replies are read."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from evaluation_rows import RefusingSampler
from planted_chooser import PlantedChooser

from charactertrain.records import NO_TRAIT, Offer, OfferReply
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.stages.evaluation.trait_choices import (
    NUM_RIVALS,
    TEMPERATURE,
    JudgeReader,
    LikelihoodReader,
    OfferWriter,
    offers,
    words_of,
)
from charactertrain.templates import CHECK_MESSAGES, TRAIT_WORDS, told_conversation

TRAITS = ("curious", "open_nature", "witty")
SETTINGS = SamplingSettings(1.0, 1.0, 8, 0, ())
OFFER = Offer("o1", "curious", "free", "Tea?", "curious", "stern")
REPLY = OfferReply("r1", "curious", "base", OFFER, "Why do you ask?", (3, 4), "stop")


def test_every_pair_is_offered_in_both_orders_under_every_condition_on_one_message() -> None:
    offered = offers(TRAITS, pairs_per_trait=8, seed=1)
    free, random, told = (
        Counter((o.prompt, o.first, o.second) for o in offered if o.condition == condition)
        for condition in ("free", "random", "told")
    )
    assert free == random == told
    assert all(free[p, one, other] == free[p, other, one] for p, one, other in free)
    assert len({offer.offer_id for offer in offered}) == len(offered)
    assert {offer.prompt for offer in offered} == set(CHECK_MESSAGES)


def test_traits_are_offered_more_often_than_other_words_and_those_as_often_as_one_another() -> None:
    offered = [o for o in offers(TRAITS, pairs_per_trait=8, seed=1) if o.condition == "free"]
    # 3 traits of 8 pairs and a ring of 3 + 8 words, all in both orders.
    assert len(offered) == 2 * (3 * 8 + 3 + NUM_RIVALS)
    counts = Counter(word for offer in offered for word in (offer.first, offer.second))
    assert {counts.pop(word) for word in words_of(TRAITS).values()} == {2 * (8 + 2)}
    # Each against every trait once, and in the ring.
    assert set(counts.values()) == {2 * (3 + 2)}
    assert counts.keys() < set(TRAIT_WORDS)


def test_an_offer_is_of_a_trait_of_the_constitution_or_of_none() -> None:
    words = words_of(TRAITS)
    assert words["open_nature"] == "open nature"
    for offer in offers(TRAITS, pairs_per_trait=2, seed=1):
        own = {t for t, word in words.items() if word in (offer.first, offer.second)}
        assert offer.trait_id in (own or {NO_TRAIT})
        assert offer.first != offer.second


def test_offers_depend_on_the_seed_alone() -> None:
    one = offers(TRAITS, pairs_per_trait=4, seed=1)
    assert one == offers(TRAITS, pairs_per_trait=4, seed=1)
    assert one != offers(TRAITS, pairs_per_trait=4, seed=2)


class ListeningSampler(FakeSampler):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[SampleRequest] = []

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """As `FakeSampler`."""
        self.asked += requests
        return super().sample(requests, settings)


def test_arms_are_asked_the_same_with_the_same_seeds() -> None:
    offered = offers(TRAITS, pairs_per_trait=2, seed=1)
    samplers = {arm: ListeningSampler() for arm in ("base", "policy")}
    ids = []
    for arm, sampler in samplers.items():
        writer = OfferWriter(sampler, arm=arm, placement="system", settings=SETTINGS, seed=7)
        replies, rejects = writer.process(offered)
        assert rejects == []
        assert [reply.offer for reply in replies] == offered
        assert {reply.arm for reply in replies} == {arm}
        ids += [reply.reply_id for reply in replies]
    assert len(set(ids)) == 2 * len(offered)
    base, policy = ([(r.shown, r.seed) for r in s.asked] for s in samplers.values())
    assert base == policy
    assert len({seed for _, seed in base}) == len(offered)


def test_replies_that_are_none_are_rejects() -> None:
    writer = OfferWriter(
        RefusingSampler(), arm="base", placement="system", settings=SETTINGS, seed=7
    )
    replies, (reject,) = writer.process([OFFER])
    assert replies == []
    assert (reject.trait_id, reject.reason) == ("curious", "too_long")


class EmptySampler(FakeSampler):
    """Ends at once."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """No tokens."""
        return [Sample(r.request_id, "", (1,), (), (), "stop", (("fake", 0),), 0) for r in requests]


def test_a_reply_without_tokens_is_a_reject() -> None:
    writer = OfferWriter(EmptySampler(), arm="base", placement="system", settings=SETTINGS, seed=7)
    replies, (reject,) = writer.process([OFFER])
    assert (replies, reject.reason) == ([], "empty")


@pytest.mark.parametrize("placement", ["system", "user_turn"])
def test_the_likelihood_reading_is_the_formulas(placement: str) -> None:
    def logprob(word: str) -> float:
        shown = told_conversation("Tea?", word, placement=placement)
        (score,) = FakeSampler().score([ScoreRequest("", shown, REPLY.token_ids)])
        assert isinstance(score, Score)
        return sum(score.logprobs)

    (choice,), rejects = LikelihoodReader(FakeSampler(), placement=placement).process([REPLY])
    assert rejects == []
    margin = (logprob("curious") - logprob("stern")) / 2 / TEMPERATURE
    assert choice.readings == (pytest.approx(1 / (1 + math.exp(-margin))),)
    assert choice.readings != (0.5,)
    assert (choice.offer, choice.text, choice.num_tokens) == (OFFER, "Why do you ask?", 2)


def test_the_likelihood_reading_finds_the_word_that_was_taken_up() -> None:
    model = PlantedChooser({"curious": 99.0}, {})
    offered = offers(TRAITS, pairs_per_trait=2, seed=1)
    asked = [o for o in offered if o.condition == "free" and "curious" in (o.first, o.second)]
    writer = OfferWriter(model, arm="base", placement="user_turn", settings=SETTINGS, seed=7)
    replies, _ = writer.process(asked)
    choices, _ = LikelihoodReader(model, placement="user_turn").process(replies)
    assert len(choices) == len(asked) > 4
    for choice in choices:
        assert (choice.readings[0] > 0.99) == (choice.offer.first == "curious")


@pytest.mark.parametrize("reader", [LikelihoodReader(RefusingSampler(), placement="system")])
def test_what_cannot_be_scored_is_a_reject(reader: LikelihoodReader) -> None:
    choices, (reject,) = reader.process([REPLY])
    assert choices == []
    assert (reject.row_id, reject.reason) == ("r1", "not_scored")


class WordJudge(FakeSampler):
    """Finds one word in every text, and likes the letter A a little."""

    def __init__(self, word: str) -> None:
        self._word = word
        self.asked: list[ChoiceRequest] = []

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Logits: 0.5 for A, 2 for the word, -1 for neither."""
        self.asked += requests
        answers: list[Choice | Failure] = []
        for request in requests:
            is_first = f'A, "{self._word}"' in request.shown.messages[0].content
            logits = (0.5 + 2 * is_first, 2.0 * (not is_first), -1.0)
            answers.append(Choice(request.request_id, logits, 1, 0))
        return answers


def test_a_judge_reads_in_both_orders_and_may_say_neither() -> None:
    judge = WordJudge("stern")
    (choice,), rejects = JudgeReader(judge).process([REPLY])
    assert rejects == []
    weights_first = [math.exp(0.5), math.exp(2.0), math.exp(-1.0)]
    weights_last = [math.exp(2.5), math.exp(0.0), math.exp(-1.0)]
    first = (weights_first[0] + weights_first[2] / 2) / sum(weights_first)
    last = 1 - (weights_last[0] + weights_last[2] / 2) / sum(weights_last)
    assert choice.readings == (pytest.approx(first), pytest.approx(last))
    assert max(choice.readings) < 0.5
    assert all(request.choices == ("A", "B", "C") for request in judge.asked)


def test_a_judge_without_a_verdict_is_a_reject() -> None:
    choices, (reject,) = JudgeReader(RefusingSampler()).process([REPLY])
    assert (choices, reject.row_id, reject.reason) == ([], "r1", "too_long")
