"""How well predicted preference probabilities agree with labels.

Labels (`targets`) may be soft: the probability, 0 to 1, that the first response is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from charactertrain.statistics.resampling import interval_quantiles, resampled

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ReliabilityBin:
    """One point of a reliability diagram."""

    confidence: float
    """Mean predicted probability in the bin."""
    frequency: float
    """Mean target in the bin."""
    count: int


def reliability_bins(
    probabilities: ArrayLike, targets: ArrayLike, *, num_bins: int
) -> list[ReliabilityBin]:
    """Predictions in bins of equal width over [0, 1], low to high; empty bins are left out."""
    predicted, target = _checked(probabilities, targets)
    # 1.0 belongs to the last bin.
    bins = np.minimum((predicted * num_bins).astype(int), num_bins - 1)
    return [
        ReliabilityBin(
            confidence=float(predicted[bins == index].mean()),
            frequency=float(target[bins == index].mean()),
            count=int((bins == index).sum()),
        )
        for index in np.unique(bins)
    ]


def expected_calibration_error(
    probabilities: ArrayLike, targets: ArrayLike, *, num_bins: int
) -> float:
    """Mean over predictions of |frequency - confidence| of their bin, 0 to 1.

    Eq. 3 of Guo et al. (2017), https://arxiv.org/abs/1706.04599, for the probability of the first
    response in place of the confidence of the predicted class.
    """
    bins = reliability_bins(probabilities, targets, num_bins=num_bins)
    gaps = sum(abs(bin_.frequency - bin_.confidence) * bin_.count for bin_ in bins)
    return gaps / sum(bin_.count for bin_ in bins)


def calibration_error_interval(
    probabilities: ArrayLike,
    targets: ArrayLike,
    clusters: Sequence[str],
    *,
    num_bins: int,
    num_resamples: int,
    seed: int,
) -> tuple[float, float]:
    """95 % interval of `expected_calibration_error` under resampled clusters.

    The percentile interval of a measure that cannot be below 0 lies too high where pairs are few:
    noise adds to every resample's error. It is turned round the estimate (the basic bootstrap of
    Davison and Hinkley, 1997, section 5.2.1, https://doi.org/10.1017/CBO9780511802843), and cut
    at 0. In simulation with hard labels and 15 bins it held a true error of 0.1 in 94 % of samples
    of 400 predictions and in 79 % of samples of 60. Near 0 the error itself is overestimated, by
    the noise of the bins, and so is its interval: a well calibrated model needs many pairs to show
    that it is.

    Args:
        probabilities: As `expected_calibration_error` reads them.
        targets: Likewise.
        clusters: What each prediction belongs to, such as its prompt.
        num_bins: Likewise.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    predicted, target = _checked(probabilities, targets)
    names = sorted(set(clusters))
    place = {name: index for index, name in enumerate(names)}
    rows = np.array([place[name] for name in clusters])
    bins = np.minimum((predicted * num_bins).astype(int), num_bins - 1)
    # Per bin and cluster, the sum of target - probability: an error is a sum of these.
    gaps_BK = np.zeros((num_bins, len(names)))
    np.add.at(gaps_BK, (bins, rows), target - predicted)
    counts_1K = np.bincount(rows, minlength=len(names))[None].astype(float)
    sums = resampled(np.concatenate([gaps_BK, counts_1K]), num_resamples=num_resamples, seed=seed)
    errors_R = np.abs(sums[:-1]).sum(axis=0) / sums[-1]
    estimate = expected_calibration_error(predicted, target, num_bins=num_bins)
    low, high = np.quantile(errors_R, interval_quantiles(len(names)))
    return float(max(0.0, 2 * estimate - high)), float(max(0.0, 2 * estimate - low))


def brier_score(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean squared difference of probability and target, 0 to 1 (Brier 1950)."""
    predicted, target = _checked(probabilities, targets)
    return float(np.square(predicted - target).mean())


def negative_log_likelihood(probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Mean cross-entropy of the targets, in nats; inf where a prediction of 0 or 1 was wrong."""
    predicted, target = _checked(probabilities, targets)
    return float((_cross_term(target, predicted) + _cross_term(1 - target, 1 - predicted)).mean())


def fit_temperature(margins: ArrayLike, targets: ArrayLike) -> float:
    """The T at which sigma(margin / T) has the lowest negative log-likelihood.

    Temperature scaling, Guo et al. (2017), section 4.2, https://arxiv.org/abs/1706.04599. A result
    of `MIN_TEMPERATURE` or `MAX_TEMPERATURE` means that no finite positive T is best: the margins
    separate the targets without error, or know nothing about them.

    Args:
        margins: Reward of the first response minus reward of the second.
        targets: One label per margin.

    Raises:
        ValueError: All margins are zero, so that every temperature is as good.
    """
    margin, target = _checked_margins(margins, targets)
    if not margin.any():
        raise ValueError(f"cannot fit a temperature: all {margin.size} margins are zero")

    def slope(inverse_temperature: float) -> float:
        return float(margin @ (expit(inverse_temperature * margin) - target))

    # The likelihood is convex in 1/T, so its slope crosses zero once: bisect, in log(1/T).
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def probabilities(margins: ArrayLike, temperature: float) -> list[float]:
    """P(the first is better) of each margin: sigma(margin / temperature)."""
    values: list[float] = expit(np.asarray(margins, dtype=np.float64) / temperature).tolist()
    return values


def accuracy(margins: ArrayLike, targets: ArrayLike) -> float:
    """Share of decided pairs (target not 0.5) whose margin has the target's sign, 0 to 1.

    A margin of 0 agrees with neither, as in `objectives.preference`.

    Raises:
        ValueError: No pair is decided.
    """
    margin, target = _checked_margins(margins, targets)
    decided = target != 0.5
    if not decided.any():
        raise ValueError(f"accuracy of {target.size} pairs is undefined: all are labelled 0.5")
    return float((np.sign(margin) == np.sign(target - 0.5))[decided].mean())


def _checked(probabilities: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    predicted, target = np.asarray(probabilities, float), np.asarray(targets, float)
    _check_same_length(predicted, target)
    _check_unit_interval(predicted, "probabilities")
    _check_unit_interval(target, "targets")
    return predicted, target


def _checked_margins(margins: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    margin, target = np.asarray(margins, float), np.asarray(targets, float)
    _check_same_length(margin, target)
    _check_unit_interval(target, "targets")
    if not np.isfinite(margin).all():
        raise ValueError(f"margins must be finite; found {margin[~np.isfinite(margin)][0]}")
    return margin, target


def _check_same_length(predicted: Array, target: Array) -> None:
    if predicted.ndim != 1 or predicted.shape != target.shape or predicted.size == 0:
        raise ValueError(
            f"expected two lists of one length, not empty; shapes are {predicted.shape} and "
            f"{target.shape}"
        )


def _check_unit_interval(values: Array, name: str) -> None:
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        raise ValueError(f"{name} must be 0 to 1; found {values[outside][0]}")


def _cross_term(target: Array, predicted: Array) -> Array:
    # 0 log 0 is 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(target > 0, -target * np.log(predicted), 0.0)
