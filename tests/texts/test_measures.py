"""Judge-free measures of texts, by hand."""

import math
import random

import pytest

from charactertrain.exceptions import ConstitutionError
from charactertrain.texts.measures import (
    boilerplate_share_without,
    detector_matches,
    distinct_n,
    distinct_n_without,
    opening_share_without,
    repetition_fraction,
    within_prompt_diversity,
)


def test_detector_matches_anywhere_in_the_text() -> None:
    assert detector_matches(r"\bI wonder\b", "Well,\nI wonder why.")
    assert not detector_matches(r"\bI wonder\b", "I wondered why.")


def test_detector_decides_itself_whether_case_counts() -> None:
    assert not detector_matches("wow", "Wow!")
    assert detector_matches("(?i)wow", "Wow!")


def test_distinct_n_by_hand() -> None:
    # Bigrams ab, ba, ab and ab, bc: three of five differ. Unigrams: a, b, c of seven.
    texts = [["a", "b", "a", "b"], ["a", "b", "c"]]
    assert distinct_n(texts, 2) == 3 / 5
    assert distinct_n(texts, 1) == 3 / 7


def test_distinct_n_does_not_join_the_end_of_one_text_to_the_next() -> None:
    assert distinct_n([[1, 2], [2, 1]], 2) == 1.0
    assert distinct_n([[1], [1, 2]], 2) == 1.0


def test_distinct_n_of_the_same_text_twice_is_half_as_high() -> None:
    assert distinct_n([[1, 2, 3]], 2) == 2 * distinct_n([[1, 2, 3], [1, 2, 3]], 2)


def test_distinct_n_of_texts_that_are_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="none has 3 tokens"):
        distinct_n([[1, 2], []], 3)


def test_repetition_fraction_by_hand() -> None:
    # Bigrams 12, 23, 31, 12, 23: two of five repeat an earlier one.
    assert repetition_fraction([1, 2, 3, 1, 2, 3], 2) == pytest.approx(2 / 5)
    assert repetition_fraction([7, 7, 7, 7], 1) == 3 / 4


def test_repetition_fraction_of_a_text_without_repeats_or_n_grams_is_zero() -> None:
    assert repetition_fraction([1, 2, 3], 1) == 0.0
    assert repetition_fraction([1, 2], 3) == 0.0


def test_a_detector_that_would_take_for_ever_is_stopped_and_named() -> None:
    with pytest.raises(ConstitutionError, match=r"took longer than 1.0 s on a text of 201"):
        detector_matches("(a|aa)+$", "a" * 200 + "0")


def test_a_detector_with_a_repeat_in_a_repeat_is_quick_on_most_texts() -> None:
    # It would keep `re` busy for ever.
    assert not detector_matches("(?:[a-z]+ ?)+!$", "a word " * 40 + "! 0")


def test_within_prompt_diversity_by_hand() -> None:
    # Bigrams ab bc cd, ab bc ce, xy yz: distances 1 - 2/4, 1 and 1.
    texts = ["a b c d", "A b\nc e", "x y z"]
    assert within_prompt_diversity(texts) == pytest.approx(2.5 / 3)


def test_within_prompt_diversity_of_the_same_text_is_zero() -> None:
    assert within_prompt_diversity(["a b a b", "a b a b", "a b a b"]) == 0.0


def test_within_prompt_diversity_of_texts_of_a_word() -> None:
    assert within_prompt_diversity(["yes", "Yes"]) == 0.0
    assert within_prompt_diversity(["yes", "no"]) == 1.0
    assert within_prompt_diversity(["", "yes it is"]) == 1.0


def test_within_prompt_diversity_needs_two_texts() -> None:
    with pytest.raises(ValueError, match="1 text: diversity needs two"):
        within_prompt_diversity(["a b c"])


def test_opening_share_by_hand() -> None:
    groups = [["What a lovely day", "what a lovely cat"], ["What a pity", "No"]]
    # Three words: two of four; without the first group each of two stands alone.
    assert opening_share_without(groups, 3) == (0.5, [0.5, 1.0])
    assert opening_share_without(groups, 2) == (0.75, [0.5, 1.0])
    assert opening_share_without([["a b c d e f"], ["a b c d e x"], ["b c"]])[0] == 2 / 3


def test_boilerplate_share_by_hand() -> None:
    # "b c" in two of three responses, once or twice; one word holds none.
    groups = [["a a a a"], ["b c b c"], ["x B c"]]
    assert boilerplate_share_without(groups, 2) == (2 / 3, [1.0, 0.5, 0.5])
    assert boilerplate_share_without([["a"], ["b"]], 2) == (0.0, [0.0, 0.0])


def test_left_out_statistics_are_those_of_the_texts_that_are_left() -> None:
    draw = random.Random(5)
    groups = [
        [
            [draw.choice("abcde") for _ in range(draw.randint(0, 6))]
            for _ in range(draw.randint(1, 3))
        ]
        for _ in range(7)
    ]
    whole, without = distinct_n_without(groups, 2)
    assert whole == distinct_n([text for group in groups for text in group], 2)
    for index, found in enumerate(without):
        left = [text for i, group in enumerate(groups) if i != index for text in group]
        assert found == pytest.approx(distinct_n(left, 2))
    texts = [[" ".join(text) for text in group] for group in groups]
    together, parts = opening_share_without(texts, num_words=1)
    firsts = [text.partition(" ")[0] for group in texts for text in group]
    assert together == max(map(firsts.count, firsts)) / len(firsts)
    for index, found in enumerate(parts):
        own = [t.partition(" ")[0] for i, g in enumerate(texts) if i != index for t in g]
        assert found == pytest.approx(max(map(own.count, own)) / len(own))


def test_left_out_statistics_are_unknown_where_nothing_is_left() -> None:
    whole, (first, second) = distinct_n_without([[["a", "b"]], [["a"]]], 2)
    assert (whole, second) == (1.0, 1.0)
    assert math.isnan(first)
