"""A planted chooser's preferences are measured back; one without any has none."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from planted_chooser import PlantedChooser

from charactertrain.artifacts import Json
from charactertrain.evaluation.effects import Bootstrap
from charactertrain.evaluation.preference_results import preference_results
from charactertrain.evaluation.revealed_preferences import RATING_SCALE
from charactertrain.records import Offer, TraitChoice
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.stages.evaluation.trait_choices import (
    LikelihoodReader,
    OfferWriter,
    offers,
    words_of,
)

TRAITS = ("curious", "open_nature", "honest")
SETTINGS = SamplingSettings(1.0, 1.0, 8, 0, ())
PLAYED = {"curious": 1.0, "honest": -0.5}
PREFERRED = {"curious": 1.0, "honest": -1.0}
TRAINED = {"curious": 0.5, "honest": 1.0}


def choices_of(
    arm: str, preferred: Mapping[str, float], offered: list[Offer], seed: int
) -> list[TraitChoice]:
    model = PlantedChooser(preferred, PLAYED)
    writer = OfferWriter(model, arm=arm, placement="system", settings=SETTINGS, seed=seed)
    asked = [offer for offer in offered if arm == "base" or offer.condition != "told"]
    replies, rejects = writer.process(asked)
    choices, more = LikelihoodReader(model, placement="system").process(replies)
    assert rejects == more == []
    return choices


def measured(base: Mapping[str, float], policy: Mapping[str, float], seed: int) -> Json:
    """Results of two arms with seeds of their own: else they would toss the same coins."""
    offered = offers(TRAITS, pairs_per_trait=32, seed=seed)
    choices = choices_of("base", base, offered, seed)
    choices += choices_of("policy", policy, offered, seed + 1000)
    return preference_results(choices, offered, words_of(TRAITS), Bootstrap(100, seed))


def points(preferred: Mapping[str, float], word: str, num_words: int) -> float:
    """What a word is rated above chance: above the mean of all."""
    return RATING_SCALE * (preferred.get(word, 0.0) - sum(preferred.values()) / num_words)


def test_planted_preferences_and_their_change_are_within_the_intervals() -> None:
    rated, changed, half_widths = [], [], []
    for seed in range(10):
        found = measured(PREFERRED, TRAINED, seed)
        num_words = len(found["arms"]["base"])
        assert num_words == 3 + 8
        for trait_id, word in words_of(TRAITS).items():
            base, policy = (points(arm, word, num_words) for arm in (PREFERRED, TRAINED))
            one, change = found["arms"]["base"][word], found["changes"][trait_id]["policy"]
            rated.append(one["ci_low"] <= base <= one["ci_high"])
            changed.append(change["ci_low"] <= policy - base <= change["ci_high"])
            half_widths.append((one["ci_high"] - one["ci_low"]) / 2)
            assert change["base"] == pytest.approx(one["difference"])
            assert change["p_value"] <= change["p_holm"] <= 1
    # Of 30 intervals, in threes that hang together, the share has a deviation of about 0.05.
    assert np.mean(rated) >= 0.8
    assert np.mean(changed) >= 0.8
    # One nat is 174 points: these are no intervals that hold everything.
    assert np.mean(half_widths) < 170


def test_a_chooser_without_preferences_has_none_above_chance() -> None:
    # What it plays best it takes up most, freely and at random alike.
    p_values, agreements = [], []
    for seed in range(10):
        found = measured({}, {}, seed)
        p_values += [found["arms"]["base"][word]["p_value"] for word in words_of(TRAITS).values()]
        p_values += [by_arm["policy"]["p_value"] for by_arm in found["changes"].values()]
        agreements.append(found["order_agreement"]["policy"]["estimate"])
    assert np.mean(np.array(p_values) < 0.05) < 0.15
    assert abs(np.mean(agreements)) < 0.35


def test_a_reading_is_worth_what_it_finds_where_the_base_was_told() -> None:
    found = measured(PREFERRED, TRAINED, 0)["reading"]
    assert set(found["base"]) == {"free", "random", "told"}
    assert set(found["policy"]) == {"free", "random"}
    told = found["base"]["told"]
    assert told["recognised"]["estimate"] == 1.0
    assert told["first_taken"]["estimate"] > 0.99
    assert "swap_consistency" not in told
    # Each pair in both orders: what is offered first is taken up half the time.
    assert found["base"]["free"]["first_taken"]["estimate"] == pytest.approx(0.5, abs=0.15)
    assert found["base"]["free"]["num_unread"] == 0


def test_a_judge_that_reads_by_order_is_found_out() -> None:
    offered = offers(TRAITS, pairs_per_trait=2, seed=0)
    choices = choices_of("base", PREFERRED, offered, 0)
    # By hand: of four readings one agrees, one is a tie.
    readings = [(0.9, 0.8), (0.9, 0.1), (0.2, 0.9), (0.5, 0.9)]
    free = [choice for choice in choices if choice.offer.condition == "free"][:4]
    judged = [replace(c, readings=r) for c, r in zip(free, readings, strict=True)]
    rest = [replace(c, readings=(0.6, 0.6)) for c in choices if c.offer.condition == "random"]
    found = preference_results([*judged, *rest], offered, words_of(TRAITS), Bootstrap(100, 0))
    reading = found["reading"]["base"]["free"]
    assert reading["swap_consistency"]["estimate"] == 0.25
    assert reading["num_ties"] == 1
    assert reading["first_taken"]["estimate"] == pytest.approx((0.85 + 0.5 + 0.55 + 0.7) / 4)


def test_replies_that_could_not_be_read_are_counted_and_count_for_neither_word() -> None:
    offered = offers(TRAITS, pairs_per_trait=8, seed=0)
    choices = choices_of("base", PREFERRED, offered, 0)
    lost = {c.reply_id for c in choices if c.offer.condition == "free" and "honest" in c.text}
    kept = [choice for choice in choices if choice.reply_id not in lost]
    halved = [replace(c, readings=(0.5,)) if c.reply_id in lost else c for c in choices]
    found, same = (
        preference_results(rows, offered, words_of(TRAITS), Bootstrap(100, 0))
        for rows in (kept, halved)
    )
    assert found["reading"]["base"]["free"]["num_unread"] == len(lost) > 0
    assert same["reading"]["base"]["free"]["num_ties"] == len(lost)
    assert found["arms"] == same["arms"]
