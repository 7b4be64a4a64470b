"""Effects of a probe that are not a difference of two means: what is left of one, and what is lost.

Values are by cluster, one each. Shapes: C conditions, K clusters, R resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from charactertrain.artifacts import Json
from charactertrain.evaluation.effects import Bootstrap, as_json, unknown
from charactertrain.statistics.bootstrap import (
    cluster_bootstrap_difference,
    difference_of_resamples,
)
from charactertrain.statistics.resampling import ROUNDING, resampled

MIN_RIGHT = 5
"""Right first answers below which nothing is said of what was lost of them."""

Values = Mapping[str, float]
Array = NDArray[np.float64]


def slope(values: Sequence[float]) -> float:
    """Least-squares slope of values over 0, 1, 2 and so on: per step."""
    steps = np.arange(len(values)) - (len(values) - 1) / 2
    return float(steps @ np.asarray(values) / (steps @ steps))


def difference(base: Values, arm: Values, bootstrap: Bootstrap) -> Json | None:
    """The effect on clusters that both have a value of; None where they are fewer than two."""
    both = sorted(base.keys() & arm.keys())
    if len(both) < 2:
        return None
    return as_json(
        cluster_bootstrap_difference(
            {cluster: [base[cluster]] for cluster in both},
            {cluster: [arm[cluster]] for cluster in both},
            num_resamples=bootstrap.num_resamples,
            seed=bootstrap.seed,
        )
    )


def retention(plain: Values, conditions: Mapping[str, Values], bootstrap: Bootstrap) -> Json | None:
    """What is left of an effect under a condition, as a share of the effect without it.

    Of several conditions the worst, by its name: the interval is then of the least of all, whose
    being chosen draws it down, so that a floor which it clears is cleared. 1 is in the base's
    place: nothing lost. Where the plain effect is not above 0 by its interval, there is nothing
    that could be left, and the numbers are None with a note. None where fewer than two clusters are
    in all conditions.

    Args:
        plain: The arm's value less the base's, without a condition.
        conditions: The same under each condition.
        bootstrap: How intervals are made.
    """
    clusters = sorted(set(plain).intersection(*conditions.values()))
    if len(clusters) < 2:
        return None
    zero = dict.fromkeys(clusters, 0.0)
    whole = difference(zero, {cluster: plain[cluster] for cluster in clusters}, bootstrap)
    assert whole is not None, "there are two clusters"
    counts = {"num_prompts": len(clusters), "num_responses": len(clusters)}
    if whole["ci_low"] <= 0:
        note = (
            "not established: without a condition the effect is "
            f"{whole['difference']:.3f} [{whole['ci_low']:.3f}, {whole['ci_high']:.3f}]"
        )
        return {**unknown(note), "base": 1.0, **counts}
    rows = [[values[cluster] for cluster in clusters] for values in conditions.values()]
    sums_CK = np.array([[plain[cluster] for cluster in clusters], *rows])
    shares_C = sums_CK[1:].sum(axis=1) / sums_CK[0].sum()
    plain_R, *sums_CR = resampled(
        sums_CK, num_resamples=bootstrap.num_resamples, seed=bootstrap.seed
    )
    shares_R = np.min(sums_CR, axis=0) / np.where(plain_R > 0, plain_R, np.nan)
    worst = int(shares_C.argmin())
    left = _effect(1.0, float(shares_C[worst]), shares_R - 1, len(clusters))
    return left if len(conditions) == 1 else {**left, "condition": list(conditions)[worst]}


def lost_share(
    base: Mapping[str, Sequence[float]],
    arm: Mapping[str, Sequence[float]],
    bootstrap: Bootstrap,
) -> Json | None:
    """Of the clusters that were right at the first of two tries, the share that then was not.

    Each arm's share is of its own right ones. None where fewer than two clusters are in both arms.

    Args:
        base: 1 for right and 0 for not, first and last, by cluster.
        arm: The same of the other arm.
        bootstrap: How intervals are made.
    """
    clusters = sorted(base.keys() & arm.keys())
    if len(clusters) < 2:
        return None
    columns = [_lost_and_right(values, clusters) for values in (base, arm)]
    sums_CK = np.concatenate(columns)
    counts = {"num_prompts": len(clusters), "num_responses": len(clusters)}
    base_lost, base_right, arm_lost, arm_right = sums_CK.sum(axis=1)
    fewest = int(min(base_right, arm_right))
    if fewest < MIN_RIGHT:
        note = f"not established: one arm has {fewest} first answers that are right"
        return {**unknown(note), **counts}
    shares = float(base_lost / base_right), float(arm_lost / arm_right)
    base_lost_R, base_right_R, arm_lost_R, arm_right_R = resampled(
        sums_CK, num_resamples=bootstrap.num_resamples, seed=bootstrap.seed
    )
    differences_R = arm_lost_R / np.where(arm_right_R > 0, arm_right_R, np.nan) - (
        base_lost_R / np.where(base_right_R > 0, base_right_R, np.nan)
    )
    # The share is of those that were right at first, so they are the sample, and not all.
    return _effect(*shares, differences_R, fewest)


def _lost_and_right(values: Mapping[str, Sequence[float]], clusters: Sequence[str]) -> Array:
    right_K = np.array([values[cluster][0] for cluster in clusters])
    lost_K = right_K * (1 - np.array([values[cluster][-1] for cluster in clusters]))
    return np.stack([lost_K, right_K])


def _effect(base: float, arm: float, differences_R: Array, num_clusters: int) -> Json:
    """Resamples without a denominator are left out: few where one is established."""
    return as_json(
        difference_of_resamples(
            base,
            arm,
            differences_R[np.isfinite(differences_R)],
            num_clusters=num_clusters,
            num_responses=2 * num_clusters,
            negligible=ROUNDING,
        )
    )
