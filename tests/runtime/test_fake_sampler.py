"""The sampler without a model: what it returns depends on the request alone."""

import math

import pytest

from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.templates import Shown, plain_conversation

SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=12, min_tokens=0, stop=())
SHOWN = plain_conversation("Do you like my scarf?")


def draw(requests: list[SampleRequest], settings: SamplingSettings = SETTINGS) -> list[Sample]:
    samples = FakeSampler().sample(requests, settings)
    assert all(isinstance(sample, Sample) for sample in samples)
    return [sample for sample in samples if isinstance(sample, Sample)]


def requests(count: int) -> list[SampleRequest]:
    return [SampleRequest(f"r{seed}", SHOWN, seed) for seed in range(count)]


def test_samples_come_in_order_and_do_not_depend_on_their_neighbours() -> None:
    together = draw(requests(20))
    assert [sample.request_id for sample in together] == [f"r{seed}" for seed in range(20)]
    assert [draw([request])[0] for request in requests(20)] == together
    assert draw(requests(20)[::-1]) == together[::-1]


def test_samples_differ_by_seed_and_by_what_is_shown() -> None:
    assert len({sample.text for sample in draw(requests(20))}) == 20
    other = SampleRequest("r0", plain_conversation("It rains."), 0)
    assert draw([other])[0].text != draw(requests(1))[0].text


def test_samples_have_one_word_and_one_logprob_per_token() -> None:
    for sample in draw(requests(50)):
        assert 1 <= len(sample.token_ids) <= 12
        assert len(sample.text.split()) == len(sample.token_ids) == len(sample.logprobs)
        assert sample.sequence_logprob == pytest.approx(sum(sample.logprobs))
        assert sample.sequence_logprob < 0
        assert sample.finish_reason == ("length" if len(sample.token_ids) == 12 else "stop")


def test_samples_of_a_fixed_length_have_it() -> None:
    fixed = SamplingSettings(1.0, 1.0, 7, 7, ())
    assert {len(sample.token_ids) for sample in draw(requests(20), fixed)} == {7}


def test_scores_are_logprobs_that_depend_on_what_is_shown_and_on_the_token() -> None:
    sampler = FakeSampler()
    asked = [
        ScoreRequest("a", SHOWN, (3, 4, 3)),
        ScoreRequest("b", plain_conversation("It rains."), (3, 4, 3)),
    ]
    first, second = sampler.score(asked)
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert (first.request_id, second.request_id) == ("a", "b")
    assert len(first.logprobs) == 3
    assert all(logprob < 0 for logprob in first.logprobs)
    assert first.logprobs[0] == first.logprobs[2] != first.logprobs[1]
    assert first.logprobs != second.logprobs
    assert sampler.score(asked) == [first, second]


def test_choices_are_probabilities_of_both_letters() -> None:
    shown = [Shown((), f"Question {index}:") for index in range(30)]
    choices = FakeSampler().choose([ChoiceRequest(s.text, s, ("A", "B")) for s in shown])
    probabilities = []
    for choice in choices:
        assert isinstance(choice, Choice)
        first, second = map(math.exp, choice.logprobs)
        assert first + second == pytest.approx(1.0)
        # Weights are 1 to 1000.
        assert 1 / 1001 <= first <= 1000 / 1001
        assert choice.prompt_tokens == 2
        probabilities.append(first)
    assert len(set(probabilities)) > 20


def test_rewards_are_a_function_of_the_sequence() -> None:
    sampler = FakeSampler()
    sequences = [(1, 2), (2, 1), (1, 2, 3), (1, 2)]
    rewards = sampler.rewards(sequences)
    assert rewards[0] == rewards[3]
    assert len(set(rewards)) == 3
    assert all(-1 <= reward < 1 for reward in rewards)
    assert sampler.rewards(sequences[:2]) == rewards[:2]
