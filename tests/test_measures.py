"""Judge-free measures of texts, by hand."""

import math
import random

import pytest

from charactertrain.exceptions import ConstitutionError
from charactertrain.measures import (
    Phrase,
    boilerplate,
    detector_matches,
    distinct_n,
    distinct_n_without,
    drift,
    opening_share,
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
    texts = ["What a lovely day", "what a  lovely thing", "Well, what a day", "What a"]
    assert opening_share(texts, 3) == Phrase(("what", "a", "lovely"), 0.5)
    # Of two words the shortest response has all.
    assert opening_share(texts, 2) == Phrase(("what", "a"), 0.75)


def test_opening_share_is_of_five_words_and_takes_the_first_of_equals() -> None:
    assert opening_share(["a b c d e f", "b c"]) == Phrase(("a", "b", "c", "d", "e"), 0.5)


def test_boilerplate_counts_a_response_once() -> None:
    # "b c" is in two of three; "a a" in one, though three times.
    assert boilerplate(["a a a a", "b c d", "d B c"], 2) == Phrase(("b", "c"), 2 / 3)


def test_boilerplate_of_short_responses_is_none() -> None:
    assert boilerplate(["a b", "c"], 3) == Phrase((), 0.0)
    assert boilerplate(["a b", "a b c", "x"], 3) == Phrase(("a", "b", "c"), 1 / 3)


def test_phrases_need_a_text() -> None:
    for measure in (opening_share, boilerplate):
        with pytest.raises(ValueError, match="no text"):
            measure([])


def test_drift_by_hand() -> None:
    # Turns 0 to 3 about 1.5, values about 2: (1.5 * 1 + 0.5 * 1 + 0.5 * 0 + 1.5 * 2) / 5.
    assert drift([1.0, 1.0, 2.0, 4.0]) == pytest.approx(1.0)
    assert drift([0.5, 0.5, 0.5]) == 0.0


def test_drift_needs_two_turns() -> None:
    with pytest.raises(ValueError, match="1 turn: a slope"):
        drift([1.0])


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
    assert together == opening_share([t for group in texts for t in group], 1).share
    for index, found in enumerate(parts):
        left_texts = [t for i, group in enumerate(texts) if i != index for t in group]
        assert found == pytest.approx(opening_share(left_texts, 1).share)


def test_left_out_statistics_are_unknown_where_nothing_is_left() -> None:
    whole, (first, second) = distinct_n_without([[["a", "b"]], [["a"]]], 2)
    assert (whole, second) == (1.0, 1.0)
    assert math.isnan(first)
