"""Bradley-Terry models with features: a known answer, invariances, and planted weights."""

import math

import numpy as np
import pytest

from charactertrain.ranking import utilities_from_probabilities
from charactertrain.statistics.bradley_terry import (
    RIDGE,
    LinearPreference,
    fit,
    utilities_of_tables,
)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_weight_of_one_feature_is_the_logit_of_the_mean_label() -> None:
    # Four pairs that differ by 1, weights 1, 1, 1, 5: the mean label is (1 + 1 + 0 + 4) / 8.
    found = fit([[1.0]] * 4, [1.0, 1.0, 0.0, 0.8], [1.0, 1.0, 1.0, 5.0])
    (weight,) = found.weights_F
    assert weight == pytest.approx(math.log(3), abs=0.01)
    # With the prior, exactly: the slope of the likelihood is that of the prior.
    assert sigmoid(weight) + RIDGE * weight == pytest.approx(0.75, abs=1e-5)


def test_a_feature_of_another_scale_has_a_weight_of_the_inverse_scale() -> None:
    (weight,) = fit([[2.0], [2.0]], [0.75, 0.75], [1.0, 1.0]).weights_F
    assert weight == pytest.approx(math.log(3) / 2, abs=0.01)


def test_a_feature_that_tells_nothing_has_no_weight() -> None:
    first, second = fit([[1.0, 0.0], [0.0, 1.0]], [0.9, 0.5], [1.0, 1.0]).weights_F
    assert first > 1.0
    assert second == pytest.approx(0.0, abs=1e-6)


def test_pairs_told_the_other_way_round_give_the_same_weights() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(size=(40, 3))
    targets, counts = rng.uniform(size=40), rng.uniform(0.5, 2.0, size=40)
    plain = fit(differences, targets, counts)
    turned = rng.uniform(size=40) < 0.5
    swapped = fit(
        np.where(turned[:, None], -differences, differences),
        np.where(turned, 1 - targets, targets),
        counts,
    )
    assert swapped.weights_F == pytest.approx(plain.weights_F, abs=1e-4)


def test_planted_weights_are_found_from_soft_labels() -> None:
    rng = np.random.default_rng(2)
    planted = np.array([1.5, -0.7, 0.0, 0.3])
    differences = rng.normal(size=(500, 4))
    targets = 1 / (1 + np.exp(-differences @ planted))
    found = fit(differences, targets, np.ones(500))
    assert found.weights_F == pytest.approx(planted, abs=0.02)


def test_planted_weights_are_found_from_drawn_labels() -> None:
    rng = np.random.default_rng(3)
    planted = np.array([1.0, -0.5])
    differences = rng.normal(size=(20_000, 2))
    targets = rng.uniform(size=20_000) < 1 / (1 + np.exp(-differences @ planted))
    found = fit(differences, targets, np.ones(20_000))
    # Standard errors are near 0.02.
    assert found.weights_F == pytest.approx(planted, abs=0.08)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1000.0])
def test_the_scale_of_sample_weights_changes_nothing(scale: float) -> None:
    rng = np.random.default_rng(4)
    differences, targets = rng.normal(size=(30, 2)), rng.uniform(size=30)
    counts = rng.uniform(0.5, 2.0, size=30)
    plain = fit(differences, targets, counts)
    scaled = fit(differences, targets, scale * counts)
    assert scaled.weights_F == pytest.approx(plain.weights_F, abs=1e-6)


def test_a_pair_of_double_weight_is_that_pair_twice() -> None:
    differences, targets = [[1.0, 0.5], [-0.3, 1.0], [0.2, -0.8]], [0.9, 0.2, 0.6]
    weighted = fit(differences, targets, [2.0, 1.0, 1.0])
    repeated = fit([differences[0], *differences], [targets[0], *targets], [1.0] * 4)
    assert weighted.weights_F == pytest.approx(repeated.weights_F, abs=1e-4)


def test_a_pair_of_no_weight_is_left_out() -> None:
    without = fit([[1.0], [1.0]], [0.9, 0.6], [1.0, 1.0])
    found = fit([[1.0], [1.0], [5.0]], [0.9, 0.6, 0.0], [1.0, 1.0, 0.0])
    assert found.weights_F == pytest.approx(without.weights_F, abs=1e-4)


