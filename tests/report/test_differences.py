"""What differs between two texts, by words, in bounded time."""

import time

import pytest

from charactertrain.report.differences import MAX_WORDS, Differences, word_differences


def _cut(text: str, spans: tuple[tuple[int, int], ...]) -> list[str]:
    return [text[start:stop] for start, stop in spans]


def test_words_between_what_is_common_differ() -> None:
    first, second = "the quick brown fox jumps high", "the quick red fox jumps very low"
    found = word_differences(first, second)
    assert _cut(first, found.first) == ["brown", "high"]
    assert _cut(second, found.second) == ["red", "very low"]
    assert found.shared == pytest.approx(2 * 4 / 13)


def test_words_that_only_one_text_has_differ_there_alone() -> None:
    first, second = "we go home now", "we go home by the river now"
    found = word_differences(first, second)
    assert found.first == ()
    assert _cut(second, found.second) == ["by the river"]


def test_equal_texts_do_not_differ() -> None:
    assert word_differences("a b", "a b") == Differences((), (), 1.0)
    assert word_differences("", "") == Differences((), (), 1.0)


def test_texts_with_hardly_a_word_in_common_are_not_marked() -> None:
    first = " ".join(f"a{index}" for index in range(30))
    second = " ".join(f"b{index}" for index in range(30))
    assert word_differences(first, second) == Differences((), (), 0.0)


def test_a_single_word_in_common_between_changes_is_no_common_ground() -> None:
    first, second = "so it was a cat in the hat", "so it was the dog in no hat"
    assert _cut(first, word_differences(first, second).first) == ["a cat in the"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a b c " * 500_000, "c b d " * 500_000),
        ("x" * 5_000_000, "y" * 5_000_000),
        ("a b " * MAX_WORDS, "b a " * MAX_WORDS),
    ],
)
def test_hostile_texts_take_bounded_time(first: str, second: str) -> None:
    started = time.process_time()
    word_differences(first, second)
    assert time.process_time() - started < 2
