"""Which replies are judged against one another, and what a judge is asked."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from evaluation_rows import REPLY, TRAITS, RefusingSampler

from charactertrain.records import NO_TRAIT, EvaluationSample, Matchup
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import Choice, ChoiceRequest, Failure
from charactertrain.stages.evaluation.reply_judge import ReplyJudge, matchups, quality_matchups
from charactertrain.stages.evaluation.reply_scores import ReplyScorer


def samples(arm: str, prompt_ids: Sequence[str], num_tokens: int = 4) -> list[EvaluationSample]:
    rows = [
        replace(REPLY, sample_id=f"{arm}-{p}-{i}", prompt_id=p, arm=arm, text=f"{arm} {p} {i}")
        for p in prompt_ids
        for i in range(2)
    ]
    found, _ = ReplyScorer(FakeSampler(), traits=TRAITS, placement="system").process(rows)
    return [replace(sample, num_tokens=num_tokens) for sample in found]


def test_matchups_are_of_first_replies_to_the_same_prompts_as_far_as_arms_have_them() -> None:
    rows = [*samples("base", "abcd"), *samples("policy", "abcd", 7), *samples("other", "abc")]
    found = matchups(rows, prompts_per_trait=2)
    by_arm = {
        arm: [m.prompt_id for m in found if m.arm == arm] for arm in ("policy", "other", "base")
    }
    assert (len(by_arm["policy"]), len(by_arm["other"]), by_arm["base"]) == (2, 2, [])
    assert "d" not in by_arm["other"]
    one = next(m for m in found if m.arm == "policy")
    assert one.base_text == f"base {one.prompt_id} 0"
    assert one.arm_text == f"policy {one.prompt_id} 0"
    assert one.length_difference == 3
    every = matchups(rows, prompts_per_trait=9)
    assert {m.prompt_id for m in every if m.arm == "policy"} == set("abcd")
    assert {m.prompt_id for m in every if m.arm == "other"} == set("abc")
    # The arm that has them all is asked about the same prompts, whichever others there are.
    alone = matchups([r for r in rows if r.arm != "other"], prompts_per_trait=2)
    assert [m.prompt_id for m in alone] == by_arm["policy"]


def test_quality_matchups_are_over_the_prompts_of_all_traits() -> None:
    warm = [*samples("base", "abc"), *samples("policy", "abc"), *samples("other", "b")]
    rows = [*warm, *(replace(s, trait_id="curious", prompt_id=s.prompt_id + "2") for s in warm)]
    found = quality_matchups(rows, num_prompts=4)
    assert {matchup.trait_id for matchup in found} == {NO_TRAIT}
    of_policy = [m.prompt_id for m in found if m.arm == "policy"]
    assert len(set(of_policy)) == 4
    assert {m.prompt_id for m in found if m.arm == "other"} == {"b", "b2"}
    every = quality_matchups(rows, num_prompts=9)
    assert [m.prompt_id for m in every if m.arm == "policy"][:4] == of_policy
    # A pair that is judged by its trait as well is another question.
    by_trait = {m.matchup_id for m in matchups(rows, prompts_per_trait=9)}
    assert by_trait.isdisjoint(m.matchup_id for m in every)


MATCHUP = Matchup("m1", "p1", "warm", "policy", "Tea?", "A base reply.", "An arm's reply.", 1)


class LetterSampler(FakeSampler):
    """Prefers a text wherever it is shown, and the letter A a little."""

    def __init__(self, preferred: str, strength: float) -> None:
        self.preferred, self.strength = preferred, strength
        self.asked: list[ChoiceRequest] = []

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Logits: 0.5 for A, and `strength` for the preferred text."""
        self.asked += requests
        answers: list[Choice | Failure] = []
        for request in requests:
            text = request.shown.messages[0].content
            is_first = text.index("An arm's reply.") < text.index("A base reply.")
            arm = is_first == (self.preferred == "arm")
            first = 0.5 + self.strength * (1 if arm else -1)
            answers.append(
                Choice(request.request_id, (first, 0.0, -1.0)[: len(request.choices)], 1, 0)
            )
        return answers


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_judgements_are_of_the_arm_in_both_orders() -> None:
    sampler = LetterSampler("arm", 2.0)
    (found,), rejects = ReplyJudge(sampler, traits=TRAITS, ties=False).process([MATCHUP])
    assert rejects == []
    assert found.arm_first == pytest.approx(sigmoid(2.5))
    assert found.arm_second == pytest.approx(1 - sigmoid(-1.5))
    (against,), _ = ReplyJudge(LetterSampler("base", 2.0), traits=TRAITS, ties=False).process(
        [MATCHUP]
    )
    assert against.arm_first == pytest.approx(sigmoid(-1.5))
    assert against.arm_second == pytest.approx(1 - sigmoid(2.5))
    assert (found.length_difference, found.trait_id, found.arm) == (1, "warm", "policy")
    assert all(TRAITS["warm"].statement in r.shown.messages[0].content for r in sampler.asked)
    assert all("policy" not in r.shown.messages[0].content for r in sampler.asked)


def test_a_judge_of_quality_is_told_no_trait() -> None:
    sampler = LetterSampler("arm", 2.0)
    row = replace(MATCHUP, trait_id=NO_TRAIT)
    (found,), _ = ReplyJudge(sampler, traits=TRAITS, ties=False).process([row])
    assert (found.trait_id, found.arm_first) == (NO_TRAIT, pytest.approx(sigmoid(2.5)))
    for request in sampler.asked:
        text = request.shown.messages[0].content
        assert "better answer to the message" in text
        assert not any(trait.statement in text for trait in TRAITS.values())
        assert "character" not in text


def test_a_tie_is_half_a_win_for_each() -> None:
    (found,), _ = ReplyJudge(LetterSampler("arm", 0.0), traits=TRAITS, ties=True).process([MATCHUP])
    weights = [math.exp(0.5), 1.0, math.exp(-1.0)]
    first = (weights[0] + weights[2] / 2) / sum(weights)
    assert found.arm_first == pytest.approx(first)
    assert found.arm_second == pytest.approx(1 - first)


def test_a_tie_that_is_likeliest_is_no_verdict_for_either() -> None:
    class Undecided(FakeSampler):
        def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
            """P(A) = 0.011, P(B) = 0.009, P(tie) = 0.98."""
            logprobs = tuple(math.log(p) for p in (0.011, 0.009, 0.98))
            return [Choice(request.request_id, logprobs, 1, 0) for request in requests]

    (found,), _ = ReplyJudge(Undecided(), traits=TRAITS, ties=True).process([MATCHUP])
    assert (found.arm_first, found.arm_second) == (0.5, 0.5)


def test_a_matchup_without_any_verdict_is_kept_and_its_questions_are_rejects() -> None:
    (found,), rejects = ReplyJudge(RefusingSampler(), traits=TRAITS, ties=False).process([MATCHUP])
    assert (found.arm_first, found.arm_second) == (None, None)
    assert [(reject.row_id, reject.reason) for reject in rejects] == [("m1", "too_long")] * 2


class OneOrderSampler(FakeSampler):
    """Has no verdict where the base's reply is shown first."""

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """A verdict for the first of two."""
        first, second = requests
        return [Choice(first.request_id, (0.0, 0.0), 1, 0), Failure(second.request_id, "long", "")]


def test_a_verdict_in_one_order_alone_is_kept_as_such() -> None:
    (found,), (reject,) = ReplyJudge(OneOrderSampler(), traits=TRAITS, ties=False).process(
        [MATCHUP]
    )
    assert (found.arm_first, found.arm_second) == (0.5, None)
    assert reject.reason == "long"
