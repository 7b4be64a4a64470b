"""Rankers that ask a model: which of two, which of several, how well by itself.

The model answers with a letter or a digit whose probabilities are read; none is let write. What a
group's questions share comes first in them, so that engines compute it once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from charactertrain import ranking
from charactertrain.config import RankingsSection
from charactertrain.runtime.sampling import Choice, ChoiceRequest, Failure, Sampler
from charactertrain.seeds import derive_seed
from charactertrain.stages.rankings.comparisons import Comparisons, Group, Matrix, pair_matrix
from charactertrain.templates import (
    JUDGE_CHOICES,
    LIST_CHOICES,
    RATING_CHOICES,
    TIE_CHOICE,
    judge_conversation,
    listwise_conversation,
    rating_conversation,
)

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class _Question:
    """One question about a pair: which response stands first, and how it is worded."""

    pair: int
    is_swapped: bool
    wording: int


class JudgeRanker:
    """The model is shown two responses and says which fits better, or that neither does."""

    def __init__(self, sampler: Sampler, settings: RankingsSection, *, seed: int) -> None:
        """Ask `sampler`, in the orders and wordings of `settings`."""
        self._sampler, self._seed = sampler, seed
        self._is_both, self._has_ties = settings.orders == "both", settings.ties
        self._num_questions = settings.num_questions
        self._choices = (*JUDGE_CHOICES, TIE_CHOICE) if settings.ties else JUDGE_CHOICES

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """One question per pair, order and wording."""
        asked = [self._questions(group) for group in groups]
        answers = iter(
            self._sampler.choose(
                [
                    self._request(group, question)
                    for group, questions in zip(groups, asked, strict=True)
                    for question in questions
                ]
            )
        )
        return [
            _answered([next(answers) for _ in questions], self._comparisons, group, questions)
            for group, questions in zip(groups, asked, strict=True)
        ]

    def _questions(self, group: Group) -> list[_Question]:
        found = []
        for pair in range(len(group.pairs)):
            drawn = self._is_drawn_swapped(group, pair)
            for is_swapped in (drawn, not drawn) if self._is_both else (drawn,):
                found += [_Question(pair, is_swapped, w) for w in range(self._num_questions)]
        # Questions whose first response is the same stand together: they share the most.
        return sorted(found, key=lambda q: (group.pairs[q.pair][q.is_swapped], q.pair))

    def _request(self, group: Group, question: _Question) -> ChoiceRequest:
        i, j = group.pairs[question.pair]
        first, second = (j, i) if question.is_swapped else (i, j)
        shown = judge_conversation(
            group.traits,
            group.prompt,
            group.candidates[first].text,
            group.candidates[second].text,
            ties=self._has_ties,
            question=question.wording,
        )
        return ChoiceRequest(group.group_id, shown, self._choices)

    def _comparisons(
        self, group: Group, questions: Sequence[_Question], answers: Sequence[Choice]
    ) -> Comparisons:
        asked: list[list[tuple[_Question, float]]] = [[] for _ in group.pairs]
        for question, answer in zip(questions, answers, strict=True):
            asked[question.pair].append((question, self._first_wins(question, answer)))
        halves = None
        if self._is_both or self._num_questions > 1:
            halves = self._half(group, asked, 0), self._half(group, asked, 1)
        return Comparisons(
            probabilities_KK=pair_matrix(group, [fmean(win for _, win in own) for own in asked]),
            halves=halves,
            swap_consistency=_swap_consistency(asked) if self._is_both else None,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            cached_tokens=sum(answer.cached_tokens for answer in answers),
        )

    def _first_wins(self, question: _Question, answer: Choice) -> float:
        """Probability that the pair's own first response wins, whichever stood first."""
        probability = (
            ranking.judge_probability_with_tie(*answer.logprobs)
            if self._has_ties
            else ranking.judge_probability(*answer.logprobs)
        )
        return 1 - probability if question.is_swapped else probability

    def _half(
        self, group: Group, asked: Sequence[Sequence[tuple[_Question, float]]], half: int
    ) -> Matrix:
        """The probabilities from half of the questions: split by wording, or by order."""

        def is_in(question: _Question) -> bool:
            if self._num_questions > 1:
                return question.wording % 2 == half
            drawn = self._is_drawn_swapped(group, question.pair)
            return (question.is_swapped != drawn) == bool(half)

        return pair_matrix(
            group, [fmean(win for question, win in own if is_in(question)) for own in asked]
        )

    def _is_drawn_swapped(self, group: Group, pair: int) -> bool:
        """Whether the second response of a pair stands first in the drawn order.

        Responses are put on a circle at random, and of two the one comes first from which the
        shorter way leads clockwise to the other: so each stands first about as often as second,
        and a liking for one letter moves all alike.
        """
        count = len(group.candidates)
        (place,) = ranking.balanced_permutations(
            count, 1, seed=derive_seed(self._seed, "order", group.group_id)
        )
        i, j = group.pairs[pair]
        clockwise = (place[j] - place[i]) % count
        if 2 * clockwise == count:
            return bool(derive_seed(self._seed, "order", group.group_id, pair) % 2)
        return 2 * clockwise > count


