"""A planted chooser's preferences are measured back; one without any has none."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from planted_chooser import PlantedChooser

from charactertrain.artifacts import Json
from charactertrain.effects import Bootstrap
from charactertrain.preference_results import preference_results
from charactertrain.records import Offer, TraitChoice
from charactertrain.revealed_preferences import RATING_SCALE
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.stages.trait_choices import LikelihoodReader, OfferWriter, offers, words_of

TRAITS = ("curious", "open_nature", "honest")
SETTINGS = SamplingSettings(1.0, 1.0, 8, 0, ())
PLAYED = {"curious": 1.0, "honest": -0.5, "witty": 1.0, "stern": -1.0}
PREFERRED = {"curious": 1.0, "open nature": 0.0, "honest": -1.0, "gloomy": -1.0, "playful": 0.7}
TRAINED = {**PREFERRED, "curious": 0.5, "honest": 1.0}


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


def measured(preferred: Mapping[str, Mapping[str, float]], seed: int) -> Json:
    """Results of arms with other seeds each: else they would throw the same coins."""
    offered = offers(TRAITS, pairs_per_trait=32, seed=seed)
    choices = [
        choice
        for number, (arm, utilities) in enumerate(preferred.items())
        for choice in choices_of(arm, utilities, offered, 2 * seed + number)
    ]
    return preference_results(choices, offered, words_of(TRAITS), Bootstrap(200, seed))


def above_mean(preferred: Mapping[str, float], words: list[str]) -> dict[str, float]:
    values = {word: preferred.get(word, 0.0) for word in words}
    mean = sum(values.values()) / len(values)
    return {word: RATING_SCALE * (value - mean) for word, value in values.items()}


def test_planted_preferences_and_their_change_are_within_the_intervals() -> None:
    rated, changed = [], []
    for seed in range(12):
        found = measured({"base": PREFERRED, "policy": TRAINED}, seed)
        words = list(found["arms"]["base"])
        base, policy = above_mean(PREFERRED, words), above_mean(TRAINED, words)
        for trait_id, word in words_of(TRAITS).items():
            one = found["arms"]["base"][word]
            rated.append(one["ci_low"] <= base[word] <= one["ci_high"])
            change = found["changes"][trait_id]["policy"]
            assert change["difference"] == pytest.approx(change["arm"] - change["base"])
            assert change["base"] == pytest.approx(one["difference"])
            truth = policy[word] - base[word]
            changed.append(change["ci_low"] <= truth <= change["ci_high"])
    print(np.mean(rated), np.mean(changed), one, change)
    assert np.mean(rated) >= 0.85
    assert np.mean(changed) >= 0.85
