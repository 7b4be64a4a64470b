"""How often an arm's response is judged better than the base's, with and without its length.

Shapes: N comparisons, K clusters (prompts), R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from charactertrain.statistics.bootstrap import (
    Difference,
    Interval,
    cluster_bootstrap_difference,
    cluster_bootstrap_mean,
    difference_of_resamples,
    values_by_cluster,
)
from charactertrain.statistics.resampling import cluster_draws, interval_quantiles

Array = NDArray[np.float64]

EVEN = 0.5
"""The base's win rate against itself."""
LENGTH_RIDGE = 1e-3
"""Precision of the prior on phi, per comparison: keeps it finite where length decides all."""
LEVEL_RIDGE = 1e-6
"""Of that on theta, which the rate is read from: finite where one arm wins every comparison."""
NEGLIGIBLE_SPREAD = 1e-4
"""Of a win rate: what `LEVEL_RIDGE` leaves where all comparisons are alike."""
MAX_NEWTON_STEPS = 60
GRADIENT_TOLERANCE = 1e-9
"""Of the mean loss."""
CHUNK = 1 << 20
"""Comparisons times resamples that are fitted at once: 8 MiB an array."""


@dataclass(frozen=True)
class Comparison:
    """A response of the arm and one of the base to the same prompt, judged in both orders."""

    cluster: str
    """Prompt id."""
    shown_first: float | None
    """Probability that the arm's is better, where it is shown first; None: no verdict."""
    shown_second: float | None
    """The same where it is shown second. Still of the arm's: near 0 where the base's wins."""
    length_difference: float
    """Arm's less base's, in tokens."""


@dataclass(frozen=True)
class WinRate:
    """The win rate, and what became of the comparisons."""

    rate: Difference
    """Against `EVEN`: `arm` is the rate, and half of `num_responses` the scored comparisons."""
    soft_rate: Difference
    """Of probabilities instead of verdicts."""
    swap_consistency: Interval
    """Share of scored comparisons in which one response wins in both orders, 0 to 1."""
    num_comparisons: int
    num_unscored: int
    """Without a verdict in one order or both: in no rate, since one order alone is biased."""
    num_ties: int
    """Scored, and in one order or both neither is better."""
    num_inconsistent: int
    """Scored, and the order decides which is better: as good as a tie, and not among `num_ties`."""


@dataclass(frozen=True)
class LengthControlledWinRate:
    """The win rate at equal lengths."""

    rate: Difference
    """Against `EVEN`, as in `WinRate`."""
    length_effect: Interval
    """phi: logits that the judge gives for length, from 0 to far longer than usual."""
    num_longer: int
    """Scored comparisons in which the arm's is longer. Near none or all, the rate at equal lengths
    is an extrapolation."""


def win_rate(comparisons: Sequence[Comparison], *, num_resamples: int, seed: int) -> WinRate:
    """Mean of 1/2 [1{arm wins, shown first} + 1{arm wins, shown second}], a tie as 1/2.

    A verdict is for the arm above a probability of 0.5, and a tie at exactly 0.5. The interval is
    over prompts: `cluster_bootstrap_difference`.

    Raises:
        ValueError: A probability is not within 0 to 1, or fewer than two prompts have a comparison
            with a verdict in both orders.
    """
    scored = _scored(comparisons)
    clusters = [comparison.cluster for comparison, _ in scored]
    even = values_by_cluster([EVEN] * len(scored), clusters)

    def against_even(values: Sequence[float]) -> Difference:
        return cluster_bootstrap_difference(
            even, values_by_cluster(values, clusters), num_resamples=num_resamples, seed=seed
        )

    verdicts = [(_verdict(first), _verdict(second)) for _, (first, second) in scored]
    consistent = [float(first == second != EVEN) for first, second in verdicts]
    return WinRate(
        rate=against_even([(first + second) / 2 for first, second in verdicts]),
        soft_rate=against_even([(first + second) / 2 for _, (first, second) in scored]),
        swap_consistency=cluster_bootstrap_mean(
            values_by_cluster(consistent, clusters), num_resamples=num_resamples, seed=seed
        ),
        num_comparisons=len(comparisons),
        num_unscored=len(comparisons) - len(scored),
        num_ties=sum(EVEN in pair for pair in verdicts),
        num_inconsistent=sum(sorted(pair) == [0.0, 1.0] for pair in verdicts),
    )