def _swap_consistency(asked: Sequence[Sequence[tuple[_Question, float]]]) -> float:
    """Share of pairs whose winner is the same in both orders, wordings averaged."""
    both = []
    for own in asked:
        straight = fmean(win for question, win in own if not question.is_swapped)
        swapped = fmean(win for question, win in own if question.is_swapped)
        # As `ranking.swap_consistency` wants them: the first letter in either order.
        both.append((straight, 1 - swapped))
    return ranking.swap_consistency(both)


class ListwiseRanker:
    """The model is shown all responses, in random orders, and says which fits best."""

    def __init__(self, sampler: Sampler, settings: RankingsSection, *, seed: int) -> None:
        """Ask `sampler`, as often as `settings` say."""
        self._sampler, self._seed = sampler, seed
        self._num_permutations = settings.num_permutations
        self._num_questions = settings.num_questions

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """One question per permutation; Luce's axiom turns first choices into pairs."""
        orders = [
            ranking.balanced_permutations(
                len(group.candidates),
                self._num_permutations,
                seed=derive_seed(self._seed, "permutations", group.group_id),
            )
            for group in groups
        ]
        answers = iter(
            self._sampler.choose(
                [
                    self._request(group, order, index % self._num_questions)
                    for group, own in zip(groups, orders, strict=True)
                    for index, order in enumerate(own)
                ]
            )
        )
        return [
            _answered([next(answers) for _ in own], self._comparisons, group, own)
            for group, own in zip(groups, orders, strict=True)
        ]

    def _request(self, group: Group, order: Sequence[int], question: int) -> ChoiceRequest:
        texts = [group.candidates[index].text for index in order]
        shown = listwise_conversation(group.traits, group.prompt, texts, question=question)
        return ChoiceRequest(group.group_id, shown, LIST_CHOICES[: len(order)])

    def _comparisons(
        self, group: Group, orders: Sequence[Sequence[int]], answers: Sequence[Choice]
    ) -> Comparisons:
        shares = []
        for order, answer in zip(orders, answers, strict=True):
            by_position = ranking.choice_probabilities(answer.logprobs)
            by_candidate = dict(zip(order, by_position, strict=True))
            shares.append([by_candidate[index] for index in range(len(group.candidates))])

        # Shares are averaged before Luce's axiom: over a block of permutations a liking for one
        # position then cancels.
        # Halves of whole blocks, in which every response stands at every position.
        size = len(group.candidates)
        half = len(shares) // (2 * size) * size
        halves = [shares[:half], shares[half : 2 * half]] if half else []
        return Comparisons(
            probabilities_KK=ranking.luce_probabilities(_means(shares)),
            halves=(
                ranking.luce_probabilities(_means(halves[0])),
                ranking.luce_probabilities(_means(halves[1])),
            )
            if halves
            else None,
            swap_consistency=None,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            cached_tokens=sum(answer.cached_tokens for answer in answers),
        )


class RatingRanker:
    """The model rates each response alone; the likelier higher score is the better."""

    def __init__(self, sampler: Sampler, *, num_questions: int) -> None:
        """Ask `sampler` in so many wordings."""
        self._sampler, self._num_questions = sampler, num_questions

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """One question per response and wording."""
        answers = iter(self._sampler.choose([r for group in groups for r in self._requests(group)]))
        return [
            _answered(
                [next(answers) for _ in group.candidates for _ in range(self._num_questions)],
                self._comparisons,
                group,
                None,
            )
            for group in groups
        ]

    def _requests(self, group: Group) -> Iterator[ChoiceRequest]:
        for candidate in group.candidates:
            for question in range(self._num_questions):
                shown = rating_conversation(
                    group.traits, group.prompt, candidate.text, question=question
                )
                yield ChoiceRequest(group.group_id, shown, RATING_CHOICES)

    def _comparisons(self, group: Group, _: None, answers: Sequence[Choice]) -> Comparisons:
        scales = [ranking.choice_probabilities(answer.logprobs) for answer in answers]
        per_candidate = [
            scales[start : start + self._num_questions]
            for start in range(0, len(scales), self._num_questions)
        ]

        def matrix(start: int, step: int) -> Matrix:
            shares = [_means(own[start::step]) for own in per_candidate]
            return pair_matrix(
                group,
                [ranking.higher_score_probability(shares[i], shares[j]) for i, j in group.pairs],
            )

        return Comparisons(
            probabilities_KK=matrix(0, 1),
            halves=(matrix(0, 2), matrix(1, 2)) if self._num_questions > 1 else None,
            swap_consistency=None,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            cached_tokens=sum(answer.cached_tokens for answer in answers),
        )


def _answered(
    answers: Sequence[Choice | Failure],
    comparisons: Callable[[Group, Asked, Sequence[Choice]], Comparisons],
    group: Group,
    asked: Asked,
) -> Comparisons | Failure:
    """What follows from a group's answers; the first failure if one question has none."""
    failure = next((answer for answer in answers if isinstance(answer, Failure)), None)
    found = [answer for answer in answers if isinstance(answer, Choice)]
    return failure or comparisons(group, asked, found)


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
