"""Scores to probabilities to utilities to a ranking: by hand, and what must not matter."""

import math

import numpy as np
import pytest

from charactertrain.ranking import (
    balanced_permutations,
    choice_probabilities,
    contrast_score,
    higher_score_probability,
    judge_probability,
    judge_probability_with_tie,
    luce_probabilities,
    mean_probabilities,
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


def test_choice_probabilities_by_hand() -> None:
    # 0.3, 0.1 and 0.2 of the probability, the rest elsewhere: over 0.6.
    logprobs = [math.log(0.3), math.log(0.1), math.log(0.2), -math.inf]
    assert choice_probabilities(logprobs) == pytest.approx([1 / 2, 1 / 6, 1 / 3, 0.0])


def test_choice_probabilities_do_not_depend_on_what_goes_elsewhere() -> None:
    expected = choice_probabilities([-1.0, -2.0, -4.0])
    assert choice_probabilities([-1001.0, -1002.0, -1004.0]) == pytest.approx(expected)


def test_choice_probabilities_of_two_letters_are_the_judge_probability() -> None:
    first, second = choice_probabilities([-0.7, -1.9])
    assert first == pytest.approx(judge_probability(-0.7, -1.9))
    assert first + second == pytest.approx(1.0)


@pytest.mark.parametrize("logprobs", [[], [-math.inf, -math.inf], [-1.0, math.nan]])
def test_choice_probabilities_refuse_a_judge_without_choice(logprobs: list[float]) -> None:
    with pytest.raises(ValueError, match="reject"):
        choice_probabilities(logprobs)


def test_judge_probability_with_tie_by_hand() -> None:
    # 1/2, 1/6 and 1/3 of the three: 1/2 + 1/6 and 1/6 + 1/6.
    a, b, tie = math.log(0.3), math.log(0.1), math.log(0.2)
    assert judge_probability_with_tie(a, b, tie) == pytest.approx(2 / 3)
    assert judge_probability_with_tie(b, a, tie) == pytest.approx(1 / 3)


def test_judge_probability_without_a_tie_is_that_of_two_letters() -> None:
    found = judge_probability_with_tie(-0.7, -1.9, -math.inf)
    assert found == pytest.approx(judge_probability(-0.7, -1.9))
    assert judge_probability_with_tie(-math.inf, -math.inf, -3.0) == 0.5


def test_luce_probabilities_by_hand() -> None:
    # 0.6 / 0.9, 0.6 / 0.7 and 0.3 / 0.4.
    expected = [[1 / 2, 2 / 3, 6 / 7], [1 / 3, 1 / 2, 3 / 4], [1 / 7, 1 / 4, 1 / 2]]
    found = luce_probabilities([0.6, 0.3, 0.1])
    for row, expected_row in zip(found, expected, strict=True):
        assert row == pytest.approx(expected_row)


def test_luce_probabilities_of_candidates_without_a_share() -> None:
    assert luce_probabilities([0.9, 0.0, 0.0]) == [
        [0.5, 1.0, 1.0],
        [0.0, 0.5, 0.5],
        [0.0, 0.5, 0.5],
    ]


def test_luce_probabilities_give_back_the_log_shares_as_utilities() -> None:
    # 1, 2 and 4 are log 2 apart.
    utilities = utilities_from_probabilities(luce_probabilities([1.0, 2.0, 4.0]), prior=1e-9)
    assert utilities == pytest.approx([-math.log(2), 0.0, math.log(2)], abs=1e-6)


@pytest.mark.parametrize("share", [-0.1, math.nan, math.inf])
def test_luce_probabilities_refuse_what_is_no_share(share: float) -> None:
    with pytest.raises(ValueError, match="shares"):
        luce_probabilities([0.5, share])


def test_higher_score_probability_by_hand() -> None:
    # Higher: 0.3 * 0.5 + 0.5 * 0.75 = 0.525. Equal: 0.1 + 0.075 + 0.125 = 0.3.
    a, b = [0.2, 0.3, 0.5], [0.5, 0.25, 0.25]
    assert higher_score_probability(a, b) == pytest.approx(0.675)
    assert higher_score_probability(b, a) == pytest.approx(0.325)


def test_higher_score_probability_of_equal_distributions_is_one_half() -> None:
    assert higher_score_probability([0.1, 0.6, 0.3], [0.1, 0.6, 0.3]) == pytest.approx(0.5)


def test_higher_score_probability_of_scores_that_do_not_overlap() -> None:
    assert higher_score_probability([0.0, 0.0, 0.7, 0.3], [0.4, 0.6, 0.0, 0.0]) == 1.0
    assert higher_score_probability([0.4, 0.6, 0.0, 0.0], [0.0, 0.0, 0.7, 0.3]) == 0.0


def test_higher_score_probability_depends_on_neither_unused_scores_nor_scale() -> None:
    expected = higher_score_probability([0.2, 0.8], [0.5, 0.5])
    assert higher_score_probability([0.0, 0.2, 0.0, 0.8], [0.0, 0.5, 0.0, 0.5]) == expected
    assert higher_score_probability([1.0, 4.0], [3.0, 3.0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([0.5, 0.5], [1.0], "found 2 and 1"),
        ([0.0, 0.0], [0.5, 0.5], "reject"),
        ([], [], "reject"),
        ([1.2, -0.2], [0.5, 0.5], "at least 0"),
    ],
)
def test_higher_score_probability_refuses_what_is_no_distribution(
    a: list[float], b: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        higher_score_probability(a, b)


def test_mean_probabilities_by_hand() -> None:
    found = mean_probabilities([[[0.5, 0.9], [0.1, 0.5]], [[0.5, 0.4], [0.6, 0.5]]])
    assert found[0] == pytest.approx([0.5, 0.65])
    assert found[1] == pytest.approx([0.35, 0.5])


def test_mean_probabilities_of_a_pair_that_one_did_not_compare_are_missing() -> None:
    nan = math.nan
    found = mean_probabilities([[[nan, 0.9], [0.1, nan]], [[nan, nan], [nan, nan]]])
    assert np.isnan(found).all()


def test_mean_probabilities_are_probabilities() -> None:
    matrices = [luce_probabilities(shares) for shares in ([0.7, 0.2, 0.1], [0.1, 0.0, 0.9])]
    mean = np.array(mean_probabilities(matrices))
    assert mean + mean.T == pytest.approx(np.ones((3, 3)))


@pytest.mark.parametrize(
    "matrices",
    [[], [[[0.5, 0.8], [0.2, 0.5]], [[0.5]]], [[[0.5, 0.8]]], [[0.5, 0.8]]],
)
def test_mean_probabilities_refuse_other_candidates(matrices: list[list[list[float]]]) -> None:
    with pytest.raises(ValueError, match="square"):
        mean_probabilities(matrices)


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_permutations_put_every_item_once_at_every_position(num_items: int) -> None:
    items = list(range(num_items))
    orders = balanced_permutations(num_items, 3 * num_items, seed=7)
    assert len(orders) == 3 * num_items
    assert all(sorted(order) == items for order in orders)
    for block in range(3):
        in_block = orders[block * num_items : (block + 1) * num_items]
        for at_position in zip(*in_block, strict=True):
            assert sorted(at_position) == items


def test_permutations_cancel_a_choice_by_position() -> None:
    by_position = np.array([0.6, 0.25, 0.1, 0.05])
    shares = np.zeros(4)
    for order in balanced_permutations(4, 8, seed=0):
        shares[list(order)] += by_position
    assert np.array(luce_probabilities(shares.tolist())) == pytest.approx(np.full((4, 4), 0.5))


def test_permutations_depend_on_the_seed_alone() -> None:
    orders = balanced_permutations(6, 20, seed=3)
    assert balanced_permutations(6, 20, seed=3) == orders
    assert balanced_permutations(6, 20, seed=4) != orders
    assert balanced_permutations(6, 8, seed=3) == orders[:8]


def test_permutations_have_a_new_order_in_every_block() -> None:
    # Turned so that item 0 comes first, the shifts of one order are equal.
    turned = [
        order[order.index(0) :] + order[: order.index(0)]
        for order in balanced_permutations(6, 18, seed=3)
    ]
    blocks = [set(turned[start : start + 6]) for start in (0, 6, 12)]
    assert [len(block) for block in blocks] == [1, 1, 1]
    assert len(set.union(*blocks)) == 3


@pytest.mark.parametrize(("num_items", "num_permutations"), [(0, 3), (3, 0)])
def test_permutations_of_nothing_are_refused(num_items: int, num_permutations: int) -> None:
    with pytest.raises(ValueError, match=f"found {num_items} and {num_permutations}"):
        balanced_permutations(num_items, num_permutations, seed=0)