def length_controlled_win_rate(
    comparisons: Sequence[Comparison], *, num_resamples: int, seed: int
) -> LengthControlledWinRate:
    """The win rate that is left when length is taken out: sigmoid(theta).

    P(arm is better) = sigmoid(theta + phi tanh(d / sd(d))), d the difference in length, fitted to
    the verdicts that `win_rate` counts, the mean of both orders: length-controlled AlpacaEval,
    Dubois et al. (2024), https://arxiv.org/abs/2404.04475, without its term for how hard an
    instruction is, which is estimated from many models. The interval is that of a bootstrap over
    prompts, each resample fitted anew.

    Raises:
        ValueError: As `win_rate`, or every response of the arm is longer by the same number of
            tokens, so that nothing tells the arm from its length.
        ArithmeticError: A fit did not converge.
    """
    scored = _scored(comparisons)
    clusters, cluster_N = np.unique([c.cluster for c, _ in scored], return_inverse=True)
    num_clusters = len(clusters)
    if num_clusters < 2:
        raise ValueError(f"{num_clusters} prompt with a verdict: an interval needs two at least")
    y_N = np.array([(_verdict(first) + _verdict(second)) / 2 for _, (first, second) in scored])
    lengths_N = np.array([comparison.length_difference for comparison, _ in scored])
    x_N = _scaled_lengths(lengths_N)
    ((theta, phi),) = _fit(x_N, y_N, np.ones((1, len(x_N))))
    rng = np.random.default_rng(seed)
    draws_RK = cluster_draws(rng, num_clusters, num_resamples=num_resamples)
    num_at_once = max(1, CHUNK // len(x_N))
    fits_R2 = np.concatenate(
        [
            _fit(x_N, y_N, draws_RK[start : start + num_at_once, cluster_N])
            for start in range(0, num_resamples, num_at_once)
        ]
    )
    ci_low, ci_high = np.quantile(fits_R2[:, 1], interval_quantiles(num_clusters))
    return LengthControlledWinRate(
        rate=difference_of_resamples(
            EVEN,
            float(expit(theta)),
            expit(fits_R2[:, 0]) - EVEN,
            num_clusters=num_clusters,
            num_responses=2 * len(scored),
            negligible=NEGLIGIBLE_SPREAD,
        ),
        length_effect=Interval(
            float(phi), float(ci_low), float(ci_high), num_clusters, len(scored)
        ),
        num_longer=int((lengths_N > 0).sum()),
    )


def _scored(
    comparisons: Sequence[Comparison],
) -> list[tuple[Comparison, tuple[float, float]]]:
    scored = []
    for comparison in comparisons:
        first, second = comparison.shown_first, comparison.shown_second
        if not all(0 <= p <= 1 for p in (first, second) if p is not None):
            raise ValueError(
                f"expected probabilities from 0 to 1 of prompt {comparison.cluster!r}, found "
                f"{first} and {second}"
            )
        if first is not None and second is not None:
            scored.append((comparison, (first, second)))
    if not scored:
        raise ValueError(
            f"none of {len(comparisons)} comparisons has a verdict in both orders: look at what "
            "the judge answers"
        )
    return scored


def _verdict(probability: float) -> float:
    """1 for the arm, 0 for the base, `EVEN` for neither."""
    return float((1 + np.sign(probability - EVEN)) / 2)


def _scaled_lengths(lengths_N: Array) -> Array:
    if not np.isfinite(lengths_N).all():
        raise ValueError("expected finite differences in length")
    if not lengths_N.any():
        return lengths_N
    if np.ptp(lengths_N) == 0:
        raise ValueError(
            f"every response of the arm differs in length by {lengths_N[0]} tokens: the rate at "
            "equal lengths cannot be known"
        )
    scaled_N: Array = np.tanh(lengths_N / lengths_N.std())
    return scaled_N


def _fit(x_N: Array, y_N: Array, weights_RN: Array) -> Array:
    """Theta and phi of each row of weights: `(R, 2)`."""
    fits_R2 = np.zeros((len(weights_RN), 2))
    ridge_2 = np.array([LEVEL_RIDGE, LENGTH_RIDGE])
    weights_RN = weights_RN / weights_RN.sum(axis=1, keepdims=True)
    features_N2 = np.stack([np.ones_like(x_N), x_N], axis=1)
    products_N4 = (features_N2[:, :, None] * features_N2[:, None, :]).reshape(-1, 4)
    # No line search: from zero, where the curvature is largest, steps fall short and do not
    # overshoot.
    for _ in range(MAX_NEWTON_STEPS):
        predicted_RN = expit(fits_R2 @ features_N2.T)
        gradients_R2 = (weights_RN * (predicted_RN - y_N)) @ features_N2 + ridge_2 * fits_R2
        if np.abs(gradients_R2).max() < GRADIENT_TOLERANCE:
            return fits_R2
        curvature_RN = weights_RN * predicted_RN * (1 - predicted_RN)
        precision_R22 = (curvature_RN @ products_N4).reshape(-1, 2, 2) + np.diag(ridge_2)
        fits_R2 = fits_R2 - np.linalg.solve(precision_R22, gradients_R2[:, :, None])[:, :, 0]
    raise ArithmeticError(
        f"no convergence in {MAX_NEWTON_STEPS} Newton steps of {len(x_N)} comparisons"
    )
