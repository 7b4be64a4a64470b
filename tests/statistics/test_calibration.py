"""Calibration measures: by hand, and a temperature that is known."""

import math

import numpy as np
import pytest

from charactertrain.statistics.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    ReliabilityBin,
    accuracy,
    brier_score,
    calibration_error_interval,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_bins,
)

PROBABILITIES = [0.125, 0.25, 0.5, 0.75, 1.0]
TARGETS = [0.0, 0.5, 1.0, 1.0, 0.75]


def test_reliability_bins_by_hand() -> None:
    # Two bins: 0.125 and 0.25 below one half; 0.5, 0.75 and 1.0 from there on.
    low, high = reliability_bins(PROBABILITIES, TARGETS, num_bins=2)
    assert low == ReliabilityBin(confidence=0.1875, frequency=0.25, count=2)
    assert (high.confidence, high.count) == (0.75, 3)
    assert high.frequency == pytest.approx(2.75 / 3)


def test_reliability_bins_leave_out_the_empty_and_keep_the_last_closed() -> None:
    bins = reliability_bins([0.0, 1.0], [0.0, 1.0], num_bins=10)
    assert bins == [ReliabilityBin(0.0, 0.0, 1), ReliabilityBin(1.0, 1.0, 1)]


def test_expected_calibration_error_by_hand() -> None:
    # |0.25 - 0.1875| * 2/5 + |2.75/3 - 0.75| * 3/5 = 0.025 + 0.1.
    error = expected_calibration_error(PROBABILITIES, TARGETS, num_bins=2)
    assert error == pytest.approx(0.125)


def test_expected_calibration_error_does_not_cancel_across_bins() -> None:
    assert expected_calibration_error([0.25, 0.75], [0.0, 1.0], num_bins=2) == 0.25
    assert expected_calibration_error([0.25, 0.75], [0.0, 1.0], num_bins=1) == 0.0


def test_brier_score_by_hand() -> None:
    # 1/64 + 1/16 + 1/4 + 1/16 + 1/16 = 29/64.
    assert brier_score(PROBABILITIES, TARGETS) == pytest.approx(29 / 64 / 5)


def test_negative_log_likelihood_by_hand() -> None:
    # log 4 for a missed 1 at 1/4; half of log 4 and half of log(4/3) for a target of one half.
    value = negative_log_likelihood([0.25, 0.25], [1.0, 0.5])
    assert value == pytest.approx((math.log(4) + 0.5 * math.log(4) + 0.5 * math.log(4 / 3)) / 2)


def test_negative_log_likelihood_of_certain_predictions() -> None:
    assert negative_log_likelihood([0.0, 1.0], [0.0, 1.0]) == 0.0
    assert negative_log_likelihood([0.0, 1.0], [0.0, 0.9]) == math.inf


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_fit_temperature_finds_the_one_that_made_the_targets(temperature: float) -> None:
    margins = np.linspace(-4.0, 5.0, 31)
    targets = 1 / (1 + np.exp(-margins / temperature))
    assert fit_temperature(margins, targets) == pytest.approx(temperature, rel=1e-9)


def test_fit_temperature_by_hand() -> None:
    # Margin 2 is right three times of four: sigma(2 / T) = 3/4, so T = 2 / log 3.
    fitted = fit_temperature([2.0] * 4, [1.0, 1.0, 1.0, 0.0])
    assert fitted == pytest.approx(2 / math.log(3), rel=1e-9)


def test_fit_temperature_is_the_minimum_of_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(size=200) * 3
    targets = (rng.random(200) < 1 / (1 + np.exp(-margins / 2))).astype(float)

    def loss(temperature: float) -> float:
        return negative_log_likelihood(1 / (1 + np.exp(-margins / temperature)), targets)

    best = fit_temperature(margins, targets)
    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best), loss(1.0))


def test_fit_temperature_scales_with_the_margins() -> None:
    margins, targets = np.array([-1.0, 0.5, 2.0, 3.0]), [0.0, 1.0, 0.0, 1.0]
    expected = 10 * fit_temperature(margins, targets)
    assert fit_temperature(10 * margins, targets) == pytest.approx(expected, rel=1e-9)


def test_fit_temperature_is_the_same_for_pairs_told_the_other_way_round() -> None:
    margins, targets = np.array([-1.0, 0.5, 2.0, 3.0]), np.array([0.0, 1.0, 0.0, 0.8])
    expected = fit_temperature(margins, targets)
    assert fit_temperature(-margins, 1 - targets) == pytest.approx(expected, rel=1e-9)


def test_fit_temperature_stops_at_its_bounds() -> None:
    assert fit_temperature([1.0, -2.0, 1e4], [1.0, 0.0, 1.0]) == MIN_TEMPERATURE
    assert fit_temperature([1.0, -2.0], [0.0, 1.0]) == MAX_TEMPERATURE


def test_fit_temperature_refuses_margins_that_say_nothing() -> None:
    with pytest.raises(ValueError, match="zero"):
        fit_temperature([0.0, 0.0], [0.0, 1.0])


def test_accuracy_by_hand() -> None:
    # Right, right (soft and negative), wrong, a margin without sign, a label without sign.
    assert accuracy([2.0, -1.0, 0.5, 0.0, 9.0], [1.0, 0.4, 0.0, 1.0, 0.5]) == 2 / 4


def test_accuracy_of_undecided_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="all are labelled"):
        accuracy([1.0, 2.0], [0.5, 0.5])


@pytest.mark.parametrize(
    ("probabilities", "targets", "message"),
    [
        ([0.5, math.nan], [0.0, 1.0], "probabilities"),
        ([0.5, 1.5], [0.0, 1.0], "probabilities"),
        ([0.5, 0.5], [0.0, -1.0], "targets"),
        ([0.5], [0.0, 1.0], "one length"),
        ([], [], "not empty"),
    ],
)
def test_measures_refuse_what_is_no_probability(
    probabilities: list[float], targets: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        brier_score(probabilities, targets)


def test_measures_of_margins_refuse_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        accuracy([1.0, math.nan], [1.0, 1.0])


def test_calibration_error_interval_holds_the_true_error() -> None:
    # The truth is sigma(margin / 2), and sigma(margin) is claimed: an error of 0.0957.
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        margins = rng.normal(0, 1.5, 400)
        claimed, truth = (1 / (1 + np.exp(-margins / t)) for t in (1, 2))
        low, high = calibration_error_interval(
            claimed,
            (rng.uniform(size=400) < truth).astype(float),
            [str(index) for index in range(400)],
            num_bins=15,
            num_resamples=200,
            seed=seed,
        )
        held += 0 <= low <= 0.0957 <= high
    assert held >= 86


def test_calibration_error_interval_is_over_clusters() -> None:
    # Two prompts: one whose ten pairs are right as claimed, one whose ten pairs are not.
    claimed, targets = [0.95] * 20, [0.95] * 10 + [0.05] * 10
    options = {"num_bins": 10, "num_resamples": 200, "seed": 1}
    wide = calibration_error_interval(claimed, targets, ["a"] * 10 + ["b"] * 10, **options)
    narrow = calibration_error_interval(
        claimed, targets, [str(index) for index in range(20)], **options
    )
    assert wide == pytest.approx((0.0, 0.9))
    assert narrow[0] > 0.1
    assert narrow[1] < 0.8
