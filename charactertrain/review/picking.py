"""What a reviewer is shown next: some at random, some where a verdict would change the most.

Numbers of agreement are honest only for what was drawn at random, so every item keeps how it was
picked. The order of each way is the same for all reviewers, so that they come to judge the same.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from charactertrain.records import ReviewEvent
from charactertrain.review.tables import Table
from charactertrain.seeds import derive_seed

MODEL = "preference_model"
WAYS = ("random", "uncertain", "rankers", MODEL, "repeat")
"""Drawn at random; where the ranker is least certain; where rankers disagree; where the preference
model disagrees with the ranking; judged before."""

_TURNS = ("random", "uncertain", "random", "rankers")
"""Half at random, since only those say how far people and ranker agree."""
_TURNS_WITH_MODEL = ("random", MODEL, "random", "uncertain", "random", MODEL, "random", "rankers")
"""Where there is a preference model: what it did not take from the ranking is what a verdict
settles, of the label or of the model."""
_REPEAT_EVERY = 6
"""Of a reviewer's turns one is a repeat, so that agreement with oneself has numbers too."""
_REPEAT_AFTER = 5
"""Verdicts between a pair and its repeat, so that it is not answered from memory."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pick:
    """Two responses to be compared."""

    prompt_id: str
    first_id: str
    """The lesser of the two ids."""
    second_id: str
    way: str


class PairIndex:
    """Every pair of a table of rankings, and the order in which each way takes them."""

    def __init__(self, rankings: Table, rewards: Table, *, seed: int) -> None:
        """Reads the tables' short columns; the same tables and seed give the same orders.

        Args:
            rankings: Of the run.
            rewards: `HeldOutReward` of its preference model; without rows where there is none.
            seed: Of all orders.
        """
        self._ids = rankings.column("response_ids")
        self._prompts = rankings.column("prompt_id")
        self._seed = seed
        self.traits: list[str] = rankings.column("trait_id").to_pylist()
        sizes = np.array([len(ids) for ids in self._ids], np.int64)
        self._rows, self._first, self._second = _pairs(sizes)
        probabilities = rankings.column("pair_probabilities").to_pylist()
        self._probabilities = np.array([p for row in probabilities for p in row], np.float64)
        disagreements = [_disagreement(o) for o in rankings.column("opinions").to_pylist()]
        self._disagreement = np.array(disagreements, np.float64)[self._rows]
        self._surprise = self._surprises(rewards)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def has_model(self) -> bool:
        """Whether a preference model has rewards of any pair."""
        return not bool(np.isnan(self._surprise).all())

    def _surprises(self, rewards: Table) -> Floats:
        """How far the preference model is from the ranking of each pair; NaN where it learnt it.

        The root of the mean over members m of (sigmoid(r_m(first) - r_m(second)) - p)^2, with the
        ranking's p: how far their mean is from it and how far they are from one another, together.
        """
        found = np.full(len(self), np.nan)
        if not len(rewards):
            return found
        columns = (rewards.column(name).to_pylist() for name in ("response_id", "rewards"))
        by_response = dict(zip(*columns, strict=True))
        for prompt_id in dict.fromkeys(rewards.column("prompt_id").to_pylist()):
            row = self._row_of.get(prompt_id)
            known = [] if row is None else [by_response.get(i) for i in self._ids[row].as_py()]
            # Pairs of a file, and rankings that a response of was dropped from, have not all.
            if row is None or None in known:
                continue
            start, stop = np.searchsorted(self._rows, [row, row + 1])
            rewards_KM = np.array(known, np.float64)
            gained_M = rewards_KM[self._first[start:stop]] - rewards_KM[self._second[start:stop]]
            apart = expit(gained_M) - self._probabilities[start:stop, None]
            found[start:stop] = np.sqrt((apart**2).mean(axis=1))
        return found

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {prompt_id: row for row, prompt_id in enumerate(self._prompts.to_pylist())}

    def probability(self, prompt_id: str, first_id: str, second_id: str) -> float | None:
        """The ranker's, that the first is the better; None where the pair is not ranked."""
        row = self._row_of.get(prompt_id)
        if row is None:
            return None
        ids = self._ids[row].as_py()
        start = int(np.searchsorted(self._rows, row))
        for number, pair in enumerate(combinations(ids, 2)):
            if set(pair) == {first_id, second_id}:
                found = float(self._probabilities[start + number])
                return found if pair[0] == first_id else 1 - found
        return None

    @cached_property
    def _orders(self) -> dict[str, Ints]:
        shuffled = np.random.default_rng(self._seed).permutation(len(self))
        by_certainty = np.abs(self._probabilities - 0.5)[shuffled]
        by_opinion = -self._disagreement[shuffled]
        known = ~np.isnan(by_opinion)
        by_surprise = -self._surprise[shuffled]
        scored = ~np.isnan(by_surprise)
        return {
            "random": shuffled,
            # Equal values stay in the order in which they were shuffled.
            "uncertain": shuffled[np.argsort(by_certainty, kind="stable")],
            "rankers": shuffled[known][np.argsort(by_opinion[known], kind="stable")],
            MODEL: shuffled[scored][np.argsort(by_surprise[scored], kind="stable")],
        }

    def next_pair(self, way: str, trait_id: str, left_out: Collection[str]) -> Pick | None:
        """The first pair of a trait, in the order of a way, that nothing in `left_out` names.

        Args:
            way: One of `WAYS`; `repeat` is not an order.
            trait_id: Of its ranking.
            left_out: Prompt ids, response ids, and pairs as `pair_name` names them.
        """
        for number in self._orders[way]:
            row = int(self._rows[number])
            if self.traits[row] != trait_id:
                continue
            ids = self._ids[row]
            pair = (ids[int(self._first[number])].as_py(), ids[int(self._second[number])].as_py())
            first, second = sorted(pair)
            prompt_id = self._prompts[row].as_py()
            if {first, second, prompt_id, pair_name(first, second)}.isdisjoint(left_out):
                return Pick(prompt_id, first, second, way)
        return None


