"""What reviewers' blind answers come to: agreement with the ranker, with oneself, with others."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from charactertrain.records import ReviewEvent
from charactertrain.review.picking import MODEL
from charactertrain.reviews import VOTES
from charactertrain.statistics.agreement import Agreement, agreement, quadratic_weights
from charactertrain.statistics.bootstrap import Interval, cluster_bootstrap_mean, values_by_cluster

NUM_RESAMPLES = 1000
MIN_PROMPTS = 10
"""Below it an interval says less than it seems to: that of two equal answers has no width."""
_SEED = 1
_WEIGHTS = quadratic_weights(3)
"""Of the ordered answers: first, tie, second."""

Rated = list[tuple[str, Sequence[int]]]
Probability = Callable[[ReviewEvent], float | None]
"""The ranker's, that the first response of an event is the better; None where it has none."""


@dataclass(frozen=True)
class Row:
    """One line of the agreement tables."""

    subject: str
    num_items: int
    """Pairs that two judged, or one judged twice."""
    found: Agreement


@dataclass(frozen=True)
class NamingRow:
    """How often people could tell which trait a response shows."""

    variant: str
    right: Interval | None
    num_named: int
    num_unsure: int


@dataclass(frozen=True)
class Tally:
    """All that the agreement page shows."""

    with_ranker: tuple[Row, ...]
    """Of pairs drawn at random; first of all reviewers together."""
    picked: tuple[Row, ...]
    """With the ranker too, of pairs that were picked because they are hard."""
    by_trait: tuple[Row, ...]
    with_oneself: tuple[Row, ...]
    between: tuple[Row, ...]
    num_verdicts: int
    undecided: dict[str, int]
    """Blind answers that are no vote, by answer."""
    naming: tuple[NamingRow, ...]


def blind_verdicts(events: Iterable[ReviewEvent], reviewer: str | None = None) -> list[ReviewEvent]:
    """Blind verdicts that their reviewer did not withdraw, oldest first."""
    kept: dict[str, ReviewEvent] = {}
    latest: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for event in events:
        if event.kind != "verdict" or reviewer not in (None, event.reviewer):
            continue
        words = latest[event.reviewer, event.first_id, event.second_id]
        if event.answer != "withdrawn":
            words.append(event.event_id)
            kept[event.event_id] = event
        elif words:
            kept.pop(words.pop())
    return [event for event in kept.values() if event.left_id]


def tally(events: Sequence[ReviewEvent], probability: Probability) -> Tally:
    """The numbers of the agreement page; the same events give the same."""
    blind = blind_verdicts(events)
    decided = [event for event in blind if event.answer in VOTES]
    first_words = _first_words(decided)
    drawn = [event for event in first_words if event.picked_by == "random"]
    reviewers = sorted({event.reviewer for event in blind})
    return Tally(
        with_ranker=(
            _with_ranker("everyone", drawn, probability),
            *_by("reviewer", drawn, probability, reviewers if len(reviewers) > 1 else ()),
        ),
        picked=_by("picked_by", first_words, probability, ("uncertain", "rankers", MODEL)),
        by_trait=_by("trait_id", drawn, probability, sorted({e.trait_id for e in drawn})),
        with_oneself=tuple(_with_oneself(name, decided) for name in reviewers),
        between=_between(first_words, reviewers),
        num_verdicts=len(blind),
        undecided={
            answer: sum(event.answer == answer for event in blind)
            for answer in ("neither", "unsure")
        },
        naming=_naming(events),
    )


def _first_words(events: Iterable[ReviewEvent]) -> list[ReviewEvent]:
    """Each reviewer's first on each pair: a pair counts once, in whatever windows it was open."""
    found: dict[tuple[str, str, str], ReviewEvent] = {}
    for event in events:
        found.setdefault((event.reviewer, event.first_id, event.second_id), event)
    return list(found.values())


def _category(vote: float) -> int:
    return {1.0: 0, 0.5: 1, 0.0: 2}[vote]


def _ranked_category(probability: float) -> int:
    return 1 if probability == 0.5 else 2 * int(probability < 0.5)


def _by(
    name: str, events: Sequence[ReviewEvent], probability: Probability, values: Iterable[str]
) -> tuple[Row, ...]:
    return tuple(
        _with_ranker(value, [e for e in events if getattr(e, name) == value], probability)
        for value in values
    )


def _with_ranker(subject: str, events: Sequence[ReviewEvent], probability: Probability) -> Row:
    rated: Rated = []
    for event in events:
        ranked = probability(event)
        if ranked is not None:
            vote = _category(VOTES[event.answer])
            rated.append((event.prompt_id, (vote, _ranked_category(ranked))))
    return _row(subject, rated)


def _with_oneself(reviewer: str, events: Sequence[ReviewEvent]) -> Row:
    answers: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.reviewer == reviewer:
            key = (event.prompt_id, event.first_id, event.second_id)
            answers[key].append(_category(VOTES[event.answer]))
    twice: Rated = [(key[0], found[:2]) for key, found in answers.items() if len(found) > 1]
    return _row(reviewer, twice)


def _between(events: Sequence[ReviewEvent], reviewers: Sequence[str]) -> tuple[Row, ...]:
    """Of all reviewers; None where there is one."""
    if len(reviewers) < 2:
        return ()
    answers: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for event in events:
        key = (event.prompt_id, event.first_id, event.second_id)
        answers[key].setdefault(event.reviewer, _category(VOTES[event.answer]))
    rated: Rated = [
        (key[0], [found[name] for name in sorted(found)]) for key, found in answers.items()
    ]
    row = _row(", ".join(reviewers), rated)
    if len(reviewers) > 2:
        # Cohen's kappa is of two raters, each in a place of its own.
        row = replace(row, found=replace(row.found, kappa=None))
    return (row,)


def _row(subject: str, rated: Rated) -> Row:
    found = Agreement(None, None, None)
    if len({prompt_id for prompt_id, chosen in rated if len(chosen) > 1}) >= MIN_PROMPTS:
        found = agreement(rated, _WEIGHTS, num_resamples=NUM_RESAMPLES, seed=_SEED)
    return Row(subject, sum(len(chosen) > 1 for _, chosen in rated), found)


def _naming(events: Iterable[ReviewEvent]) -> tuple[NamingRow, ...]:
    """By how the response was written; the truth is the trait that it was written for."""
    named: dict[str, list[tuple[str, float]]] = defaultdict(list)
    unsure: dict[str, int] = defaultdict(int)
    for event in events:
        if event.kind != "naming":
            continue
        # A response written without the character is told right as one that shows none.
        truth = "none" if event.variant == "none" else event.trait_id
        if event.answer == "unsure":
            unsure[event.variant] += 1
        else:
            named[event.variant].append((event.prompt_id, float(event.answer == truth)))
    rows = []
    for variant in sorted({*named, *unsure}):
        values = [value for _, value in named[variant]]
        by_prompt = values_by_cluster(values, [prompt for prompt, _ in named[variant]])
        right = None
        if len(by_prompt) >= MIN_PROMPTS:
            right = cluster_bootstrap_mean(by_prompt, num_resamples=NUM_RESAMPLES, seed=_SEED)
        rows.append(NamingRow(variant, right, len(values), unsure[variant]))
    return tuple(rows)
