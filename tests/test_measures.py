"""Judge-free measures of texts, by hand."""

import pytest

from charactertrain.exceptions import ConstitutionError
from charactertrain.measures import detector_matches, distinct_n, repetition_fraction


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