def _pairs(sizes: Ints) -> tuple[Ints, Ints, Ints]:
    """Ranking, and first and second place in it, of every pair in the order of its columns."""
    places = {size: np.array(list(combinations(range(size), 2)), np.int64) for size in set(sizes)}
    parts = [places[size].reshape(-1, 2) for size in sizes]
    rows = np.repeat(np.arange(len(sizes)), [len(part) for part in parts])
    both = np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
    return rows, both[:, 0], both[:, 1]


def _disagreement(opinions: Sequence[dict[str, float | None]]) -> float:
    shares = [o["same_winner"] for o in opinions if o["same_winner"] is not None]
    return 1 - sum(shares) / len(shares) if shares else float("nan")


def pair_name(first_id: str, second_id: str) -> str:
    """Names a pair among ids."""
    return f"{first_id} {second_id}"


def pick(
    index: PairIndex,
    history: Sequence[ReviewEvent],
    reviewer: str,
    *,
    trait_ids: Sequence[str],
    left_out: Collection[str],
) -> Pick | None:
    """What a reviewer is to judge next; None where nothing is left.

    Traits are taken in turn, the one with the fewest verdicts first. The same history gives the
    same pick.

    Args:
        index: The pairs.
        history: The reviewer's blind verdicts so far, oldest first.
        reviewer: Name; it draws the repeats.
        trait_ids: To choose from.
        left_out: Prompt and response ids that were dropped.
    """
    turn = len(history)
    if turn % _REPEAT_EVERY == _REPEAT_EVERY - 1:
        again = _repeat(history, reviewer, set(trait_ids), left_out)
        if again is not None:
            return again
    seen = {pair_name(event.first_id, event.second_id) for event in history}
    counts = Counter(event.trait_id for event in history)
    turns = _TURNS_WITH_MODEL if index.has_model else _TURNS
    preferred = turns[turn % len(turns)]
    for trait_id in sorted(trait_ids, key=lambda each: (counts[each], trait_ids.index(each))):
        for way in dict.fromkeys((preferred, "random")):
            found = index.next_pair(way, trait_id, {*left_out, *seen})
            if found is not None:
                return found
    return None


def _repeat(
    history: Sequence[ReviewEvent],
    reviewer: str,
    trait_ids: Collection[str],
    left_out: Collection[str],
) -> Pick | None:
    """A pair that the reviewer judged once, some time ago."""
    times = Counter((event.first_id, event.second_id) for event in history)
    old = [
        event
        for event in history[:-_REPEAT_AFTER]
        if times[event.first_id, event.second_id] == 1
        and event.trait_id in trait_ids
        and {event.prompt_id, event.first_id, event.second_id}.isdisjoint(left_out)
    ]
    if not old:
        return None
    event = old[derive_seed("repeat", reviewer, len(history)) % len(old)]
    return Pick(event.prompt_id, event.first_id, event.second_id, "repeat")


def is_first_on_the_left(reviewer: str, found: Pick, occurrence: int) -> bool:
    """Whether a pair's first response is shown on the left: a coin of the reviewer and the item."""
    return derive_seed("side", reviewer, found.first_id, found.second_id, occurrence) % 2 == 0
