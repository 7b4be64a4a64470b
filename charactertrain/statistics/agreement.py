"""How far people agree beyond chance: with one another, with themselves, with a ranker.

Shapes: I items, Q categories, C sums that a coefficient needs, K clusters, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charactertrain.statistics.bootstrap import Interval
from charactertrain.statistics.resampling import interval_quantiles, resampled

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Two coefficients of the same ratings, each with a 95 % interval over clusters of items."""

    gwet: Interval | None
    """AC2, which is AC1 where weights are of identity; None if there is only one cluster."""
    kappa: Interval | None
    """Cohen's, of two raters; None where there are others, or all ratings are of one category."""
    share: Interval | None
    """Of the items that two raters put in the same category, 0 to 1."""


def identity_weights(num_categories: int) -> Array:
    """Categories agree with themselves alone."""
    return np.eye(num_categories)


def quadratic_weights(num_categories: int) -> Array:
    """Ordered categories agree by 1 - (k - l)^2 / (Q - 1)^2, as in Cohen (1968) and Gwet (2014)."""
    if num_categories < 2:
        raise ValueError(f"expected two categories or more, found {num_categories}")
    steps = np.arange(num_categories) / (num_categories - 1)
    return np.asarray(1 - (steps[:, None] - steps[None, :]) ** 2, dtype=np.float64)


def gwet_coefficient(counts_IQ: ArrayLike, weights_QQ: ArrayLike) -> float:
    """Gwet's AC2, (p_a - p_e) / (1 - p_e): up to 1, and 0 if agreement is what chance explains.

    p_a is the mean over items with two ratings or more of the share of rater pairs that agree, and
    p_e = sum(w) / (Q (Q - 1)) sum_k pi_k (1 - pi_k), where pi_k is the mean share of category k
    over all rated items. Of identity weights it is AC1: Gwet (2008),
    https://doi.org/10.1348/000711006X126600; with weights, several raters and missing ratings as
    in his Handbook of Inter-Rater Reliability (4th edition, 2014), chapters 2 to 4. Unlike kappa it
    does not fall when nearly all items are of one category.

    Args:
        counts_IQ: Raters that put an item in a category.
        weights_QQ: How far two categories agree, 0 to 1; 1 on the diagonal.

    Raises:
        ValueError: The shapes do not fit, or no item has two ratings.
    """
    weights = np.array(weights_QQ, float)
    sums_IC = _gwet_sums(_checked(counts_IQ, weights), weights)
    if sums_IC[:, 1].sum() == 0:
        raise ValueError("no item has two ratings: there is nothing to agree on")
    return float(_gwet_of_sums(sums_IC.sum(axis=0)[:, None], weights)[0])


def cohen_kappa(table_QQ: ArrayLike, weights_QQ: ArrayLike) -> float | None:
    """Cohen's kappa of two raters, (p_o - p_e) / (1 - p_e), with weights.

    p_o = sum w_kl p_kl and p_e = sum w_kl p_k. p_.l of the shares of items that the first rater put
    in k and the second in l: Cohen (1960), https://doi.org/10.1177/001316446002000104, and (1968),
    https://doi.org/10.1037/h0026256.

    Args:
        table_QQ: Items, or shares of them, by the first rater's category and the second's.
        weights_QQ: How far two categories agree, 0 to 1; 1 on the diagonal.

    Returns:
        None where chance alone would agree on everything, as with one category.
    """
    table, weights = np.array(table_QQ, float), np.array(weights_QQ, float)
    if table.shape != weights.shape or table.ndim != 2 or not table.sum() > 0:
        raise ValueError(
            f"expected a table of items with the shape of the weights, {weights.shape}, found "
            f"{table.shape} with the sum {table.sum()}"
        )
    value = float(_kappa_of_sums(table.reshape(-1, 1), weights)[0])
    return None if np.isnan(value) else value


