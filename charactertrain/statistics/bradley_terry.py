"""Bradley-Terry models: on features of responses, and of items by who won against whom.

Those on features are baselines, of what is known of responses besides their texts. A preference
model that orders pairs no better than these has learnt something else than the trait.

Shapes: B pairs, F features, R tables, W items.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

RIDGE = 1e-3
"""Precision of the Gaussian prior on each weight: keeps it finite where pairs are told apart
without error."""

MAX_NEWTON_STEPS = 60
GRADIENT_TOLERANCE = 1e-8
"""Of the mean loss: of 150 items some 1e-6 nats."""


@dataclass(frozen=True)
class LinearPreference:
    """P(first is better) = sigma(w . x), x the difference of the two responses' features."""

    weights_F: tuple[float, ...]

    def margins(self, differences_BF: ArrayLike) -> list[float]:
        """W . x of each pair, in logits."""
        margins: list[float] = (_matrix(differences_BF) @ np.array(self.weights_F)).tolist()
        return margins


def fit(
    differences_BF: ArrayLike, targets_B: ArrayLike, sample_weights_B: ArrayLike
) -> LinearPreference:
    """The weights of the highest likelihood, with a weak Gaussian prior.

    Minimises sum_b s_b [-p_b log sigma(w . x_b) - (1 - p_b) log sigma(-w . x_b)] / sum_b s_b +
    (RIDGE / 2) |w|^2: Bradley and Terry (1952), https://doi.org/10.2307/2334029, with covariates
    for utilities and probabilities for wins.

    Args:
        differences_BF: Features of the first response minus those of the second; scaled to about
            1, as the prior is the same for all.
        targets_B: P(first is better), 0 to 1.
        sample_weights_B: How much each pair counts.
    """
    x_BF, p_B = _matrix(differences_BF), np.asarray(targets_B, float)
    s_B = np.asarray(sample_weights_B, float)
    if not len(x_BF) == len(p_B) == len(s_B) > 0:
        raise ValueError(
            f"expected as many rows, labels and weights, at least one: {len(x_BF)}, {len(p_B)}, "
            f"{len(s_B)}"
        )
    if p_B.ndim != 1 or s_B.ndim != 1 or not ((p_B >= 0) & (p_B <= 1)).all():
        raise ValueError("expected a list of labels from 0 to 1, and a list of weights")
    if not (np.isfinite(s_B).all() and (s_B >= 0).all() and s_B.sum() > 0):
        raise ValueError("expected weights of at least 0, not all of them 0")
    s_B = s_B / s_B.sum()

    def loss(weights_F: Array) -> tuple[float, Array]:
        margins_B = x_BF @ weights_F
        # -log sigma(m) = log(1 + exp(-m)), without overflow.
        losses_B = np.logaddexp(0, -margins_B) + (1 - p_B) * margins_B
        slopes_B = 0.5 * (1 + np.tanh(0.5 * margins_B)) - p_B
        value = s_B @ losses_B + 0.5 * RIDGE * weights_F @ weights_F
        return float(value), x_BF.T @ (s_B * slopes_B) + RIDGE * weights_F

    found = minimize(loss, np.zeros(x_BF.shape[1]), jac=True, method="L-BFGS-B")
    return LinearPreference(tuple(float(weight) for weight in found.x))


def utilities_of_tables(wins_RWW: Array) -> Array:
    """Utilities of the same items under several tables of wins, in nats, mean zero: `(R, W)`.

    `ranking.utilities_from_probabilities` for tables of counts, many at once: a bootstrap has
    thousands. They maximise sum_ij n_ij log sigma(u_i - u_j) / sum_ij n_ij - (RIDGE / 2W) |u|^2:
    by item the prior is as weak as in `fit`, since each of W is in a share 2 / W of comparisons.

    Args:
        wins_RWW: [r][i][j]: how often i won against j, in parts where that was uncertain.

    Raises:
        ValueError: A table has no comparison.
        ArithmeticError: A fit did not converge.
    """
    totals_R = wins_RWW.sum(axis=(1, 2))
    if not (totals_R > 0).all():
        raise ValueError("expected a comparison at least in every table of wins")
    wins_RWW = wins_RWW / totals_R[:, None, None]
    compared_RWW = wins_RWW + wins_RWW.swapaxes(1, 2)
    num_items = wins_RWW.shape[1]
    ridge = RIDGE / num_items
    utilities_RW = np.zeros(wins_RWW.shape[:2])
    for _ in range(MAX_NEWTON_STEPS):
        margins_RWW = utilities_RW[:, :, None] - utilities_RW[:, None, :]
        probabilities_RWW = 0.5 * (1 + np.tanh(0.5 * margins_RWW))
        predicted_RWW = compared_RWW * probabilities_RWW
        gradients_RW = (wins_RWW - predicted_RWW).sum(axis=2) - ridge * utilities_RW
        if np.abs(gradients_RW).max() < GRADIENT_TOLERANCE:
            centred_RW: Array = utilities_RW - utilities_RW.mean(axis=1, keepdims=True)
            return centred_RW
        # From zero, where the curvature is largest, steps fall short and do not overshoot.
        curvature_RWW = predicted_RWW * (1 - probabilities_RWW)
        diagonal_RW = curvature_RWW.sum(axis=2) + ridge
        precision_RWW = diagonal_RW[:, :, None] * np.eye(num_items) - curvature_RWW
        utilities_RW += np.linalg.solve(precision_RWW, gradients_RW[:, :, None])[:, :, 0]
    raise ArithmeticError(f"no convergence in {MAX_NEWTON_STEPS} Newton steps of {num_items} items")


def _matrix(values: ArrayLike) -> Array:
    matrix = np.asarray(values, float)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError(f"expected finite rows of features, found shape {matrix.shape}")
    return matrix
