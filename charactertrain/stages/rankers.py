"""Rankers behind one interface: each gives the probability that one response fits better.

All but the contrast ask a model with letters or digits and read their probabilities; none lets it
write. What a group's questions share comes first in them, so that engines compute it once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, TypeVar

from charactertrain import ranking
from charactertrain.config import RankerName, RankingsSection
from charactertrain.records import Trait
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sampler,
    Score,
    ScoreRequest,
)
from charactertrain.seeds import derive_seed
from charactertrain.templates import (
    JUDGE_CHOICES,
    LIST_CHOICES,
    RATING_CHOICES,
    REFERENCE_VARIANT,
    TIE_CHOICE,
    judge_conversation,
    listwise_conversation,
    plain_conversation,
    rating_conversation,
    response_conversation,
)

Matrix = list[list[float]]
Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Candidate:
    """A response to be compared with others."""

    response_id: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, and the traits that they are held against."""

    group_id: str
    prompt: str
    traits: tuple[Trait, ...]
    candidates: tuple[Candidate, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices of all pairs of candidates."""
        return list(combinations(range(len(self.candidates)), 2))


@dataclass(frozen=True)
class Comparisons:
    """What a ranker says of a group. Shapes: K candidates."""

    probabilities_KK: Matrix
    """[i][j]: that i fits better than j."""
    halves: tuple[Matrix, Matrix] | None
    """The same from each half of the evidence; None where it cannot be halved."""
    swap_consistency: float | None
    """Share of pairs whose winner is the same in both orders; None where order plays no part."""
    prompt_tokens: int
    """That the engine was given for it."""
    cached_tokens: int
    """Of them, found in the engine's prefix cache."""


class Ranker(Protocol):
    """Compares the responses of each group."""

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """One result per group; a group whose questions cannot be asked is a failure."""


def make_ranker(
    name: RankerName | str,
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
            return _matrix(
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
        # That the pair's own first response wins, whichever stood first.
        wins = []
        for question, answer in zip(questions, answers, strict=True):
            first_wins = (
                ranking.judge_probability_with_tie(*answer.logprobs)
                if self._has_ties
                else ranking.judge_probability(*answer.logprobs)
            )
            wins.append(1 - first_wins if question.is_swapped else first_wins)

        def mean_of(pair: int, order: bool | None, parity: int | None) -> float:
            """Over the questions on a pair, in one order or both, of one half or both."""
            drawn = self._is_drawn_swapped(group, pair)
            values = [
                win
                for question, win in zip(questions, wins, strict=True)
                if question.pair == pair
                and (order is None or question.is_swapped == order)
                and (parity is None or self._half(question, drawn) == parity)
            ]
            return sum(values) / len(values)

        pairs = range(len(group.pairs))
        has_halves = self._is_both or self._num_questions > 1
        consistency = None
        if self._is_both:
            # As `swap_consistency` wants them: the letter A in either order.
            both = [(mean_of(p, False, None), 1 - mean_of(p, True, None)) for p in pairs]
            consistency = ranking.swap_consistency(both)
        return Comparisons(
            probabilities_KK=_matrix(group, [mean_of(p, None, None) for p in pairs]),
            halves=(
                _matrix(group, [mean_of(p, None, 0) for p in pairs]),
                _matrix(group, [mean_of(p, None, 1) for p in pairs]),
            )
            if has_halves
            else None,
            swap_consistency=consistency,
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            cached_tokens=sum(answer.cached_tokens for answer in answers),
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

    def _half(self, question: _Question, drawn: bool) -> int:
        """Which half of the evidence a question belongs to: by wording, or by order."""
        if self._num_questions > 1:
            return question.wording % 2
        return int(question.is_swapped != drawn)


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
            return _matrix(
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


def _matrix(group: Group, probabilities: Sequence[float]) -> Matrix:
    """All pairs, from those of the first candidate of each pair over the second."""
    count = len(group.candidates)
    matrix = [[0.5] * count for _ in range(count)]
    for (i, j), probability in zip(group.pairs, probabilities, strict=True):
        matrix[i][j], matrix[j][i] = probability, 1 - probability
    return matrix
