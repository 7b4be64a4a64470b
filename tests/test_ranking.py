"""Scores to probabilities to utilities to a ranking: by hand, and what must not matter."""

import math

import numpy as np
import pytest

from charactertrain.ranking import (
    contrast_score,
    debiased_probability,
    judge_probability,
    pair_probability_from_contrast,
    ranking_from_utilities,
    swap_consistency,
    utilities_from_probabilities,
)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_contrast_score_by_hand() -> None:
    # (-1 + 2) + (-2 + 2.5) + (-3 + 1.5) = 0 over three tokens, then 1.5 over two.
    assert contrast_score([-1.0, -2.0, -3.0], [-2.0, -2.5, -1.5]) == 0.0
    assert contrast_score([-1.0, -2.0], [-2.0, -2.5]) == 0.75


def test_contrast_score_does_not_grow_with_length() -> None:
    assert contrast_score([-1.0] * 50, [-1.5] * 50) == contrast_score([-1.0], [-1.5]) == 0.5


@pytest.mark.parametrize(("shown", "hidden"), [([], []), ([-1.0, -1.0], [-1.0])])
def test_contrast_score_refuses_logprobs_of_other_tokens(
    shown: list[float], hidden: list[float]
) -> None:
    with pytest.raises(ValueError, match=f"found {len(shown)} and {len(hidden)}"):
        contrast_score(shown, hidden)


def test_pair_probability_from_contrast_by_hand() -> None:
    # log(3) / 2 apart at temperature 1/2: sigma(log 3) = 3/4.
    score = math.log(3) / 2
    assert pair_probability_from_contrast(score, 0.0, temperature=0.5) == pytest.approx(0.75)
    assert pair_probability_from_contrast(0.0, score, temperature=0.5) == pytest.approx(0.25)
    assert pair_probability_from_contrast(9.0, 9.0, temperature=0.5) == 0.5


def test_pair_probability_is_stable_for_distant_scores() -> None:
    assert pair_probability_from_contrast(1e3, 0.0, temperature=1e-3) == 1.0
    assert pair_probability_from_contrast(0.0, 1e3, temperature=1e-3) == 0.0


def test_judge_probability_by_hand() -> None:
    # Probabilities 0.3 and 0.1 of the two letters, the rest elsewhere: 0.3 / 0.4.
    assert judge_probability(math.log(0.3), math.log(0.1)) == pytest.approx(0.75)
    assert judge_probability(math.log(0.1), math.log(0.3)) == pytest.approx(0.25)


def test_judge_probability_of_a_letter_that_was_left_out_is_zero() -> None:
    assert judge_probability(-math.inf, -1.0) == 0.0
    assert judge_probability(-1.0, -math.inf) == 1.0
    with pytest.raises(ValueError, match="reject"):
        judge_probability(-math.inf, -math.inf)


def test_debiased_probability_by_hand() -> None:
    # Shown first as A with 0.9, then as B where A gets 0.3: (0.9 + 0.7) / 2.
    assert debiased_probability(0.9, 0.3) == pytest.approx(0.8)


def test_debiased_probability_of_a_judge_who_always_says_a_is_one_half() -> None:
    assert debiased_probability(0.97, 0.97) == pytest.approx(0.5)


def test_debiased_probability_of_the_other_response_is_the_rest() -> None:
    # From the second response's side, first and swapped order change places.
    assert debiased_probability(0.9, 0.3) + debiased_probability(0.3, 0.9) == pytest.approx(1.0)


def test_swap_consistency_by_hand() -> None:
    # The first response wins twice; the second wins twice, in two pairs; A wins twice; B wins
    # twice; no winner in one order.
    pairs = [(0.9, 0.2), (0.1, 0.6), (0.3, 0.8), (0.9, 0.8), (0.4, 0.4), (0.5, 0.1)]
    assert swap_consistency(pairs) == 3 / 6


def test_swap_consistency_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        swap_consistency([])


def test_utilities_of_two_candidates_by_hand() -> None:
    # By symmetry u = (x, -x) with p - sigma(2x) = prior x. At x = log(3)/2, sigma(2x) = 3/4, so
    # p = 0.8 goes with a prior of 0.05 / x.
    x = math.log(3) / 2
    utilities = utilities_from_probabilities([[0.5, 0.8], [0.2, 0.5]], prior=0.05 / x)
    assert utilities == pytest.approx([x, -x], abs=1e-8)


