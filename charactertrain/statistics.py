"""Intervals that respect how responses come: several to a prompt, the same prompts in both arms.

Responses to one prompt resemble each other, so it is prompts (clusters) that are resampled. The
reasons, for evaluations of language models: Miller (2024), https://arxiv.org/abs/2411.00640.

Every function takes the values by cluster: prompt id -> the values of its responses. Shapes:
K clusters, R resamples, J measurements one after the other, E those before the last.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

MAX_RESAMPLED = 4096
"""Clusters that are resampled one by one; of more, groups of clusters are."""
UPPER_TAIL = 0.975
"""Below the upper end of a 95 % interval."""

T = TypeVar("T")
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
    """What a policy changed against a base, with a 95 % interval over prompts."""

    base: float
    policy: float
    difference: float
    """policy - base"""
    ci_low: float
    """Of the difference."""
    ci_high: float
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
    clusters = _paired_clusters(by_cluster, by_cluster)
    sums_K, counts_K = _sums_and_counts(by_cluster, clusters)
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
    policy_by_cluster: Mapping[str, Sequence[float]],
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
    clusters = _paired_clusters(base_by_cluster, policy_by_cluster)
    base_sums_K, base_counts_K = _sums_and_counts(base_by_cluster, clusters)
    policy_sums_K, policy_counts_K = _sums_and_counts(policy_by_cluster, clusters)
    columns = np.stack([base_sums_K, base_counts_K, policy_sums_K, policy_counts_K])
    base_R, base_n_R, policy_R, policy_n_R = resampled(
        columns, num_resamples=num_resamples, seed=seed
    )
    differences_R = policy_R / policy_n_R - base_R / base_n_R
    ci_low, ci_high = np.quantile(differences_R, interval_quantiles(len(clusters)))
    base = float(base_sums_K.sum() / base_counts_K.sum())
    policy = float(policy_sums_K.sum() / policy_counts_K.sum())
    return Difference(
        base=base,
        policy=policy,
        difference=policy - base,
        ci_low=float(ci_low),
        ci_high=float(ci_high),
        num_clusters=len(clusters),
        num_responses=int(base_counts_K.sum() + policy_counts_K.sum()),
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
    clusters = [_paired_clusters(by_cluster, last) for by_cluster in earlier][-1]
    columns = [_sums_and_counts(by_cluster, clusters) for by_cluster in series]
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
    policy_by_cluster: Mapping[str, Sequence[T]],
    statistic: Callable[[list[T]], float],
) -> Difference:
    """The difference of a statistic of a *set* of responses, such as distinct-2, paired by prompt.

    Standard error from leaving out one prompt at a time, interval from the normal distribution:
    Efron and Stein (1981), https://doi.org/10.1214/aos/1176345462. For statistics that change
    little when one prompt is left out; not for medians.

    Raises:
        ValueError: The statistic is not finite, a prompt is missing in one arm, or there is only
            one.
    """
    # Not the bootstrap: a resample repeats prompts, so its n-grams repeat. In three simulations of
    # 100 experiments with 20 prompts, the 95 % interval of a difference in distinct-2 held the
    # truth in 16 to 88 of 100 by bootstrap, in 71 to 90 shifted to the estimate, in 95 to 99 so.
    clusters = _paired_clusters(base_by_cluster, policy_by_cluster)

    def evaluate(by_cluster: Mapping[str, Sequence[T]], left_out: str | None) -> float:
        kept = (cluster for cluster in clusters if cluster != left_out)
        value = statistic([value for cluster in kept for value in by_cluster[cluster]])
        if not math.isfinite(value):
            raise ValueError(f"the statistic without prompt {left_out!r} is {value}")
        return value

    base, policy = evaluate(base_by_cluster, None), evaluate(policy_by_cluster, None)
    differences_K = np.array(
        [evaluate(policy_by_cluster, left) - evaluate(base_by_cluster, left) for left in clusters]
    )
    num_clusters = len(clusters)
    # The jackknife variance (K - 1) / K * sum of squared deviations, as K - 1 times their mean.
    half_width = float(norm.ppf(UPPER_TAIL)) * math.sqrt(
        (num_clusters - 1) * float(differences_K.var())
    )
    return Difference(
        base=base,
        policy=policy,
        difference=policy - base,
        ci_low=policy - base - half_width,
        ci_high=policy - base + half_width,
        num_clusters=num_clusters,
        num_responses=sum(len(base_by_cluster[c]) + len(policy_by_cluster[c]) for c in clusters),
    )


def _paired_clusters(
    base_by_cluster: Mapping[str, Sequence[object]],
    policy_by_cluster: Mapping[str, Sequence[object]],
) -> list[str]:
    # Sorted, so that the same seed gives the same interval whatever the order of rows.
    clusters = sorted({*base_by_cluster, *policy_by_cluster})
    missing = [c for c in clusters if not (base_by_cluster.get(c) and policy_by_cluster.get(c))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(clusters)} prompts lack a response in one arm: "
            f"{', '.join(missing[:5])}. Compare arms on the same prompts."
        )
    if len(clusters) < 2:
        raise ValueError(
            f"{len(clusters)} prompt: an interval needs two at least, and some 20 to be honest. "
            "Evaluate on more prompts; more responses to the same one do not help."
        )
    return clusters


def _sums_and_counts(
    by_cluster: Mapping[str, Sequence[float]], clusters: list[str]
) -> tuple[Array, Array]:
    sums_K = np.array([math.fsum(by_cluster[cluster]) for cluster in clusters])
    if not np.isfinite(sums_K).all():
        cluster = clusters[int(np.argmin(np.isfinite(sums_K)))]
        raise ValueError(f"prompt {cluster!r} has a value that is not finite")
    return sums_K, np.array([float(len(by_cluster[cluster])) for cluster in clusters])


def interval_quantiles(num_clusters: int) -> tuple[float, float]:
    """The quantiles of a bootstrap distribution that bound a 95 % interval over K clusters.

    Further out than 0.025 and 0.975 where clusters are few: the distribution is too narrow by a
    factor of sqrt((K - 1) / K), and knows nothing of the spread being an estimate. The expanded
    percentile interval of Hesterberg (2015), https://doi.org/10.1080/00031305.2015.1089789.
    """
    degrees = num_clusters - 1
    deviations = float(student.ppf(UPPER_TAIL, degrees)) * math.sqrt(num_clusters / degrees)
    tail = float(norm.cdf(-deviations))
    return tail, 1 - tail


def resampled(sums_CK: Array, *, num_resamples: int, seed: int) -> Array:
    """Each row's sum over resampled clusters, for each resample: `(C, K)` to `(C, R)`.

    Ratios of sums are all that means and correlations need. Beyond `MAX_RESAMPLED` clusters, groups
    of them are resampled, put together at random: the spread of sums over independent clusters is
    the same, and time and memory stay bounded.
    """
    rng = np.random.default_rng(seed)
    num_clusters = sums_CK.shape[1]
    if num_clusters > MAX_RESAMPLED:
        group_K = rng.permutation(num_clusters) % MAX_RESAMPLED
        sums_CK = np.stack([np.bincount(group_K, row, MAX_RESAMPLED) for row in sums_CK])
        num_clusters = MAX_RESAMPLED
    uniform_K = np.full(num_clusters, 1 / num_clusters)
    # How often each cluster is drawn.
    draws_RK = rng.multinomial(num_clusters, uniform_K, size=num_resamples).astype(np.float64)
    return sums_CK @ draws_RK.T
