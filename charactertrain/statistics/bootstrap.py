"""Intervals that respect how responses come: several to a prompt, the same prompts in both arms.

Responses to one prompt resemble each other, so it is prompts (clusters) that are resampled. The
reasons, for evaluations of language models: Miller (2024), https://arxiv.org/abs/2411.00640.

Every function takes the values by cluster: prompt id -> the values of its responses. Shapes:
K clusters, G groups of them, R resamples, J measurements one after the other, E those before the
last.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from charactertrain.statistics.resampling import (
    ROUNDING,
    UPPER_TAIL,
    bootstrap_standard_error,
    interval_quantiles,
    paired_clusters,
    resampled,
    sums_and_counts,
    two_sided_p_value,
)

MAX_LEFT_OUT = 100
"""Prompts that the jackknife leaves out one by one."""

T = TypeVar("T")
SetStatistic = Callable[[Sequence[Sequence[T]]], tuple[float, Sequence[float]]]
"""Of groups of values: the statistic of all of them, and of all without each group in turn."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over responses, with a 95 % interval over prompts."""

    estimate: float
    ci_low: float
    ci_high: float
    num_clusters: int
    num_responses: int


@dataclass(frozen=True)
class Difference:
    """How an arm differs from the base, with a 95 % interval over prompts."""

    base: float
    arm: float
    difference: float
    """arm - base"""
    ci_low: float
    """Of the difference."""
    ci_high: float
    p_value: float
    """Two-sided, of no difference: `resampling.two_sided_p_value`."""
    num_clusters: int
    num_responses: int
    """Of both arms together."""


@dataclass(frozen=True)
class Fall:
    """How far the last of several measurements on the same prompts lies below the best before."""

    best: int
    """Index of the best; of equal ones the first."""
    fall: float
    """Mean of the best less that of the last."""
    limit: float
    """The most that chance explains, in 97.5 % of resamples."""

    @property
    def is_established(self) -> bool:
        """Whether the fall is larger than chance explains."""
        return self.fall > self.limit