def test_utilities_give_back_the_bradley_terry_model_that_made_the_probabilities() -> None:
    truth = [1.5, -0.5, 0.25, -1.25]
    probabilities = [[sigmoid(a - b) for b in truth] for a in truth]
    assert utilities_from_probabilities(probabilities, prior=1e-9) == pytest.approx(truth, abs=1e-6)


def test_utilities_satisfy_the_score_equations_of_a_cycle_with_noise() -> None:
    # Not a Bradley-Terry matrix: wins less expected wins must still equal the prior's pull.
    probabilities = np.array(
        [[0.5, 0.9, 0.2, 0.6], [0.1, 0.5, 0.8, 0.7], [0.8, 0.2, 0.5, 0.5], [0.4, 0.3, 0.5, 0.5]]
    )
    prior = 0.3
    utilities = utilities_from_probabilities(probabilities, prior=prior)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        wins = sum(probabilities[i, j] for j in others)
        expected_wins = sum(sigmoid(utilities[i] - utilities[j]) for j in others)
        assert wins - expected_wins == pytest.approx(prior * utilities[i], abs=1e-8)
    assert sum(utilities) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("prior", [1.0, 1e-2, 1e-6])
def test_utilities_of_a_candidate_that_always_wins_are_finite(prior: float) -> None:
    probabilities = [[0.5, 1.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.5]]
    utilities = utilities_from_probabilities(probabilities, prior=prior)
    assert utilities[0] > utilities[1] > utilities[2]
    assert utilities[1] == pytest.approx(0.0, abs=1e-6)
    assert utilities[0] < math.log(4 / prior) + 1


def test_utilities_shrink_with_the_prior() -> None:
    probabilities = [[0.5, 0.9], [0.1, 0.5]]
    wide, narrow = (utilities_from_probabilities(probabilities, prior=p)[0] for p in (0.01, 1.0))
    assert wide > narrow > 0


def test_utilities_follow_a_reordering_of_the_candidates() -> None:
    probabilities = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.4], [0.8, 0.6, 0.5]])
    order = [2, 0, 1]
    plain = utilities_from_probabilities(probabilities, prior=0.1)
    reordered = utilities_from_probabilities(probabilities[np.ix_(order, order)], prior=0.1)
    assert reordered == pytest.approx([plain[i] for i in order], abs=1e-8)


def test_utilities_link_candidates_that_were_not_compared() -> None:
    # 0 beats 1 and 1 beats 2 with 3/4 each: log 3 apart, and 2 log 3 from 0 to 2.
    nan = math.nan
    probabilities = [[nan, 0.75, nan], [0.25, nan, 0.75], [nan, 0.25, nan]]
    utilities = utilities_from_probabilities(probabilities, prior=1e-9)
    assert utilities == pytest.approx([math.log(3), 0.0, -math.log(3)], abs=1e-6)


def test_utilities_do_not_read_the_diagonal() -> None:
    expected = utilities_from_probabilities([[0.5, 0.8], [0.2, 0.5]], prior=0.1)
    assert utilities_from_probabilities([[0.0, 0.8], [0.2, 7.0]], prior=0.1) == expected


@pytest.mark.parametrize(
    "probabilities",
    [
        [[0.5, 0.8], [0.3, 0.5]],  # more than 1 together
        [[0.5, 1.2], [-0.2, 0.5]],  # no probabilities
        [[0.5, math.nan], [1.0, 0.5]],  # one half missing
        [[0.5, 0.8, 0.1], [0.2, 0.5, 0.1]],  # not square
        [0.5, 0.5],
    ],
)
def test_utilities_refuse_what_is_no_matrix_of_probabilities(probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        utilities_from_probabilities(probabilities, prior=0.1)


def test_utilities_refuse_a_flat_prior() -> None:
    with pytest.raises(ValueError, match="prior"):
        utilities_from_probabilities([[0.5, 0.8], [0.2, 0.5]], prior=0.0)


def test_ranking_is_best_first_with_ties_by_id() -> None:
    # 0.1 + 0.2 is 0.30000000000000004: the same utility as 0.3.
    ids = ["d", "c", "b", "a"]
    assert ranking_from_utilities(ids, [0.1 + 0.2, 0.3, -1.0, 2.0]) == ["a", "c", "d", "b"]


def test_ranking_refuses_another_number_of_utilities() -> None:
    with pytest.raises(ValueError, match="zip"):
        ranking_from_utilities(["a", "b"], [1.0])
