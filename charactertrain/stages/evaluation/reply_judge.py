"""Which of two replies is the better one, by a judge that does not know whose they are.

By a trait that the judge is told of, or, where it is told of none, as an answer to the message.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from charactertrain import ranking
from charactertrain.records import (
    NO_TRAIT,
    EvaluationSample,
    Judgement,
    Matchup,
    Reject,
    Trait,
)
from charactertrain.runtime.sampling import Choice, ChoiceRequest, Failure, Sampler
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.templates import JUDGE_CHOICES, TIE_CHOICE, judge_conversation

_Pair = tuple[EvaluationSample, EvaluationSample]


def matchups(samples: Sequence[EvaluationSample], *, prompts_per_trait: int) -> list[Matchup]:
    """The base's first reply to each chosen prompt against every other arm's first reply.

    For each arm and trait the first prompts by a hash of their ids, of those that it and the base
    replied to: the same for all arms that replied to the same.
    """
    by_arm_and_trait: dict[tuple[str, str], list[_Pair]] = defaultdict(list)
    for base, other in _first_replies(samples):
        by_arm_and_trait[other.arm, other.trait_id].append((base, other))
    return [
        _matchup(base, other, trait_id)
        for (_, trait_id), pairs in by_arm_and_trait.items()
        for base, other in sorted(pairs, key=_place)[:prompts_per_trait]
    ]


def quality_matchups(samples: Sequence[EvaluationSample], *, num_prompts: int) -> list[Matchup]:
    """The same for each arm over the prompts of all traits together, of no trait."""
    by_arm: dict[str, list[_Pair]] = defaultdict(list)
    for base, other in _first_replies(samples):
        by_arm[other.arm].append((base, other))
    return [
        _matchup(base, other, NO_TRAIT)
        for pairs in by_arm.values()
        for base, other in sorted(pairs, key=_place)[:num_prompts]
    ]


def _first_replies(samples: Sequence[EvaluationSample]) -> list[_Pair]:
    """The base's and another arm's, for every arm and prompt that both replied to."""
    first: dict[tuple[str, str], EvaluationSample] = {}
    for sample in samples:
        first.setdefault((sample.arm, sample.prompt_id), sample)
    return [
        (first["base", prompt_id], other)
        for (arm, prompt_id), other in first.items()
        if arm != "base" and ("base", prompt_id) in first
    ]


def _place(pair: _Pair) -> int:
    return derive_seed("judged", pair[0].prompt_id)


def _matchup(base: EvaluationSample, other: EvaluationSample, trait_id: str) -> Matchup:
    return Matchup(
        matchup_id=stable_id(base.sample_id, other.sample_id, trait_id),
        prompt_id=base.prompt_id,
        trait_id=trait_id,
        arm=other.arm,
        prompt=base.prompt,
        base_text=base.text,
        arm_text=other.text,
        length_difference=other.num_tokens - base.num_tokens,
    )


class ReplyJudge:
    """Asks the judge about each matchup in both orders."""

    def __init__(self, sampler: Sampler, *, traits: Mapping[str, Trait], ties: bool) -> None:
        """`sampler` judges; with `ties` a third letter says that neither is better."""
        self._sampler, self._traits, self._has_ties = sampler, traits, ties
        self._choices = (*JUDGE_CHOICES, TIE_CHOICE) if ties else JUDGE_CHOICES

    def process(self, rows: list[Matchup]) -> tuple[list[Judgement], list[Reject]]:
        """A judgement per matchup, and rejects for questions without a verdict."""
        answers = iter(self._sampler.choose([r for row in rows for r in self._requests(row)]))
        judgements, rejects = [], []
        for row in rows:
            first, second = next(answers), next(answers)
            rejects += [
                Reject(row.matchup_id, row.trait_id, "evaluation", answer.reason, answer.detail)
                for answer in (first, second)
                if isinstance(answer, Failure)
            ]
            probability = self._first_wins(second)
            judgements.append(
                Judgement(
                    matchup_id=row.matchup_id,
                    prompt_id=row.prompt_id,
                    trait_id=row.trait_id,
                    arm=row.arm,
                    arm_first=self._first_wins(first),
                    arm_second=None if probability is None else 1 - probability,
                    length_difference=row.length_difference,
                )
            )
        return judgements, rejects

    def _requests(self, row: Matchup) -> list[ChoiceRequest]:
        orders = ((row.arm_text, row.base_text), (row.base_text, row.arm_text))
        traits = [] if row.trait_id == NO_TRAIT else [self._traits[row.trait_id]]
        return [
            ChoiceRequest(
                row.matchup_id,
                judge_conversation(traits, row.prompt, *order, ties=self._has_ties, question=0),
                self._choices,
            )
            for order in orders
        ]

    def _first_wins(self, answer: Choice | Failure) -> float | None:
        """Probability that the reply shown first is better; None where there is no verdict."""
        if isinstance(answer, Failure):
            return None
        if self._has_ties:
            return ranking.judge_verdict_with_tie(*answer.logprobs)
        return ranking.judge_probability(*answer.logprobs)
