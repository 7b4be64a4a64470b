"""From two responses' scores to the probability that one is better, and from those to a ranking.

Shapes: K candidates, responses to one prompt.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_NEWTON_STEPS = 50
GRADIENT_TOLERANCE = 1e-9
TIE_DECIMALS = 6
"""Utilities that agree to this many decimals are tied: the rest is rounding of the fit."""

Array = NDArray[np.float64]


def contrast_score(
    logprobs_with_trait: Sequence[float], logprobs_without_trait: Sequence[float]
) -> float:
    """How much likelier a response is when the trait is shown: (1/T) sum of log-ratios.

    Log-probabilities, and the score, in nats per token of the same T tokens.
    """
    if len(logprobs_with_trait) != len(logprobs_without_trait) or not logprobs_with_trait:
        raise ValueError(
            "expected the log-probabilities of the same tokens, at least one, with and without "
            f"the trait; found {len(logprobs_with_trait)} and {len(logprobs_without_trait)}"
        )
    pairs = zip(logprobs_with_trait, logprobs_without_trait, strict=True)
    return math.fsum(shown - hidden for shown, hidden in pairs) / len(logprobs_with_trait)


def pair_probability_from_contrast(score_a: float, score_b: float, *, temperature: float) -> float:
    """Probability that response A fits the trait better: sigma((a - b) / temperature).

    Args:
        score_a: Contrast score of A, in nats per token.
        score_b: Contrast score of B.
        temperature: In nats per token: the difference at which A is preferred with 0.73.
    """
    return _sigmoid((score_a - score_b) / temperature)


def judge_probability(logprob_a: float, logprob_b: float) -> float:
    """Probability of the letter A among the two letters: exp(a) / (exp(a) + exp(b)).

    A letter that the judge's top log-probabilities leave out may be -inf, but not both.
    """
    if max(logprob_a, logprob_b) == -math.inf:
        raise ValueError("the judge gave neither letter any probability: reject the judgement")
    return _sigmoid(logprob_a - logprob_b)


def debiased_probability(p_a_first_order: float, p_a_swapped_order: float) -> float:
    """Probability that the first response is better, averaged over both orders.

    A constant preference for one letter cancels: a judge who always says A gets 0.5.

    Args:
        p_a_first_order: Probability of the letter A with the first response shown as A.
        p_a_swapped_order: Probability of the letter A with the first response shown as B.
    """
    return (p_a_first_order + (1 - p_a_swapped_order)) / 2


def swap_consistency(pairs: Iterable[tuple[float, float]]) -> float:
    """Share of pairs in which the same response wins in both orders, 0 to 1.

    Args:
        pairs: For each pair the two arguments of `debiased_probability`. A probability of exactly
            0.5 is a win for neither, so such a pair is not consistent.
    """
    consistent = [(first - 0.5) * (0.5 - swapped) > 0 for first, swapped in pairs]
    if not consistent:
        raise ValueError("swap consistency of no pairs is undefined")
    return sum(consistent) / len(consistent)


def utilities_from_probabilities(probabilities_KK: ArrayLike, *, prior: float) -> list[float]:
    """Bradley-Terry utilities of K candidates, in nats, mean zero.

    They maximise sum_{i != j} p_ij log sigma(u_i - u_j) - (prior / 2) sum_i u_i^2: the likelihood
    of Bradley and Terry (1952), https://doi.org/10.2307/2334029, with probabilities for wins, and a
    Gaussian prior that keeps utilities finite when a candidate wins every comparison.

    Args:
        probabilities_KK: [i][j] is the probability that i is better than j, and [j][i] the rest to
            1. nan in both where the two were not compared. The diagonal is not read.
        prior: Precision (1 / variance) of the Gaussian, above 0. Common: 0.01 to 0.1.

    Raises:
        ValueError: The matrix or the prior is not as described.
        ArithmeticError: The fit did not converge, which only a vanishing prior brings about.
    """
    if not prior > 0:
        raise ValueError(f"prior must be above 0, found {prior}: utilities would not be finite")
    wins_KK, compared_KK = _wins(np.array(probabilities_KK, float))
    utilities_K = np.zeros(len(wins_KK))
    for _ in range(MAX_NEWTON_STEPS):
        predicted_KK = compared_KK * _sigmoids(utilities_K[:, None] - utilities_K[None, :])
        gradient_K = (wins_KK - predicted_KK).sum(axis=1) - prior * utilities_K
        if np.abs(gradient_K).max() < GRADIENT_TOLERANCE:
            return [float(utility) for utility in utilities_K - utilities_K.mean()]
        curvature_KK = predicted_KK * (compared_KK - predicted_KK)
        precision_KK = np.diag(curvature_KK.sum(axis=1) + prior) - curvature_KK
        # No line search: the curvature is largest at zero, where we start, so that steps fall short
        # rather than overshoot. 36,000 random matrices with priors from 1 to 1e-8 took 19 at most.
        utilities_K = utilities_K + np.linalg.solve(precision_KK, gradient_K)
    raise ArithmeticError(
        f"no convergence in {MAX_NEWTON_STEPS} Newton steps with prior {prior}: raise the prior"
    )


def ranking_from_utilities(ids: Sequence[str], utilities: Sequence[float]) -> list[str]:
    """The ids, best first; utilities equal to six decimals are ordered by id."""
    pairs = zip(utilities, ids, strict=True)
    ordered = sorted((-round(utility, TIE_DECIMALS), id_) for utility, id_ in pairs)
    return [id_ for _, id_ in ordered]


def _wins(probabilities_KK: Array) -> tuple[Array, Array]:
    if probabilities_KK.ndim != 2 or len(set(probabilities_KK.shape)) != 1:
        raise ValueError(f"expected a square matrix, found shape {probabilities_KK.shape}")
    np.fill_diagonal(probabilities_KK, np.nan)
    missing_KK = np.isnan(probabilities_KK)
    wins_KK = np.where(missing_KK, 0.0, probabilities_KK)
    totals_KK = np.where(missing_KK & missing_KK.T, 1.0, wins_KK + wins_KK.T)
    valid_KK = (wins_KK >= 0) & (np.abs(totals_KK - 1) < 1e-6) & (missing_KK == missing_KK.T)
    if not valid_KK.all():
        i, j = (int(index) for index in np.argwhere(~valid_KK)[0])
        raise ValueError(
            f"expected probabilities of {i} over {j} and of {j} over {i} that add up to 1, found "
            f"{probabilities_KK[i, j]} and {probabilities_KK[j, i]}"
        )
    # To the last bit, so that the level of the utilities does not drift.
    wins_KK = np.where(missing_KK, 0.0, 0.5 * (wins_KK + 1 - wins_KK.T))
    return wins_KK, (~missing_KK).astype(float)


def _sigmoid(value: float) -> float:
    # exp of a large positive number overflows; tanh does not.
    return 0.5 * (1 + math.tanh(0.5 * value))


def _sigmoids(values: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * values))
