"""Near-duplicates: keys that are stable, and pairs found as by comparing all with all."""

import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from charactertrain.texts.near_duplicates import band_keys, find_duplicates, similarity

_WORDS = [f"word{number}" for number in range(500)]


def _duplicates(texts: Sequence[str], threshold: float) -> dict[int, int]:
    def read(rows: Sequence[int]) -> Mapping[int, str]:
        assert list(rows) == sorted(set(rows))
        return {row: texts[row] for row in rows}

    keys = band_keys(texts, threshold=threshold)
    keys_NB = np.array(keys, dtype=np.int32).reshape(len(texts), -1)
    return find_duplicates(keys_NB, read, threshold=threshold)


def _by_brute_force(texts: Sequence[str], threshold: float) -> dict[int, int]:
    duplicates: dict[int, int] = {}
    for later, text in enumerate(texts):
        for earlier in range(later):
            if earlier not in duplicates and similarity(text, texts[earlier]) > threshold:
                duplicates[later] = earlier
                break
    return duplicates


def _varied_texts(count: int) -> list[str]:
    """New texts, and earlier ones with a few of their words replaced."""
    draw = random.Random(0)
    texts: list[list[str]] = []
    for _ in range(count):
        text = draw.sample(_WORDS, 15)
        if texts and draw.random() < 0.6:
            text = list(draw.choice(texts))
            for place in draw.sample(range(len(text)), draw.randrange(5)):
                text[place] = draw.choice(_WORDS)
        texts.append(text)
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("The cat sat.", "the CAT slept!", 2 / 4),
        ("It’s late", "late, it's", 1.0),  # noqa: RUF001
        ("one two", "three", 0.0),
        ("", "", 0.0),
        ("?!", "?!", 0.0),
        # Bigrams: ab bc cd against ab bc ce, and of one character itself.
        ("我喜欢你", "我喜欢她", 2 / 4),
        ("茶", "茶", 1.0),
        # The words iphone15 and the bigrams of the run between: を買 買う against を売 売る.
        ("iPhone15を買う", "iPhone15を売る", 1 / 5),
        # Spaces part the words of Korean.
        ("나는 차를 좋아해", "나는 차를 마셔", 2 / 4),
    ],
)
def test_similarity_by_hand(a: str, b: str, expected: float) -> None:
    assert similarity(a, b) == pytest.approx(expected)
    assert similarity(b, a) == similarity(a, b)


def test_keys_depend_on_the_word_set_alone() -> None:
    keys = band_keys(
        ["My train was late", "late was MY train", "late, late: my train was!"], threshold=0.7
    )
    assert keys[0] == keys[1] == keys[2]
    assert keys[0] != band_keys(["My bus was late"], threshold=0.7)[0]


def test_keys_are_the_same_in_every_process() -> None:
    (keys,) = band_keys(["My train was late again today."], threshold=0.7)
    assert keys[:3] == (-852021458, 2052678432, 313480654)
    assert len(keys) == 21


def test_keys_are_signed_numbers_of_32_bits() -> None:
    keys = np.array(band_keys(_varied_texts(50), threshold=0.7))
    assert keys.dtype == np.int64
    assert np.array_equal(keys, keys.astype(np.int32))
    assert (keys < 0).any()


@pytest.mark.parametrize("threshold", [0.0, 1.01])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number in \(0, 1\]"):
        band_keys(["a"], threshold=threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 0.99])
def test_identical_texts_are_always_found(threshold: float) -> None:
    draw = random.Random(1)
    texts = [" ".join(draw.sample(_WORDS, length)) for length in range(1, 41)]
    duplicates = _duplicates(texts + texts, threshold)
    assert {row: row - 40 for row in range(40, 80)} == {
        later: earlier for later, earlier in duplicates.items() if later >= 40
    }


def test_recall_at_similarity_0_8_is_above_95_percent() -> None:
    draw = random.Random(2)
    texts = []
    for pair in range(500):
        # 16 words in common and two of its own in each text: 16 / 20.
        words = [f"p{pair}w{number}" for number in draw.sample(range(1000), 20)]
        texts += [" ".join(words[:18]), " ".join(words[:16] + words[18:])]
    duplicates = _duplicates(texts, 0.7)
    assert all(earlier == later - 1 for later, earlier in duplicates.items())
    assert len(duplicates) > 0.95 * 500


@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_the_result_is_that_of_comparing_all_with_all(threshold: float) -> None:
    texts = _varied_texts(300)
    expected = _by_brute_force(texts, threshold)
    assert 50 < len(expected) < 250
    assert _duplicates(texts, threshold) == expected


def test_the_first_row_is_kept() -> None:
    texts = ["a b c d e f", "x y z", "f e d c b a", "A B C D E F"]
    assert _duplicates(texts, 0.7) == {2: 0, 3: 0}


def test_a_row_close_to_a_duplicate_alone_is_kept() -> None:
    # A and B share 19 of 21 words, as do B and C; A and C 18 of 22.
    texts = [" ".join(_WORDS[start : start + 20]) for start in range(3)]
    assert similarity(texts[0], texts[2]) < 0.85 < similarity(texts[1], texts[2])
    assert _duplicates(texts, 0.85) == {1: 0}


def test_similarity_at_the_threshold_is_no_duplicate() -> None:
    texts = ["a b c d", "a b c"]
    assert similarity(*texts) == 0.75
    assert _duplicates(texts, 0.75) == {}
    assert _duplicates(texts, 0.74) == {1: 0}


def test_many_copies_are_found_without_comparing_all_of_them() -> None:
    num_read = 0

    def read(rows: Sequence[int]) -> Mapping[int, str]:
        nonlocal num_read
        num_read += len(rows)
        return dict.fromkeys(rows, "the same text")

    keys = band_keys(["the same text"] * 3000, threshold=0.7)
    found = find_duplicates(np.array(keys, dtype=np.int32), read, threshold=0.7)
    assert found == dict.fromkeys(range(1, 3000), 0)
    assert num_read == 3000


def test_copies_that_begin_late_in_a_group_are_found() -> None:
    # One key for all: 20 different texts, and then copies of one more.
    texts = [f"only{row}" for row in range(20)] + ["copy"] * 30
    keys_NB = np.zeros((50, 1), dtype=np.int32)
    found = find_duplicates(keys_NB, lambda rows: {r: texts[r] for r in rows}, threshold=0.5)
    assert found == dict.fromkeys(range(21, 50), 20)


def test_pairs_in_many_blocks_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _varied_texts(300)
    expected = _duplicates(texts, 0.6)
    monkeypatch.setattr("charactertrain.texts.near_duplicates._MIN_PAIRS", 40)
    monkeypatch.setattr("charactertrain.texts.near_duplicates._PAIRS_PER_ROW", 0)
    monkeypatch.setattr("charactertrain.texts.near_duplicates._PAIRS_PER_READ", 7)
    assert _duplicates(texts, 0.6) == expected


def test_threshold_1_keeps_everything() -> None:
    assert _duplicates(["a b c"] * 5, 1.0) == {}


def test_texts_without_words_are_kept() -> None:
    assert _duplicates(["", "", "?!", "a"], 0.7) == {}


def test_nothing_has_no_duplicates() -> None:
    assert band_keys([], threshold=0.7) == []
    assert find_duplicates(np.zeros((0, 21), np.int32), lambda rows: {}, threshold=0.7) == {}