def test_pairs_that_are_told_apart_without_error_have_finite_weights() -> None:
    (weight,) = fit([[1.0], [2.0], [-1.0]], [1.0, 1.0, 0.0], [1.0] * 3).weights_F
    assert 2.0 < weight < 20.0
    # With extreme features too, where exp would overflow.
    (weight,) = fit([[1e4], [-1e4]], [1.0, 0.0], [1.0] * 2).weights_F
    assert 0.0 < weight < 20.0
    (weight,) = fit([[1e4], [-1e4]], [0.0, 1.0], [1.0] * 2).weights_F
    assert -20.0 < weight < 0.0


def test_margins_by_hand() -> None:
    model = LinearPreference((2.0, -1.0))
    assert model.margins([[1.0, 1.0], [0.5, 3.0], [0.0, 0.0]]) == [1.0, -2.0, 0.0]
    assert model.margins(np.zeros((0, 2))) == []


@pytest.mark.parametrize(
    ("differences", "targets", "weights"),
    [
        ([[1.0], [2.0]], [0.5], [1.0, 1.0]),
        ([[1.0], [2.0]], [0.5, 0.5], [1.0]),
        (np.zeros((0, 2)), [], []),
    ],
)
def test_rows_labels_and_weights_that_are_not_as_many_are_refused(
    differences: list[list[float]], targets: list[float], weights: list[float]
) -> None:
    with pytest.raises(ValueError, match="as many rows, labels and weights"):
        fit(differences, targets, weights)


@pytest.mark.parametrize("differences", [[1.0, 2.0], [[1.0], [math.nan]], [[1.0], [math.inf]]])
def test_features_that_are_no_finite_rows_are_refused(differences: list[float]) -> None:
    with pytest.raises(ValueError, match="finite rows of features"):
        fit(differences, [0.5, 0.5], [1.0, 1.0])
    with pytest.raises(ValueError, match="finite rows of features"):
        LinearPreference((1.0,)).margins(differences)


def test_utilities_of_tables_by_hand() -> None:
    # Three wins to one: odds of 3. Twice as many of both: the same.
    wins_2WW = np.array([[[0.0, 3.0], [1.0, 0.0]], [[0.0, 2.0], [6.0, 0.0]]])
    found = utilities_of_tables(wins_2WW)
    half = math.log(3) / 2
    assert found == pytest.approx(np.array([[half, -half], [-half, half]]), abs=0.005)


def test_utilities_of_tables_agree_with_those_of_one_prompts_candidates() -> None:
    rng = np.random.default_rng(5)
    probabilities = rng.uniform(0.2, 0.8, size=(5, 5))
    probabilities = np.tril(probabilities, -1) + np.triu(1 - probabilities.T, 1)
    # There the prior is per comparison and not per mean of ten.
    expected = utilities_from_probabilities(probabilities, prior=10 * RIDGE / 5)
    (found,) = utilities_of_tables(probabilities[None])
    assert found == pytest.approx(expected, abs=1e-4)


def test_utilities_of_tables_agree_with_weights_of_features() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.integers(0, 4, size=(2, 300))
    first, second = first[first != second], second[first != second]
    wins = rng.uniform(size=len(first))
    table = np.zeros((4, 4))
    np.add.at(table, (first, second), wins)
    np.add.at(table, (second, first), 1 - wins)
    # Features of twice the size have weights of half, on which the prior of 4 items is as strong.
    differences = 2 * (np.eye(4)[first] - np.eye(4)[second])
    weights = np.array(fit(differences, wins, np.ones(len(wins))).weights_F)
    (found,) = utilities_of_tables(table[None])
    assert found == pytest.approx(2 * (weights - weights.mean()), abs=1e-3)


def test_utilities_of_an_item_that_wins_everything_are_finite() -> None:
    wins = np.array([[0.0, 9.0, 9.0], [0.0, 0.0, 5.0], [0.0, 4.0, 0.0]])
    ((best, second, third),) = utilities_of_tables(wins[None])
    assert 4 < best < 20
    assert second > third


def test_utilities_of_a_table_without_comparisons_are_refused() -> None:
    with pytest.raises(ValueError, match="a comparison at least"):
        utilities_of_tables(np.zeros((2, 3, 3)))
