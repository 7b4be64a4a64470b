"""Resamples of clusters, and what an interval and a p-value take from them.

Shapes: C columns of sums, K clusters, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

MAX_RESAMPLED = 1024
"""Clusters resampled one by one, 16 MiB of 2,000 resamples; of more, groups of them are."""
UPPER_TAIL = 0.975
"""Below the upper end of a 95 % interval."""
ROUNDING = 1e-12
"""Relative to the values: what the spread of equal ones may come to."""

Array = NDArray[np.float64]


def paired_clusters(
    base_by_cluster: Mapping[str, Sequence[object]],
    arm_by_cluster: Mapping[str, Sequence[object]],
) -> list[str]:
    """The prompts of both arms, sorted.

    Raises:
        ValueError: A prompt is missing in one arm, or there is only one.
    """
    # Sorted, so that the same seed gives the same interval whatever the order of rows.
    clusters = sorted({*base_by_cluster, *arm_by_cluster})
    missing = [c for c in clusters if not (base_by_cluster.get(c) and arm_by_cluster.get(c))]
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


def sums_and_counts(
    by_cluster: Mapping[str, Sequence[float]], clusters: list[str]
) -> tuple[Array, Array]:
    """Each cluster's sum of values, and how many they are: `(K,)` both.

    Raises:
        ValueError: A value is not finite.
    """
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
    num_clusters = sums_CK.shape[1]
    if num_clusters > MAX_RESAMPLED:
        group_K = np.random.default_rng(seed).permutation(num_clusters) % MAX_RESAMPLED
        sums_CK = np.stack([np.bincount(group_K, row, MAX_RESAMPLED) for row in sums_CK])
    return sums_CK @ _remembered_draws(seed, sums_CK.shape[1], num_resamples).T


@lru_cache(maxsize=8)
def _remembered_draws(seed: int, num_clusters: int, num_resamples: int) -> Array:
    # An evaluation has hundreds of measures of the same prompts, and drawing is nearly all of the
    # time that an interval takes: 60 ms of 240 clusters and 2,000 resamples, on a loaded core.
    rng = np.random.default_rng(seed)
    draws_RK = cluster_draws(rng, num_clusters, num_resamples=num_resamples)
    draws_RK.setflags(write=False)
    return draws_RK


def cluster_draws(rng: np.random.Generator, num_clusters: int, *, num_resamples: int) -> Array:
    """How often each cluster is drawn in each resample: `(R, K)`, rows that add up to K."""
    uniform_K = np.full(num_clusters, 1 / num_clusters)
    draws_RK: Array = rng.multinomial(num_clusters, uniform_K, size=num_resamples).astype(float)
    return draws_RK


def bootstrap_standard_error(estimates_R: Array, num_clusters: int) -> float:
    """Standard error of an estimate from what it is in each resample of K clusters.

    The spread of the resamples is too small by a factor of sqrt((K - 1) / K), as that of a sample
    about its own mean is.
    """
    return float(estimates_R.std()) * math.sqrt(num_clusters / (num_clusters - 1))


def two_sided_p_value(
    difference: float, standard_error: float, *, num_clusters: int, negligible: float
) -> float:
    """How often chance alone gives a difference as far from 0 as this, 0 to 1.

    From Student's t of K - 1 degrees of freedom, and not from the share of resamples beyond 0: of
    2,000 resamples that is no less than 1/2000, and among many traits under Holm's correction it is
    smaller tails that decide. It is the test that the interval of `interval_quantiles` belongs to:
    where resamples are normally distributed, p < 0.05 is the same as an interval that leaves out 0.

    Without any spread over clusters: 1 where there is no difference, and otherwise 2^(1 - K), the
    sign test's p-value of K clusters that all moved the same way. By t it would be 0 of two prompts
    already.

    Args:
        difference: The estimate.
        standard_error: Of it.
        num_clusters: K, 2 at least.
        negligible: A spread or a difference up to this is rounding, and taken for none.
    """
    if standard_error > negligible:
        return float(2 * student.sf(abs(difference) / standard_error, num_clusters - 1))
    return 1.0 if abs(difference) <= negligible else 2.0 ** (1 - num_clusters)
