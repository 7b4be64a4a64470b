"""What a reply is measured by."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_rows import REPLY, TRAITS, RefusingSampler

from charactertrain import chat
from charactertrain.models import loading, sources
from charactertrain.records import EvaluationSample, Reply
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import Score, ScoreRequest
from charactertrain.stages.evaluation.reply_scores import ReplyScorer, RewardColumn, Rewarder
from charactertrain.templates import (
    REFERENCE_VARIANT,
    Shown,
    plain_conversation,
    response_conversation,
)


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


@pytest.mark.parametrize("column", ["reward", "gold_reward"])
def test_rewarder_asks_for_the_sequences_that_the_preference_model_was_trained_on(
    column: RewardColumn, model_cache: Path
) -> None:
    directory = sources.resolve(sources.TINY_RANDOM)
    assert model_cache in directory.parents
    samples = scored(REPLY, replace(REPLY, sample_id="s2", text="No."))
    rewarder = Rewarder(FakeSampler(), tokenizer_directory=str(directory), column=column)
    rewarded, rejects = rewarder.process(samples)
    tokenizer: Any = loading.load_tokenizer(directory)
    sequences = [chat.encode_exchange("Tea?", text, tokenizer) for text in (REPLY.text, "No.")]
    expected = FakeSampler().rewards(sequences)
    assert [getattr(sample, column) for sample in rewarded] == expected
    assert expected[0] != expected[1]
    assert [replace(sample, reward=0.0, gold_reward=None) for sample in rewarded] == samples
    assert rejects == []
