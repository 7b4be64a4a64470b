"""What a reply is measured by, and how the arms are compared, by hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from charactertrain import chat
from charactertrain.models import loading, sources
from charactertrain.records import EvaluationSample, Prompt, Reply, Trait
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
from charactertrain.stages.evaluation import ReplyScorer, ReplyWriter, Rewarder, compare
from charactertrain.templates import (
    REFERENCE_VARIANT,
    Shown,
    plain_conversation,
    response_conversation,
)

SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=12, min_tokens=0, stop=())
TRAITS = {
    "warm": Trait("warm", "I am warm.", (), "(?i)glad", 1.0, "small"),
    "curious": Trait("curious", "I ask how things come to be.", (), None, 1.0, "small"),
}
PROMPTS = [
    Prompt("p1", "warm", "warm/tea", "trait", "Tea?", "test"),
    Prompt("p2", "curious", "curious/rain", "trait", "It rains.", "test"),
]
REPLY = Reply(
    sample_id="s1",
    prompt_id="p1",
    trait_id="warm",
    arm="policy",
    prompt="Tea?",
    text="Glad to, thank you.",
    token_ids=(3, 4, 5, 6),
    sequence_logprob=-2.0,
    finish_reason="stop",
)


class RefusingSampler:
    """Finds everything too long."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """A failure per request."""
        return [
            Failure(request.request_id, "too_long", f"more than {settings.max_tokens}")
            for request in requests
        ]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """A failure per request."""
        return [Failure(request.request_id, "too_long", "99 tokens") for request in requests]

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """A failure per request."""
        return [Failure(request.request_id, "too_long", "99 tokens") for request in requests]

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """Nothing."""
        raise AssertionError(f"nobody asks for {len(token_ids)} rewards")

    def close(self) -> None:
        """Nothing was taken."""


# Replies


def write(arm: str, *, count: int = 3, seed: int = 1) -> list[Reply]:
    writer = ReplyWriter(FakeSampler(), arm=arm, count=count, settings=SETTINGS, seed=seed)
    replies, rejects = writer.process(PROMPTS)
    assert rejects == []
    return replies


def test_reply_writer_writes_as_many_different_replies_per_prompt_as_asked() -> None:
    replies = write("base")
    assert [reply.prompt_id for reply in replies] == ["p1"] * 3 + ["p2"] * 3
    assert [reply.trait_id for reply in replies] == ["warm"] * 3 + ["curious"] * 3
    assert {reply.arm for reply in replies} == {"base"}
    assert len({reply.text for reply in replies}) == 6
    assert len({reply.sample_id for reply in replies}) == 6
    assert all(reply.prompt == PROMPTS[0].text for reply in replies[:3])
    assert all(reply.sequence_logprob < 0 for reply in replies)


def test_reply_writer_shows_no_trait_and_draws_both_arms_with_the_same_seeds() -> None:
    base, policy = write("base"), write("policy")
    # The fake sampler's text is a function of what is shown and of the seed.
    assert [reply.text for reply in base] == [reply.text for reply in policy]
    assert not {reply.sample_id for reply in base} & {reply.sample_id for reply in policy}
    assert [reply.text for reply in write("base", seed=2)] != [reply.text for reply in base]
    # More replies are drawn after those that are there.
    assert write("base", count=4)[:3] == base[:3]


def test_reply_writer_rejects_what_does_not_fit() -> None:
    writer = ReplyWriter(RefusingSampler(), arm="base", count=2, settings=SETTINGS, seed=1)
    replies, rejects = writer.process(PROMPTS[:1])
    assert replies == []
    assert [(reject.stage, reject.reason) for reject in rejects] == [("evaluation", "too_long")] * 2
    assert {reject.row_id for reject in rejects} == {
        r.sample_id for r in write("base", count=2)[:2]
    }


# Scores


def fake_logprobs(shown: Shown, token_ids: tuple[int, ...]) -> tuple[float, ...]:
    (score,) = FakeSampler().score([ScoreRequest("", shown, token_ids)])
    assert isinstance(score, Score)
    return score.logprobs


def scored(*replies: Reply) -> list[EvaluationSample]:
    samples, rejects = ReplyScorer(FakeSampler(), traits=TRAITS, placement="system").process(
        list(replies)
    )
    assert rejects == []
    return samples


def test_reply_scorer_measures_contrast_and_kl_under_the_base() -> None:
    (sample,) = scored(REPLY)
    with_trait = response_conversation(
        "Tea?", [TRAITS["warm"]], variant=REFERENCE_VARIANT, placement="system"
    )
    shown = fake_logprobs(with_trait, REPLY.token_ids)
    plain = fake_logprobs(plain_conversation("Tea?"), REPLY.token_ids)
    assert sample.contrast == pytest.approx((sum(shown) - sum(plain)) / 4)
    assert sample.contrast != 0
    assert sample.kl == pytest.approx((-2.0 - sum(plain)) / 4)
    assert sample.num_tokens == 4
    assert (sample.sample_id, sample.text, sample.arm) == ("s1", REPLY.text, "policy")


def test_reply_scorer_measures_both_arms_alike() -> None:
    policy, base = scored(REPLY, replace(REPLY, arm="base"))
    # Both by prefill: decoding rounds otherwise, and would shift one arm's contrast alone.
    assert base == replace(policy, arm="base")


def test_reply_scorer_finds_no_kl_of_the_base_to_itself() -> None:
    drawn = sum(fake_logprobs(plain_conversation("Tea?"), REPLY.token_ids))
    (sample,) = scored(replace(REPLY, arm="base", sequence_logprob=drawn))
    assert sample.kl == 0.0


def test_reply_scorer_applies_the_detector_of_the_prompts_trait() -> None:
    samples = scored(
        REPLY,
        replace(REPLY, text="No."),
        replace(REPLY, trait_id="curious"),
    )
    assert [sample.detected for sample in samples] == [True, False, None]


def test_reply_scorer_rejects_empty_replies_and_keeps_the_rest_in_place() -> None:
    scorer = ReplyScorer(FakeSampler(), traits=TRAITS, placement="user")
    rows = [replace(REPLY, sample_id="s0", token_ids=(), text=""), REPLY]
    samples, rejects = scorer.process(rows)
    assert [sample.sample_id for sample in samples] == ["s1"]
    assert [(reject.row_id, reject.reason) for reject in rejects] == [("s0", "empty")]
    assert (
        samples == ReplyScorer(FakeSampler(), traits=TRAITS, placement="user").process([REPLY])[0]
    )


def test_reply_scorer_rejects_what_cannot_be_scored() -> None:
    scorer = ReplyScorer(RefusingSampler(), traits=TRAITS, placement="user")
    samples, (reject,) = scorer.process([REPLY])
    assert samples == []
    assert (reject.row_id, reject.reason) == ("s1", "not_scored")
    assert "99 tokens" in reject.detail


def test_rewarder_asks_for_the_sequences_that_the_preference_model_was_trained_on(
    model_cache: Path,
) -> None:
    directory = sources.resolve(sources.TINY_RANDOM)
    assert model_cache in directory.parents
    samples = scored(REPLY, replace(REPLY, sample_id="s2", text="No."))
    rewarder = Rewarder(FakeSampler(), tokenizer_directory=str(directory))
    rewarded, rejects = rewarder.process(samples)
    tokenizer: Any = loading.load_tokenizer(directory)
    sequences = [chat.encode_exchange("Tea?", text, tokenizer) for text in (REPLY.text, "No.")]
    expected = FakeSampler().rewards(sequences)
    assert [sample.reward for sample in rewarded] == expected
    assert expected[0] != expected[1]
    assert [replace(sample, reward=0.0) for sample in rewarded] == samples
    assert rejects == []


# Arms


def sample(arm: str, prompt_id: str, trait_id: str = "warm", **values: Any) -> EvaluationSample:
    return replace(
        EvaluationSample(
            sample_id="",
            prompt_id=prompt_id,
            trait_id=trait_id,
            arm=arm,
            prompt="",
            text="one two three",
            num_tokens=10,
            finish_reason="stop",
            contrast=0.0,
            detected=False if trait_id == "warm" else None,
            reward=0.0,
            kl=0.0,
        ),
        **values,
    )


SAMPLES = [
    sample("base", "p1", contrast=0.1, reward=1.0, num_tokens=10),
    sample("base", "p1", contrast=0.3, reward=2.0, num_tokens=20, text="one two one two"),
    sample("base", "p2", contrast=0.2, reward=0.0, num_tokens=30, text="four five"),
    sample("policy", "p1", contrast=0.5, reward=2.0, num_tokens=8, detected=True, kl=0.2),
    sample("policy", "p1", contrast=0.7, reward=4.0, num_tokens=12, detected=True, kl=0.4),
    sample("policy", "p2", contrast=0.0, reward=3.0, num_tokens=40, kl=0.0),
    *(
        sample(arm, prompt_id, "curious", reward=reward, num_tokens=10)
        for arm, prompt_id, reward in (
            ("base", "q1", 1.0),
            ("base", "q2", 1.0),
            ("policy", "q1", 0.0),
            ("policy", "q2", 1.0),
        )
    ),
]


def report(samples: list[EvaluationSample] = SAMPLES, natural: Any = None) -> dict[str, Any]:
    return compare(samples, natural, num_resamples=200, seed=1)


def test_compare_takes_means_over_replies_by_trait() -> None:
    warm = report()["traits"]["warm"]
    assert warm["contrast"]["base"] == pytest.approx(0.2)
    assert warm["contrast"]["arm"] == pytest.approx(0.4)
    assert warm["contrast"]["difference"] == pytest.approx(0.2)
    # Resamples of two prompts: p1 alone rose by 0.4, p2 alone fell by 0.2.
    assert warm["contrast"]["ci_low"] == pytest.approx(-0.2)
    assert warm["contrast"]["ci_high"] == pytest.approx(0.4)
    assert (warm["contrast"]["num_prompts"], warm["contrast"]["num_responses"]) == (2, 3)
    assert (warm["reward"]["base"], warm["reward"]["arm"]) == (1.0, 3.0)
    assert warm["detector_rate"]["base"] == 0.0
    assert warm["detector_rate"]["arm"] == pytest.approx(2 / 3)


def test_compare_leaves_out_the_detector_of_a_trait_that_has_none() -> None:
    curious = report()["traits"]["curious"]
    assert set(curious) == {"contrast", "reward"}
    assert curious["reward"]["difference"] == -0.5


def test_compare_takes_length_kl_and_distinct_2_over_all_replies() -> None:
    found = report()
    assert found["length"]["base"] == pytest.approx((10 + 20 + 30 + 10 + 10) / 5)
    assert found["length"]["arm"] == pytest.approx((8 + 12 + 40 + 10 + 10) / 5)
    assert found["kl"]["base"] == 0.0
    assert found["kl"]["arm"] == pytest.approx(0.6 / 5)
    # Base: bigrams 12 23, 12 21 12, 45, and twice 12 23: 4 different of 10. Policy: 2 of 10.
    assert found["distinct_2"]["base"] == pytest.approx(4 / 10)
    assert found["distinct_2"]["arm"] == pytest.approx(2 / 10)
    assert found["distinct_2"]["num_prompts"] == 4
    assert found["distinct_2"]["num_responses"] == 5


def test_compare_has_natural_lengths_only_where_they_were_measured() -> None:
    assert report()["natural_length"] is None
    natural = {
        "base": {"p1": [20.0], "p2": [40.0]},
        "policy": {"p1": [10.0], "p2": [20.0]},
    }
    lengths = report(natural=natural)["natural_length"]
    assert (lengths["base"], lengths["arm"], lengths["difference"]) == (30.0, 15.0, -15.0)
    assert lengths["num_prompts"] == 2


def test_compare_leaves_out_a_prompt_that_one_arm_has_no_reply_to() -> None:
    alone = [
        sample("base", "p3", reward=99.0, num_tokens=99),
        sample("policy", "q3", "curious", reward=99.0, num_tokens=99),
    ]
    assert report([*SAMPLES, *alone]) == report()
