"""Agreement: published examples worked again, and what must hold of any ratings."""

import numpy as np
import pytest

from charactertrain.statistics.agreement import (
    agreement,
    cohen_kappa,
    gwet_coefficient,
    identity_weights,
    quadratic_weights,
)

# Of 12 items by 4 raters, with gaps, in 5 categories: Krippendorff (2011), Computing Krippendorff's
# Alpha-Reliability, section D; the example of Gwet's own implementation too.
RATERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)
# Diagnoses of pregnancy by two abstractors: Gwet (2014), table 2.
ABSTRACTORS = ((13, 0, 0), (0, 20, 7), (0, 4, 56))


def counts(raters: tuple[tuple[int | None, ...], ...], num_categories: int) -> list[list[int]]:
    items = zip(*raters, strict=True)
    return [
        [sum(rating == k for rating in item) for k in range(1, num_categories + 1)]
        for item in items
    ]


def counts_of_table(table: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    found = []
    for i, row in enumerate(table):
        for j, number in enumerate(row):
            found += [[int(k == i) + int(k == j) for k in range(len(table))]] * number
    return found


def test_gwets_ac1_of_four_raters_with_gaps_is_the_published_one() -> None:
    found = gwet_coefficient(counts(RATERS, 5), identity_weights(5))
    assert found == pytest.approx(0.77544, abs=5e-6)


def test_gwets_ac1_and_cohens_kappa_of_the_abstractors_are_the_published_ones() -> None:
    found = gwet_coefficient(counts_of_table(ABSTRACTORS), identity_weights(3))
    assert found == pytest.approx(0.8493, abs=5e-5)
    assert cohen_kappa(ABSTRACTORS, identity_weights(3)) == pytest.approx(0.7964094, abs=5e-8)


def test_gwets_ac1_where_nearly_all_are_of_one_category() -> None:
    # Gwet (2002): 118 of 125 in the first cell, kappa below 0. By hand: p_a = 118 / 125,
    # pi = (123 + 120) / 250 = 0.972, p_e = 2 * 0.972 * 0.028.
    table = ((118, 5), (2, 0))
    chance = 2 * 0.972 * 0.028
    assert gwet_coefficient(counts_of_table(table), identity_weights(2)) == pytest.approx(
        (0.944 - chance) / (1 - chance)
    )
    kappa = cohen_kappa(table, identity_weights(2))
    assert kappa == pytest.approx(-0.0234, abs=5e-5)


def test_weighted_kappa_of_fleiss_cohen_and_everitt() -> None:
    # Large sample standard errors of kappa and weighted kappa (1969), table 1 and its weights.
    table = ((0.53, 0.05, 0.02), (0.11, 0.14, 0.05), (0.01, 0.06, 0.03))
    weights = ((1, 0, 0.4444), (0, 1, 0.6667), (0.4444, 0.6667, 1))
    assert cohen_kappa(table, identity_weights(3)) == pytest.approx(0.429, abs=5e-4)
    assert cohen_kappa(table, weights) == pytest.approx(0.507, abs=5e-4)


def test_weighted_kappa_of_cohen() -> None:
    # Cohen (1968), table 1: disagreements of 1, 3 and 6, in shares of the largest.
    table = ((0.44, 0.07, 0.09), (0.05, 0.20, 0.05), (0.01, 0.03, 0.06))
    weights = ((1, 5 / 6, 0.5), (5 / 6, 1, 0), (0.5, 0, 1))
    assert cohen_kappa(table, identity_weights(3)) == pytest.approx(0.492, abs=5e-4)
    assert cohen_kappa(table, weights) == pytest.approx(0.348, abs=5e-4)


def test_ac2_of_two_raters_by_hand() -> None:
    # Categories first, tie, second; weights 1, 3/4, 0 by distance. Items: (1,1), (1,2), (1,3).
    # p_a = (1 + 0.75 + 0) / 3. pi = (4/6, 1/6, 1/6): sum pi (1 - pi) = 1/2. Sum of weights 6.
    found = gwet_coefficient([[2, 0, 0], [1, 1, 0], [1, 0, 1]], quadratic_weights(3))
    chance = 6 / (3 * 2) * 0.5
    assert found == pytest.approx((1.75 / 3 - chance) / (1 - chance))


def test_quadratic_weights_are_one_on_the_diagonal_and_nought_in_the_corners() -> None:
    assert quadratic_weights(3).tolist() == [[1, 0.75, 0], [0.75, 1, 0.75], [0, 0.75, 1]]


def test_kappa_of_one_category_is_not_defined() -> None:
    assert cohen_kappa(((7, 0), (0, 0)), identity_weights(2)) is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no item has two ratings"):
        gwet_coefficient([[1, 0], [0, 1]], identity_weights(2))
    with pytest.raises(ValueError, match="two categories or more"):
        gwet_coefficient([[2]], identity_weights(1))
    with pytest.raises(ValueError, match="with the shape of the weights"):
        cohen_kappa(((1, 0, 0),), identity_weights(2))


def test_intervals_hold_the_estimate_and_depend_on_no_order() -> None:
    rng = np.random.default_rng(0)
    ratings = [(f"p{index % 30}", rng.integers(0, 3, 2).tolist()) for index in range(90)]
    options = {"num_resamples": 500, "seed": 1}
    found = agreement(ratings, quadratic_weights(3), **options)
    assert found == agreement(ratings[::-1], quadratic_weights(3), **options)
    for interval in (found.gwet, found.kappa, found.share):
        assert interval is not None
        assert interval.ci_low < interval.estimate < interval.ci_high
        assert (interval.num_clusters, interval.num_responses) == (30, 90)
    table = np.zeros((3, 3))
    for _, (first, second) in ratings:
        table[first, second] += 1
    assert found.kappa is not None
    assert found.kappa.estimate == pytest.approx(cohen_kappa(table, quadratic_weights(3)))
    assert found.gwet is not None
    assert found.gwet.estimate == pytest.approx(
        gwet_coefficient(
            [[chosen.count(k) for k in range(3)] for _, chosen in ratings], quadratic_weights(3)
        )
    )


def test_an_interval_of_chance_holds_nought_in_about_19_of_20_studies() -> None:
    held = 0
    for study in range(100):
        rng = np.random.default_rng(study)
        ratings = [(f"p{index // 2}", rng.integers(0, 2, 2).tolist()) for index in range(120)]
        found = agreement(ratings, identity_weights(2), num_resamples=200, seed=study).gwet
        assert found is not None
        held += found.ci_low <= 0 <= found.ci_high
    assert 89 <= held <= 99


def test_one_cluster_has_no_interval_and_three_raters_no_kappa() -> None:
    options = {"num_resamples": 100, "seed": 1}
    assert agreement([("p", [0, 0]), ("p", [0, 1])], identity_weights(2), **options).gwet is None
    found = agreement([("p", [0, 0, 1]), ("q", [1, 1]), ("r", [0])], identity_weights(2), **options)
    assert found.kappa is None
    assert found.gwet is not None
    assert found.gwet.num_clusters == 3
