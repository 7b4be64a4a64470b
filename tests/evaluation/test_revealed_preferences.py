"""Ratings of traits by choices: by hand, planted, and above chance."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from charactertrain.evaluation.revealed_preferences import (
    RATING_SCALE,
    Choice,
    Chosen,
    change_above_chance,
    order_agreement,
    ratings,
    ratings_above_chance,
)

WORDS = ["bold", "calm", "dry", "exact", "fond", "glad"]
PLANTED = [1.0, -1.0, 0.5, -0.5, 0.2, -0.2]
PAIRS = list(combinations(range(len(WORDS)), 2))


def chosen(
    rng: np.random.Generator, utilities: Sequence[float], *, num_prompts: int = 40
) -> list[Choice]:
    """Each pair once a prompt, in a random order, with drawn choices."""
    choices = []
    for prompt in range(num_prompts):
        for pair in PAIRS:
            i, j = rng.permutation(pair)
            p = 1 / (1 + math.exp(utilities[j] - utilities[i]))
            choices.append(Choice(f"p{prompt}", WORDS[i], WORDS[j], float(rng.random() < p)))
    return choices


def test_ratings_of_two_words_by_hand() -> None:
    # Of four choices three for bold: odds of 3, and 400 log10(3) points between the two.
    choices = [Choice(f"p{i}", "bold", "calm", win) for i, win in enumerate([1.0, 1.0, 1.0])]
    choices.append(Choice("p3", "calm", "bold", 1.0))
    found = ratings(choices, num_resamples=50, seed=0)
    gap = 400 * math.log10(3)
    assert found["bold"].estimate == pytest.approx(1000 + gap / 2, abs=1.0)
    assert found["calm"].estimate == pytest.approx(1000 - gap / 2, abs=1.0)
    assert (found["bold"].num_clusters, found["bold"].num_responses) == (4, 4)


def test_ratings_tell_planted_preferences_within_their_intervals() -> None:
    rng = np.random.default_rng(0)
    held = []
    for number in range(40):
        found = ratings(chosen(rng, PLANTED), num_resamples=200, seed=number)
        assert sum(one.estimate for one in found.values()) == pytest.approx(6 * 1000)
        for word, utility in zip(WORDS, PLANTED, strict=True):
            truth = 1000 + RATING_SCALE * utility
            held.append(found[word].ci_low <= truth <= found[word].ci_high)
    # Of 240 intervals, in sixes that hang together, the share has a deviation of about 0.02.
    assert 0.9 <= np.mean(held) <= 0.99


def test_ratings_do_not_depend_on_the_order_of_choices_or_of_words() -> None:
    choices = chosen(np.random.default_rng(1), PLANTED, num_prompts=5)
    turned = [Choice(c.cluster, c.second, c.first, 1 - c.probability) for c in choices[::-1]]
    one = ratings(choices, num_resamples=50, seed=0)
    other = ratings(turned, num_resamples=50, seed=0)
    assert list(one) == list(other) == WORDS
    for word in WORDS:
        assert one[word].estimate == pytest.approx(other[word].estimate)
        assert one[word].ci_low == pytest.approx(other[word].ci_low)


def test_a_word_that_is_always_taken_up_has_a_finite_rating() -> None:
    found = ratings(
        chosen(np.random.default_rng(2), [50.0, *PLANTED[1:]]), num_resamples=50, seed=0
    )
    assert 1700 < found["bold"].estimate < 10_000


def test_chance_is_taken_off() -> None:
    # At random the model still takes up bold more: what is left is what it prefers.
    rng = np.random.default_rng(3)
    bias = [0.8, 0.0, 0.0, 0.0, 0.0, -0.8]
    both = [one + other for one, other in zip(bias, PLANTED, strict=True)]
    found = ratings_above_chance(
        Chosen(chosen(rng, both, num_prompts=150), chosen(rng, bias, num_prompts=150)),
        num_resamples=300,
        seed=0,
    )
    for word, utility in zip(WORDS, PLANTED, strict=True):
        half_width = (found[word].ci_high - found[word].ci_low) / 2
        assert found[word].difference == pytest.approx(RATING_SCALE * utility, abs=1.6 * half_width)
        assert half_width < 60
    assert found["bold"].p_value < 0.001
    assert found["bold"].num_clusters == 150


def test_choices_at_random_alone_show_no_preference() -> None:
    rng = np.random.default_rng(4)
    bias = [0.8, 0.0, 0.0, 0.0, 0.0, -0.8]
    p_values = []
    for number in range(30):
        found = ratings_above_chance(
            Chosen(chosen(rng, bias), chosen(rng, bias)), num_resamples=100, seed=number
        )
        p_values += [one.p_value for one in found.values()]
    assert (np.array(p_values) < 0.05).mean() < 0.12


def test_a_change_is_that_of_ratings_above_chance() -> None:
    # Training made bold easier to play, which is no preference, and calm more preferred.
    rng = np.random.default_rng(8)
    bias = [0.8, 0.0, 0.0, 0.0, 0.0, -0.8]
    trained = [1.0, 0.5, 0.5, -0.5, 0.2, -0.2]
    base = Chosen(chosen(rng, PLANTED, num_prompts=150), chosen(rng, [0.0] * 6, num_prompts=150))
    both = [one + other for one, other in zip(bias, trained, strict=True)]
    arm = Chosen(chosen(rng, both, num_prompts=150), chosen(rng, bias, num_prompts=150))
    found = change_above_chance(base, arm, num_resamples=300, seed=0)
    # Ratings have the same mean in both: 1.5 nats more for one of six are 1.25 and -0.25.
    for word in WORDS:
        change = RATING_SCALE * (1.25 if word == "calm" else -0.25)
        half_width = (found[word].ci_high - found[word].ci_low) / 2
        assert found[word].difference == pytest.approx(change, abs=1.6 * half_width)
        assert half_width < 90
    assert found["calm"].p_value < 0.001
    own = ratings_above_chance(base, num_resamples=300, seed=0)
    assert found["calm"].base == pytest.approx(own["calm"].difference)
    assert found["calm"].num_responses == 4 * 150 * len(PAIRS)
    same = change_above_chance(base, base, num_resamples=300, seed=0)
    assert all(one.difference == 0.0 and one.p_value == 1.0 for one in same.values())


def above_chance(
    rng: np.random.Generator, utilities: Sequence[float], *, num_prompts: int
) -> Chosen:
    """Of a model that prefers by `utilities`, and plays all words equally well."""
    return Chosen(
        chosen(rng, utilities, num_prompts=num_prompts),
        chosen(rng, [0.0] * 6, num_prompts=num_prompts),
    )


def test_order_agreement_of_planted_orders() -> None:
    rng = np.random.default_rng(5)
    one = above_chance(rng, PLANTED, num_prompts=200)
    same = order_agreement(one, above_chance(rng, PLANTED, num_prompts=200))
    assert same.estimate > 0.8
    assert same.ci_low <= same.estimate <= same.ci_high <= 1.0
    opposite = [-utility for utility in PLANTED]
    turned = order_agreement(one, above_chance(rng, opposite, num_prompts=200))
    assert turned.estimate < -0.8
    assert (turned.num_clusters, turned.num_responses) == (200, 4 * 200 * len(PAIRS))


def test_words_that_are_played_alike_by_two_models_are_no_agreement_of_what_they_prefer() -> None:
    rng = np.random.default_rng(9)
    played = [2 * utility for utility in PLANTED]
    estimates = []
    for _ in range(20):
        parts = [chosen(rng, played, num_prompts=30) for _ in range(4)]
        estimates.append(order_agreement(Chosen(*parts[:2]), Chosen(*parts[2:])).estimate)
    # Of six words a correlation has a deviation of 0.45, the mean of twenty one of 0.1.
    assert abs(np.mean(estimates)) < 0.35


def test_order_agreement_of_models_without_preferences_has_a_wide_interval() -> None:
    # None prefers anything: what the orders are, is chance.
    rng = np.random.default_rng(6)
    one, other = (above_chance(rng, [0.0] * 6, num_prompts=30) for _ in range(2))
    found = order_agreement(one, other)
    assert found.ci_high - found.ci_low > 0.5


def test_an_order_agrees_with_itself() -> None:
    one = above_chance(np.random.default_rng(7), PLANTED, num_prompts=10)
    found = order_agreement(one, one)
    assert found.estimate == pytest.approx(1.0)
    assert found.ci_low > 0.99


def test_words_that_were_never_offered_with_one_another_are_refused() -> None:
    choices = [Choice(p, *pair, 1.0) for p in "pq" for pair in (("a", "b"), ("c", "d"))]
    with pytest.raises(ValueError, match=r"4 words fall into 2 groups .* 'a' and 'c'"):
        ratings(choices, num_resamples=10, seed=0)


def test_choices_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="1 prompt: an interval needs two"):
        ratings([Choice("p", "a", "b", 1.0)], num_resamples=10, seed=0)
    for bad in (Choice("q", "a", "b", 1.5), Choice("q", "a", "a", 1.0)):
        with pytest.raises(ValueError, match="two words and a probability from 0 to 1"):
            ratings([Choice("p", "a", "b", 1.0), bad], num_resamples=10, seed=0)


def test_models_with_other_words_or_prompts_are_not_compared() -> None:
    one = [Choice(p, "a", "b", 1.0) for p in "pq"]
    other = [Choice(p, "a", "b", 1.0) for p in "pr"]
    with pytest.raises(ValueError, match="the same words on the same prompts"):
        ratings_above_chance(Chosen(one, other), num_resamples=10, seed=0)
    with pytest.raises(ValueError, match="the same words on the same prompts"):
        change_above_chance(Chosen(one, one), Chosen(one, other), num_resamples=10, seed=0)
    with pytest.raises(ValueError, match="the same words on the same prompts"):
        order_agreement(Chosen(one, one), Chosen(other, other))
    with pytest.raises(ValueError, match="2 words: an order of three"):
        order_agreement(Chosen(one, one), Chosen(one, one))
