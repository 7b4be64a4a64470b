"""From two responses' scores to the probability that one is better, and from those to a ranking.

Shapes: K candidates, responses to one prompt.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from charactertrain.seeds import derive_seed

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
    return float(expit((score_a - score_b) / temperature))


def judge_probability(logprob_a: float, logprob_b: float) -> float:
    """Probability of the letter A among the two letters: exp(a) / (exp(a) + exp(b)).

    A letter that the judge's top log-probabilities leave out may be -inf, but not both.
    """
    if max(logprob_a, logprob_b) == -math.inf:
        raise ValueError("the judge gave neither letter any probability: reject the judgement")
    return float(expit(logprob_a - logprob_b))


def choice_probabilities(logprobs: Sequence[float]) -> list[float]:
    """Probability of each choice among those given: exp(l_i) / sum_j exp(l_j).

    Args:
        logprobs: In nats; what they leave to other tokens cancels. -inf for a choice that the
            judge's top log-probabilities leave out, but not for all.
    """
    top = max(logprobs, default=-math.inf)
    if top == -math.inf or not all(logprob < math.inf for logprob in logprobs):
        raise ValueError(
            "expected log-probabilities, at least one above -inf, found "
            f"{list(logprobs)}: reject the judgement"
        )
    weights = [math.exp(logprob - top) for logprob in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def judge_probability_with_tie(logprob_a: float, logprob_b: float, logprob_tie: float) -> float:
    """Probability that A is better, a tie counted as half a win for each: P(A) + P(tie) / 2.

    Log-probabilities, in nats, and what may be -inf as in `choice_probabilities`.
    """
    p_a, _, p_tie = choice_probabilities([logprob_a, logprob_b, logprob_tie])
    return p_a + p_tie / 2


def judge_verdict_with_tie(logprob_a: float, logprob_b: float, logprob_tie: float) -> float:
    """The probability that A is better, but exactly 0.5 where the likeliest letter is the tie.

    For verdicts, which a hair's breadth between two unlikely letters is not. Arguments as in
    `judge_probability_with_tie`.
    """
    if logprob_tie >= max(logprob_a, logprob_b):
        return 0.5
    return judge_probability_with_tie(logprob_a, logprob_b, logprob_tie)


def luce_probabilities(shares: Sequence[float]) -> list[list[float]]:
    """Pair probabilities from how likely each candidate is to be named best: s_i / (s_i + s_j).

    Luce's choice axiom (1959, Individual Choice Behavior): the odds of i against j do not depend
    on what else is on offer. So the first choice of the model of Plackett (1975),
    https://doi.org/10.2307/2346567, gives those of every pair.

    Args:
        shares: At least 0; they need not add up to 1.

    Returns:
        [i][j] is the probability that i is better than j: 0.5 where neither has a share, and on
        the diagonal.
    """
    shares_K = _checked_shares(shares)
    totals_KK = shares_K[:, None] + shares_K[None, :]
    probabilities_KK = np.full(totals_KK.shape, 0.5)
    np.divide(shares_K[:, None], totals_KK, out=probabilities_KK, where=totals_KK > 0)
    return _rows(probabilities_KK)


def higher_score_probability(shares_a: Sequence[float], shares_b: Sequence[float]) -> float:
    """Probability that A scores higher than B, an equal score counted as half.

    P(S_a > S_b) + P(S_a = S_b) / 2 for independent scores: the A of Vargha and Delaney (2000),
    https://doi.org/10.3102/10769986025002101.

    Args:
        shares_a: Of each score of the scale, lowest first; normalised here.
        shares_b: Of the same scores.
    """
    if len(shares_a) != len(shares_b):
        raise ValueError(
            f"expected shares of the same scores, found {len(shares_a)} and {len(shares_b)}"
        )
    a, b = _checked_shares(shares_a), _checked_shares(shares_b)
    if not (a.sum() > 0 and b.sum() > 0):
        raise ValueError("no score has a share: reject the judgement")
    higher = a @ (np.cumsum(b) - b / 2) / (a.sum() * b.sum())
    return min(1.0, float(higher))  # which rounding may pass


def mean_probabilities(matrices: Sequence[ArrayLike]) -> list[list[float]]:
    """The mean of several judges' or orders' pair probabilities, element by element.

    Args:
        matrices: As `utilities_from_probabilities` reads them, of the same K candidates. A pair
            that one of them did not compare is nan: another set of judges would be no mean.
    """
    arrays = [np.array(matrix, float) for matrix in matrices]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1 or len(shapes[0]) != 2 or len(set(shapes[0])) != 1:
        raise ValueError(f"expected square matrices of one size, at least one, found {shapes}")
    return _rows(np.mean(arrays, axis=0))


def balanced_permutations(
    num_items: int, num_permutations: int, *, seed: int
) -> list[tuple[int, ...]]:
    """Random orders in which to show a list to a judge, balanced over positions.

    Each block of `num_items` orders is the cyclic shifts of a random order, themselves in random
    order: every item stands once at every position, so that a judge who chooses by position alone
    gives all the same mean share over a block. In a block that is cut short no item stands twice
    at the same position. Which item follows which is random between blocks only.

    Args:
        num_items: Length of the list, at least 1.
        num_permutations: Best a multiple of `num_items`.
        seed: The same gives the same orders; more of them begin with those of fewer.

    Returns:
        Orders: [position] is the index of the item that stands there.
    """
    if num_items < 1 or num_permutations < 1:
        raise ValueError(
            f"expected at least 1 item and 1 order, found {num_items} and {num_permutations}"
        )
    permutations: list[tuple[int, ...]] = []
    for block in range(math.ceil(num_permutations / num_items)):
        rng = np.random.default_rng(derive_seed(seed, "permutations", block))
        order = tuple(int(item) for item in rng.permutation(num_items))
        permutations += [order[shift:] + order[:shift] for shift in rng.permutation(num_items)]
    return permutations[:num_permutations]


def swap_consistency(pairs: Iterable[tuple[float, float]]) -> float:
    """Share of pairs in which the same response wins in both orders, 0 to 1.

    Args:
        pairs: For each pair the probability of the letter A, with the first response shown as A
            and with the second shown as A. A probability of exactly 0.5 is a win for neither, so
            such a pair is not consistent.
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
        predicted_KK = compared_KK * expit(utilities_K[:, None] - utilities_K[None, :])
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


def _checked_shares(shares: Sequence[float]) -> Array:
    if not all(0 <= share < math.inf for share in shares):
        raise ValueError(f"expected shares of at least 0, found {list(shares)}")
    return np.array(shares, float)


def _rows(matrix_KK: Array) -> list[list[float]]:
    return [[float(value) for value in row] for row in matrix_KK]