def agreement(
    ratings: Sequence[tuple[str, Sequence[int]]],
    weights_QQ: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
) -> Agreement:
    """The coefficients over items, with percentile intervals under resampled clusters.

    Args:
        ratings: Of each item the cluster that it belongs to, such as its prompt, and the category
            that each of its raters chose, by number; an item with one rating counts for how common
            categories are.
        weights_QQ: As for `gwet_coefficient`.
        num_resamples: Of the bootstrap.
        seed: The same gives the same intervals, whatever the order of the items.
    """
    weights = np.array(weights_QQ, float)
    items = sorted((cluster, tuple(map(int, chosen))) for cluster, chosen in ratings)
    rated = [(cluster, chosen) for cluster, chosen in items if len(chosen) > 1]
    if len({cluster for cluster, _ in rated}) < 2:
        return Agreement(None, None, None)

    def interval(
        of: Sequence[tuple[str, tuple[int, ...]]],
        sums_IC: Array,
        coefficient: Callable[[Array], Array],
    ) -> Interval | None:
        sums_CK = _by_cluster([cluster for cluster, _ in of], sums_IC)
        drawn_CR = resampled(sums_CK, num_resamples=num_resamples, seed=seed)
        return _interval(sums_CK, drawn_CR, coefficient, num_items=len(of))

    # Items that one rater saw alone have no part in p_a, and say how common categories are.
    counts_IQ = np.array([np.bincount(chosen, minlength=len(weights)) for _, chosen in items])
    gwet = interval(
        items, _gwet_sums(counts_IQ.astype(float), weights), lambda s: _gwet_of_sums(s, weights)
    )
    same = np.array([[float(len(set(chosen)) == 1), 1.0] for _, chosen in rated])
    share = interval(rated, same, lambda s: s[0] / s[1])
    kappa = None
    if all(len(chosen) == 2 for _, chosen in rated):
        cells = np.zeros((len(rated), len(weights) ** 2))
        for row, (_, (first, second)) in enumerate(rated):
            cells[row, first * len(weights) + second] = 1
        kappa = interval(rated, cells, lambda s: _kappa_of_sums(s, weights))
    return Agreement(gwet, kappa, share)


def _by_cluster(clusters: Sequence[str], sums_IC: Array) -> Array:
    names, of_item = np.unique(clusters, return_inverse=True)
    columns = [np.bincount(of_item, column, len(names)) for column in sums_IC.T]
    return np.array(columns, np.float64)


def _interval(
    sums_CK: Array, drawn_CR: Array, coefficient: Callable[[Array], Array], *, num_items: int
) -> Interval | None:
    """The coefficient of all items and its interval; None where it is not defined."""
    num_clusters = sums_CK.shape[1]
    estimate = float(coefficient(sums_CK.sum(axis=1, keepdims=True))[0])
    values_R = coefficient(drawn_CR)
    if np.isnan(estimate) or np.isnan(values_R).all():
        return None
    # A resample in which the coefficient is not defined is left out.
    low, high = np.nanquantile(values_R, interval_quantiles(num_clusters))
    return Interval(estimate, float(low), float(high), num_clusters, num_items)


def _checked(counts_IQ: ArrayLike, weights: Array) -> Array:
    counts = np.array(counts_IQ, float)
    is_square = weights.ndim == 2 and weights.shape[0] == weights.shape[1] > 1
    if counts.ndim != 2 or not is_square or counts.shape[1] != len(weights):
        raise ValueError(
            "expected counts of I items by Q categories and Q x Q weights, two categories or "
            f"more; found {counts.shape} and {weights.shape}"
        )
    return counts


def _gwet_sums(counts_IQ: Array, weights: Array) -> Array:
    """Per item: its agreement if it has two ratings, that it has, that it is rated, its shares."""
    raters_I = counts_IQ.sum(axis=1)
    pairs_I = raters_I * (raters_I - 1)
    agreeing_I = (counts_IQ * (counts_IQ @ weights.T - 1)).sum(axis=1)
    both_I = (raters_I > 1).astype(float)
    share_I = np.divide(agreeing_I, pairs_I, out=np.zeros_like(pairs_I), where=pairs_I > 0)
    shares_IQ = counts_IQ / np.maximum(raters_I, 1)[:, None]
    rated_I = (raters_I > 0).astype(float)
    return np.column_stack([share_I, both_I, rated_I, shares_IQ])


def _gwet_of_sums(sums_CR: Array, weights: Array) -> Array:
    agreeing_R, both_R, rated_R, *shares = sums_CR
    shares_QR = np.array(shares) / rated_R
    size = len(weights)
    spread_R = (shares_QR * (1 - shares_QR)).sum(axis=0)
    chance_R = weights.sum() / (size * (size - 1)) * spread_R
    with np.errstate(invalid="ignore", divide="ignore"):
        observed_R = agreeing_R / both_R
        return np.asarray((observed_R - chance_R) / (1 - chance_R), dtype=np.float64)


def _kappa_of_sums(cells_CR: Array, weights: Array) -> Array:
    size = len(weights)
    shares_QQR = (cells_CR / cells_CR.sum(axis=0)).reshape(size, size, -1)
    observed_R = (weights[:, :, None] * shares_QQR).sum(axis=(0, 1))
    rows_QR, columns_QR = shares_QQR.sum(axis=1), shares_QQR.sum(axis=0)
    chance_R = (rows_QR * (weights @ columns_QR)).sum(axis=0)
    left_R = 1 - chance_R
    values_R: Array = np.full_like(left_R, np.nan)
    np.divide(observed_R - chance_R, left_R, out=values_R, where=left_R > 1e-12)
    return values_R
