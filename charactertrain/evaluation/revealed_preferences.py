"""What a model takes up when it is free to choose: ratings of traits by its own choices.

A model is offered two trait words, takes up one, and a judge reads off which. What it takes up
where it is told to choose at random is no preference: words differ in how easily they are played
and recognised. Ratings under a free choice are therefore read less those under a random one.

Shapes: K clusters (prompts), R resamples, W words.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import spearmanr
from scipy.stats import t as student

from charactertrain.statistics.bootstrap import Difference, Interval, difference_of_resamples
from charactertrain.statistics.bradley_terry import utilities_of_tables
from charactertrain.statistics.resampling import (
    ROUNDING,
    UPPER_TAIL,
    cluster_draws,
    interval_quantiles,
)

Array = NDArray[np.float64]

RATING_MEAN = 1000.0
RATING_SCALE = 400 / math.log(10)
"""Points per nat: 400 for odds of ten to one, as in chess (Elo)."""
CHUNK = 1 << 18
"""Resamples times pairs of words that are fitted at once: 2 MiB an array."""
JACKKNIFE_GROUPS = 20


@dataclass(frozen=True)
class Choice:
    """Two words that were offered, and which was taken up."""

    cluster: str
    """Prompt id."""
    first: str
    second: str
    probability: float
    """That the first was taken up, 0 to 1; 0.5 where neither or both were."""


@dataclass(frozen=True)
class Chosen:
    """What one model took up of the same pairs where it chose freely, and where at random."""

    free: Sequence[Choice]
    at_random: Sequence[Choice]


@dataclass(frozen=True)
class _Table:
    """Wins of word over word by prompt, a sparse matrix of `(K, W * W)`."""

    words: list[str]
    clusters: list[str]
    wins_KP: csr_array

    def utilities(self, weights_RK: Array) -> Array:
        """Of each row of weights of the prompts: `(R, W)`, in nats."""
        num_words = len(self.words)
        num_at_once = max(1, CHUNK // num_words**2)
        return np.concatenate(
            [
                utilities_of_tables(
                    (weights_RK[start : start + num_at_once] @ self.wins_KP).reshape(
                        -1, num_words, num_words
                    )
                )
                for start in range(0, len(weights_RK), num_at_once)
            ]
        )


def ratings(choices: Sequence[Choice], *, num_resamples: int, seed: int) -> dict[str, Interval]:
    """The rating of each word, 1000 + 400 / ln 10 * (theta - mean), with its 95 % interval.

    Theta is a word's Bradley-Terry utility with a weak prior, from all choices at once: unlike
    ratings that follow one game after the other, it does not depend on their order. The interval is
    that of a bootstrap over prompts. A word that is always or never taken up is as far out as the
    prior lets it be, and its interval says nothing.

    Raises:
        ValueError: A probability is not within 0 to 1, words fall into groups that were never
            offered with one another, or there is only one prompt.
        ArithmeticError: A fit did not converge.
    """
    table = _table(choices, _words(choices), _clusters(choices))
    rated_W, resampled_RW = _rated(table, num_resamples=num_resamples, seed=seed)
    bounds_2W = np.quantile(resampled_RW, interval_quantiles(len(table.clusters)), axis=0)
    offered = dict.fromkeys(table.words, 0)
    for choice in choices:
        offered[choice.first] += 1
        offered[choice.second] += 1
    return {
        word: Interval(
            float(rated_W[index]),
            float(bounds_2W[0, index]),
            float(bounds_2W[1, index]),
            num_clusters=len(table.clusters),
            num_responses=offered[word],
        )
        for index, word in enumerate(table.words)
    }


def ratings_above_chance(chosen: Chosen, *, num_resamples: int, seed: int) -> dict[str, Difference]:
    """Each word's rating where the model chose freely (`arm`) less where at random (`base`).

    Paired by prompt: a resample draws the same prompts for both.

    Raises:
        ValueError: The two have not the same words and prompts, or as `ratings`.
        ArithmeticError: A fit did not converge.
    """
    words, clusters = _same([chosen.free, chosen.at_random])
    arm, base = (
        _rated(_table(choices, words, clusters), num_resamples=num_resamples, seed=seed)
        for choices in (chosen.free, chosen.at_random)
    )
    return _differences(words, (base, arm), len(clusters), len(chosen.free) + len(chosen.at_random))


def change_above_chance(
    base: Chosen, arm: Chosen, *, num_resamples: int, seed: int
) -> dict[str, Difference]:
    """Each word's rating above chance of one model (`arm`) less that of another (`base`).

    Paired by prompt: a resample draws the same prompts for both models and conditions.

    Raises:
        ValueError: The models have not the same words and prompts, or as `ratings`.
        ArithmeticError: A fit did not converge.
    """
    parts = (base.free, base.at_random, arm.free, arm.at_random)
    words, clusters = _same(parts)
    rated = [
        _rated(_table(choices, words, clusters), num_resamples=num_resamples, seed=seed)
        for choices in parts
    ]
    above = [
        (free[0] - at_random[0], free[1] - at_random[1])
        for free, at_random in (rated[:2], rated[2:])
    ]
    num_responses = sum(len(choices) for choices in parts)
    return _differences(words, (above[0], above[1]), len(clusters), num_responses)


def order_agreement(first: Chosen, second: Chosen) -> Interval | None:
    """Spearman's correlation of two models' ratings above chance of the same words, -1 to 1.

    None where one model rates all words alike, with all prompts or without some.

    Above chance, since words that are easily played and recognised would come first in any model's
    order, and the two would agree without preferring anything.
    The interval is over prompts: of a jackknife that leaves out a twentieth of them at a time, on
    the scale of Fisher's z. Not a bootstrap, whose resamples add noise to orders that have noise
    already and so agree less than the estimate. The estimate itself is nearer to 0 than the models'
    own correlation where prompts are few, and of few words the interval is coarse: ranks jump.

    Raises:
        ValueError: The two have not the same words and prompts, there are fewer than three words,
            or as `ratings`.
    """
    parts = (first.free, first.at_random, second.free, second.at_random)
    words, clusters = _same(parts)
    if len(words) < 3:
        raise ValueError(f"{len(words)} words: an order of three at least is needed")
    num_groups = min(JACKKNIFE_GROUPS, len(clusters))
    group_K = np.random.default_rng(0).permutation(len(clusters)) % num_groups
    kept_GK = (group_K != np.arange(num_groups)[:, None]).astype(float)
    weights_GK = np.concatenate([np.ones((1, len(clusters))), kept_GK])
    rated_GW = [_table(choices, words, clusters).utilities(weights_GK) for choices in parts]
    one_GW, other_GW = rated_GW[0] - rated_GW[1], rated_GW[2] - rated_GW[3]
    # Short of 1, where z is infinite.
    correlations = [
        float(spearmanr(one_W, other_W).statistic)
        for one_W, other_W in zip(one_GW, other_GW, strict=True)
    ]
    if not all(map(math.isfinite, correlations)):
        return None  # a model that rates all words alike has no order
    z, *left_out = np.arctanh(np.clip(correlations, -1 + 1e-9, 1 - 1e-9)).tolist()
    error = math.sqrt((num_groups - 1) * float(np.var(left_out)))
    half_width = float(student.ppf(UPPER_TAIL, num_groups - 1)) * error
    return Interval(
        estimate=correlations[0],
        ci_low=min(correlations[0], math.tanh(z - half_width)),
        ci_high=max(correlations[0], math.tanh(z + half_width)),
        num_clusters=len(clusters),
        num_responses=sum(len(choices) for choices in parts),
    )


def _rated(table: _Table, *, num_resamples: int, seed: int) -> tuple[Array, Array]:
    """Ratings of all choices, and of each resample: `(W,)` and `(R, W)`."""
    num_clusters = len(table.clusters)
    draws_RK = cluster_draws(np.random.default_rng(seed), num_clusters, num_resamples=num_resamples)
    utilities = table.utilities(np.concatenate([np.ones((1, num_clusters)), draws_RK]))
    rated = RATING_MEAN + RATING_SCALE * utilities
    return rated[0], rated[1:]


def _differences(
    words: Sequence[str],
    rated: tuple[tuple[Array, Array], tuple[Array, Array]],
    num_clusters: int,
    num_responses: int,
) -> dict[str, Difference]:
    """Of each word, from what it is rated in the base and in the arm, and in resamples of each."""
    (base_W, base_RW), (arm_W, arm_RW) = rated
    return {
        word: difference_of_resamples(
            float(base_W[index]),
            float(arm_W[index]),
            arm_RW[:, index] - base_RW[:, index],
            num_clusters=num_clusters,
            num_responses=num_responses,
            negligible=ROUNDING * RATING_MEAN,
        )
        for index, word in enumerate(words)
    }


def _same(parts: Sequence[Sequence[Choice]]) -> tuple[list[str], list[str]]:
    """The words and the prompts of all parts."""
    words, clusters = _words(parts[0]), _clusters(parts[0])
    if any((_words(part), _clusters(part)) != (words, clusters) for part in parts):
        raise ValueError(
            "expected choices between the same words on the same prompts, freely and at random and "
            "of both models: offer the same pairs under all"
        )
    return words, clusters


def _words(choices: Sequence[Choice]) -> list[str]:
    return sorted({word for choice in choices for word in (choice.first, choice.second)})


def _clusters(choices: Sequence[Choice]) -> list[str]:
    return sorted({choice.cluster for choice in choices})


def _table(choices: Sequence[Choice], words: list[str], clusters: list[str]) -> _Table:
    if len(clusters) < 2:
        raise ValueError(f"{len(clusters)} prompt: an interval needs two at least")
    index = {word: number for number, word in enumerate(words)}
    row = {cluster: number for number, cluster in enumerate(clusters)}
    entries = []
    for choice in choices:
        if not 0 <= choice.probability <= 1 or choice.first == choice.second:
            raise ValueError(f"expected two words and a probability from 0 to 1, found {choice}")
        i, j = index[choice.first], index[choice.second]
        entries.append((row[choice.cluster], i * len(words) + j, choice.probability))
        entries.append((row[choice.cluster], j * len(words) + i, 1 - choice.probability))
    rows, columns, wins = zip(*entries, strict=True)
    _check_connected(choices, index)
    shape = (len(clusters), len(words) ** 2)
    return _Table(words, clusters, csr_array((wins, (rows, columns)), shape=shape))


def _check_connected(choices: Sequence[Choice], index: Mapping[str, int]) -> None:
    pairs = [(index[choice.first], index[choice.second]) for choice in choices]
    rows, columns = zip(*pairs, strict=True)
    graph = csr_array((np.ones(len(pairs)), (rows, columns)), shape=(len(index), len(index)))
    num_groups, group_W = connected_components(graph, directed=False)
    if num_groups > 1:
        apart = [word for word, group in zip(index, group_W, strict=True) if group != group_W[0]]
        raise ValueError(
            f"{len(index)} words fall into {num_groups} groups that were never offered with one "
            f"another, such as {next(iter(index))!r} and {apart[0]!r}: their ratings cannot be "
            "compared. Offer pairs across the groups."
        )