def values_by_cluster(values: Sequence[T], clusters: Sequence[str]) -> dict[str, list[T]]:
    """Per-response values, gathered by the prompt id of each."""
    gathered: dict[str, list[T]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        gathered[cluster].append(value)
    return dict(gathered)


def cluster_bootstrap_mean(
    by_cluster: Mapping[str, Sequence[float]], *, num_resamples: int, seed: int
) -> Interval:
    """The mean over responses, and the percentile interval of it under resampled prompts.

    Raises:
        ValueError: A value is not finite, a prompt has no response, or there is only one prompt.
    """
    clusters = paired_clusters(by_cluster, by_cluster)
    sums_K, counts_K = sums_and_counts(by_cluster, clusters)
    sums_R, counts_R = resampled(
        np.stack([sums_K, counts_K]), num_resamples=num_resamples, seed=seed
    )
    ci_low, ci_high = np.quantile(sums_R / counts_R, interval_quantiles(len(clusters)))
    return Interval(
        estimate=float(sums_K.sum() / counts_K.sum()),
        ci_low=float(ci_low),
        ci_high=float(ci_high),
        num_clusters=len(clusters),
        num_responses=int(counts_K.sum()),
    )


def cluster_bootstrap_difference(
    base_by_cluster: Mapping[str, Sequence[float]],
    arm_by_cluster: Mapping[str, Sequence[float]],
    *,
    num_resamples: int,
    seed: int,
) -> Difference:
    """The difference of means over responses, and its percentile interval, paired by prompt.

    A resample draws prompts with replacement, the same for both arms, so what a prompt does to
    both arms cancels. The arms may have different numbers of responses to a prompt. In simulation
    the interval holds the truth in 93 to 97 % of experiments with 10 to 200 prompts, of values in
    bounds; of values with a long tail in 89 % with 20 prompts and in 93 % with 200.

    Raises:
        ValueError: A value is not finite, a prompt is missing in one arm, or there is only one.
    """
    clusters = paired_clusters(base_by_cluster, arm_by_cluster)
    base_sums_K, base_counts_K = sums_and_counts(base_by_cluster, clusters)
    arm_sums_K, arm_counts_K = sums_and_counts(arm_by_cluster, clusters)
    columns = np.stack([base_sums_K, base_counts_K, arm_sums_K, arm_counts_K])
    base_R, base_n_R, arm_R, arm_n_R = resampled(columns, num_resamples=num_resamples, seed=seed)
    differences_R = arm_R / arm_n_R - base_R / base_n_R
    means_2K = [base_sums_K / base_counts_K, arm_sums_K / arm_counts_K]
    return difference_of_resamples(
        float(base_sums_K.sum() / base_counts_K.sum()),
        float(arm_sums_K.sum() / arm_counts_K.sum()),
        differences_R,
        num_clusters=len(clusters),
        num_responses=int(base_counts_K.sum() + arm_counts_K.sum()),
        negligible=ROUNDING * float(np.abs(means_2K).max()),
    )


def difference_of_resamples(
    base: float,
    arm: float,
    differences_R: Array,
    *,
    num_clusters: int,
    num_responses: int,
    negligible: float,
) -> Difference:
    """The difference of two estimates, from what it is in each resample of clusters.

    Args:
        base: Estimate for the base.
        arm: Estimate for the arm.
        differences_R: Of the resamples' estimates, arm - base.
        num_clusters: How many are resampled.
        num_responses: Of both arms together.
        negligible: A spread up to this is rounding, and taken for none.
    """
    ci_low, ci_high = np.quantile(differences_R, interval_quantiles(num_clusters))
    return Difference(
        base=base,
        arm=arm,
        difference=arm - base,
        ci_low=float(ci_low),
        ci_high=float(ci_high),
        p_value=two_sided_p_value(
            arm - base,
            bootstrap_standard_error(differences_R, num_clusters),
            num_clusters=num_clusters,
            negligible=negligible,
        ),
        num_clusters=num_clusters,
        num_responses=num_responses,
    )


def fall_from_best(
    series: Sequence[Mapping[str, Sequence[float]]], *, num_resamples: int, seed: int
) -> Fall:
    """The fall of the last measurement's mean below the best before it, paired by prompt.

    The best of several is in part the luckiest, and the paired interval of a difference does not
    know that it was chosen. The limit is therefore that of the largest fall from any of them: the
    test of White (2000), https://doi.org/10.1111/1468-0262.00152.

    Raises:
        ValueError: A value is not finite, a prompt is missing in a measurement, or there is only
            one prompt or one measurement.
    """
    # In simulations of 400 runs whose mean stays the same, two measurements in a row lay below the
    # best so in 2 of 100 runs with 9 measurements of 12 prompts and in 1 of 100 with 64 prompts; by
    # the paired interval in 15 and in 9. With 41 of 12 prompts: in 10, and in 82.
    if len(series) < 2:
        raise ValueError(f"{len(series)} measurement: a fall needs one before the last")
    *earlier, last = series
    # Of all, since each is compared with the last.
    clusters = [paired_clusters(by_cluster, last) for by_cluster in earlier][-1]
    columns = [sums_and_counts(by_cluster, clusters) for by_cluster in series]
    sums_JK, counts_JK = (np.stack(rows) for rows in zip(*columns, strict=True))
    both = resampled(np.concatenate([sums_JK, counts_JK]), num_resamples=num_resamples, seed=seed)
    sums_JR, counts_JR = np.split(both, 2)
    means_J, means_JR = sums_JK.sum(axis=1) / counts_JK.sum(axis=1), sums_JR / counts_JR
    falls_E, falls_ER = means_J[:-1] - means_J[-1], means_JR[:-1] - means_JR[-1]
    excess_R = (falls_ER - falls_E[:, None]).max(axis=0)
    return Fall(
        best=int(falls_E.argmax()),
        fall=float(falls_E.max()),
        limit=float(np.quantile(excess_R, UPPER_TAIL)),
    )


def cluster_jackknife_statistic(
    base_by_cluster: Mapping[str, Sequence[T]],
    arm_by_cluster: Mapping[str, Sequence[T]],
    statistic: SetStatistic[T],
) -> Difference:
    """The difference of a statistic of a *set* of responses, such as distinct-2, paired by prompt.

    Standard error from leaving out one prompt at a time: Efron and Stein (1981),
    https://doi.org/10.1214/aos/1176345462. Of more than `MAX_LEFT_OUT` prompts, groups of them are
    left out, put together at random, so that time grows with the responses and not with their
    square. Interval and p-value from Student's t of G - 1 degrees of freedom, as the error is
    itself an estimate from G of them. For statistics that change little when one prompt is left
    out; not for medians.

    Raises:
        ValueError: The statistic is not finite, a prompt is missing in one arm, or there is only
            one.
    """
    # Not the bootstrap: a resample repeats prompts, so its n-grams repeat. In three simulations of
    # 100 experiments with 20 prompts, the 95 % interval of a difference in distinct-2 held the
    # truth in 16 to 88 of 100 by bootstrap, in 71 to 90 shifted to the estimate, in 95 to 99 so.
    clusters = paired_clusters(base_by_cluster, arm_by_cluster)

    num_groups = min(len(clusters), MAX_LEFT_OUT)
    places = np.random.default_rng(0).permutation(len(clusters))
    groups = [
        [clusters[place] for place in places[index::num_groups]] for index in range(num_groups)
    ]

    def evaluate(by_cluster: Mapping[str, Sequence[T]]) -> tuple[float, Array]:
        values = [[value for cluster in group for value in by_cluster[cluster]] for group in groups]
        whole, without = statistic(values)
        for left_out, value in zip(groups, without, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"the statistic without prompt {', '.join(left_out)!r} is {value}")
        return whole, np.array(without)

    (base, base_G), (arm, arm_G) = evaluate(base_by_cluster), evaluate(arm_by_cluster)
    differences_G = arm_G - base_G
    # The jackknife variance (G - 1) / G * sum of squared deviations, as G - 1 times their mean.
    error = math.sqrt((num_groups - 1) * float(differences_G.var()))
    half_width = float(student.ppf(UPPER_TAIL, num_groups - 1)) * error
    return Difference(
        base=base,
        arm=arm,
        difference=arm - base,
        ci_low=arm - base - half_width,
        ci_high=arm - base + half_width,
        p_value=two_sided_p_value(
            arm - base,
            error,
            num_clusters=num_groups,
            negligible=ROUNDING * max(abs(base), abs(arm)),
        ),
        num_clusters=len(clusters),
        num_responses=sum(len(base_by_cluster[c]) + len(arm_by_cluster[c]) for c in clusters),
    )
