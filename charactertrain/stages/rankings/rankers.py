"""The rankers by name: judges, the contrast, and the mean of several."""

from collections.abc import Sequence

from charactertrain import ranking
from charactertrain.config import RankingsSection
from charactertrain.runtime.sampling import Failure, Sampler, Score, ScoreRequest
from charactertrain.stages.rankings.comparisons import (
    Comparisons,
    Group,
    Matrix,
    Ranker,
    pair_matrix,
)
from charactertrain.stages.rankings.judges import JudgeRanker, ListwiseRanker, RatingRanker
from charactertrain.templates import (
    REFERENCE_VARIANT,
    plain_conversation,
    response_conversation,
)


def make_ranker(
    name: str,
    sampler: Sampler,
    settings: RankingsSection,
    *,
    placement: str,
    seed: int,
) -> Ranker:
    """The ranker of that name. `placement`: where responses are shown the character."""
    match name:
        case "contrast":
            return ContrastRanker(
                sampler, placement=placement, temperature=settings.contrast_temperature
            )
        case "judge":
            return JudgeRanker(sampler, settings, seed=seed)
        case "judge_listwise":
            return ListwiseRanker(sampler, settings, seed=seed)
        case "rating":
            return RatingRanker(sampler, num_questions=settings.num_questions)
        case "ensemble":
            members = [
                make_ranker(member, sampler, settings, placement=placement, seed=seed)
                for member in settings.ensemble
            ]
            return EnsembleRanker(members)
        case _:
            raise AssertionError(f"config knows no ranker {name!r}")


class ContrastRanker:
    """How much likelier the model finds a response when shown the trait, per token."""

    def __init__(self, sampler: Sampler, *, placement: str, temperature: float) -> None:
        """`temperature` in nats per token."""
        self._sampler, self._placement, self._temperature = sampler, placement, temperature

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """Two prefills per response, shared by all its pairs; halves are every other token."""
        scores = iter(self._sampler.score([r for group in groups for r in self._requests(group)]))
        results: list[Comparisons | Failure] = []
        for group in groups:
            pairs = [(next(scores), next(scores)) for _ in group.candidates]
            failure = next((s for pair in pairs for s in pair if isinstance(s, Failure)), None)
            results.append(failure or self._comparisons(group, pairs))
        return results

    def _comparisons(
        self, group: Group, scores: Sequence[tuple[Score | Failure, Score | Failure]]
    ) -> Comparisons:
        found = [(a, b) for a, b in scores if isinstance(a, Score) and isinstance(b, Score)]
        has_halves = all(len(shown.logprobs) > 1 for shown, _ in found)

        def matrix(start: int, step: int) -> Matrix:
            contrasts = [
                ranking.contrast_score(shown.logprobs[start::step], plain.logprobs[start::step])
                for shown, plain in found
            ]
            return pair_matrix(
                group,
                [
                    ranking.pair_probability_from_contrast(
                        contrasts[i], contrasts[j], temperature=self._temperature
                    )
                    for i, j in group.pairs
                ],
            )

        both = [score for pair in found for score in pair]
        return Comparisons(
            probabilities_KK=matrix(0, 1),
            halves=(matrix(0, 2), matrix(1, 2)) if has_halves else None,
            swap_consistency=None,
            prompt_tokens=sum(score.prompt_tokens for score in both),
            cached_tokens=sum(score.cached_tokens for score in both),
        )

    def _requests(self, group: Group) -> list[ScoreRequest]:
        shown = response_conversation(
            group.prompt, group.traits, variant=REFERENCE_VARIANT, placement=self._placement
        )
        plain = plain_conversation(group.prompt)
        return [
            ScoreRequest(candidate.response_id, conversation, candidate.token_ids)
            for candidate in group.candidates
            for conversation in (shown, plain)
        ]


class EnsembleRanker:
    """The mean of several rankers' probabilities."""

    def __init__(self, members: Sequence[Ranker]) -> None:
        """Ask each of `members`."""
        self._members = members

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """A group on which one member fails is a failure: the others' mean is another ranker."""
        results: list[Comparisons | Failure] = []
        for found in zip(*(member(groups) for member in self._members), strict=True):
            failure = next((each for each in found if isinstance(each, Failure)), None)
            results.append(failure or _mean([e for e in found if isinstance(e, Comparisons)]))
        return results


def _mean(found: Sequence[Comparisons]) -> Comparisons:
    halves = [each.halves for each in found if each.halves is not None]
    consistencies = [e.swap_consistency for e in found if e.swap_consistency is not None]
    return Comparisons(
        probabilities_KK=ranking.mean_probabilities([each.probabilities_KK for each in found]),
        halves=(
            ranking.mean_probabilities([first for first, _ in halves]),
            ranking.mean_probabilities([second for _, second in halves]),
        )
        if len(halves) == len(found)
        else None,
        swap_consistency=consistencies[0] if len(consistencies) == 1 else None,
        prompt_tokens=sum(each.prompt_tokens for each in found),
        cached_tokens=sum(each.cached_tokens for each in found),
    )
