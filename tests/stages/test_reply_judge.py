"""Which replies are judged against one another, and what a judge is asked."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from evaluation_rows import REPLY, TRAITS, RefusingSampler

from charactertrain.records import EvaluationSample, Matchup
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import Choice, ChoiceRequest, Failure
from charactertrain.stages.reply_judge import ReplyJudge, matchups
from charactertrain.stages.reply_scores import ReplyScorer


def samples(arm: str, prompt_ids: Sequence[str], num_tokens: int = 4) -> list[EvaluationSample]:
    rows = [
        replace(REPLY, sample_id=f"{arm}-{p}-{i}", prompt_id=p, arm=arm, text=f"{arm} {p} {i}")
        for p in prompt_ids
        for i in range(2)
    ]
    found, _ = ReplyScorer(FakeSampler(), traits=TRAITS, placement="system").process(rows)
    return [replace(sample, num_tokens=num_tokens) for sample in found]


def test_matchups_are_of_the_first_replies_of_every_arm_to_the_same_prompts() -> None:
    rows = [*samples("base", "abcd"), *samples("policy", "abcd", 7), *samples("other", "abc")]
    found = matchups(rows, prompts_per_trait=2)
    assert len(found) == 4
    assert {match.arm for match in found} == {"policy", "other"}
    # Not d, which one arm has no reply to.
    chosen = {match.prompt_id for match in found}
    assert len(chosen) == 2
    assert "d" not in chosen
    (policy,) = [m for m in found if m.arm == "policy" and m.prompt_id == min(chosen)]
    assert policy.base_text == f"base {min(chosen)} 0"
    assert policy.arm_text == f"policy {min(chosen)} 0"
    assert policy.length_difference == 3
    assert matchups(rows[::-1], prompts_per_trait=9) != []
    assert {m.prompt_id for m in matchups(rows, prompts_per_trait=9)} == set("abc")


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


def test_a_tie_is_half_a_win_for_each() -> None:
    (found,), _ = ReplyJudge(LetterSampler("arm", 0.0), traits=TRAITS, ties=True).process([MATCHUP])
    weights = [math.exp(0.5), 1.0, math.exp(-1.0)]
    first = (weights[0] + weights[2] / 2) / sum(weights)
    assert found.arm_first == pytest.approx(first)
    assert found.arm_second == pytest.approx(1 - first)


def test_a_matchup_without_any_verdict_is_a_reject() -> None:
    judgements, (reject,) = ReplyJudge(RefusingSampler(), traits=TRAITS, ties=False).process(
        [MATCHUP]
    )
    assert judgements == []
    assert (reject.row_id, reject.reason) == ("m1", "too_long")


class OneOrderSampler(FakeSampler):
    """Has no verdict where the base's reply is shown first."""

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """A verdict for the first of two."""
        first, second = requests
        return [Choice(first.request_id, (0.0, 0.0), 1, 0), Failure(second.request_id, "long", "")]


def test_a_verdict_in_one_order_alone_is_kept_as_such() -> None:
    (found,), _ = ReplyJudge(OneOrderSampler(), traits=TRAITS, ties=False).process([MATCHUP])
    assert (found.arm_first, found.arm_second) == (0.5, None)
