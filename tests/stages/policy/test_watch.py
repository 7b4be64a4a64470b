"""When the watch over policy training reads, when it says stop, and which step it takes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from charactertrain.config import RunConfig
from charactertrain.exceptions import ConfigError
from charactertrain.records import NO_TRAIT, Prompt, Split
from charactertrain.stages.policy.reading import Reading
from charactertrain.stages.policy.watch import (
    WatchSettings,
    best_step,
    reading_steps,
    stop_reason,
    watch_prompts,
    watch_settings,
)

SETTINGS = WatchSettings(
    every=25,
    responses_per_prompt=2,
    patience=2,
    entropy_floor=0.25,
    distinct_floor=0.5,
    length_band=(0.5, 2.0),
)
NUM_PROMPTS = 32


def reading(step: int, golds: Sequence[float] | None = None, **changes: Any) -> Reading:
    """A reading without collapse, whose reward rises with the step."""
    by_prompt = None if golds is None else {f"p{i}": value for i, value in enumerate(golds)}
    plain = Reading(
        step=step,
        reward=0.01 * step,
        reward_interval=(0.01 * step - 0.5, 0.01 * step + 0.5),
        gold=None if golds is None else float(np.mean(golds)),
        gold_interval=None if golds is None else (-9.0, 9.0),
        detectors={},
        kl=0.01,
        entropy=2.0,
        length_tokens=40.0,
        distinct_2=0.5,
        num_prompts=NUM_PROMPTS,
        rewards_by_prompt={f"p{i}": 0.01 * step for i in range(NUM_PROMPTS)},
        golds_by_prompt=by_prompt,
    )
    return replace(plain, **changes)


def series(
    levels: Sequence[float], seed: int = 0, noise: float = 0.2, num_prompts: int = NUM_PROMPTS
) -> list[Reading]:
    """Readings whose mean gold is near each level: prompts differ by 1, their readings by less."""
    rng = np.random.default_rng(seed)
    prompts = rng.normal(size=num_prompts)
    return [
        reading(25 * index, (prompts + level + noise * rng.normal(size=num_prompts)).tolist())
        for index, level in enumerate(levels)
    ]


def first_stop(readings: Sequence[Reading], settings: WatchSettings = SETTINGS) -> int | None:
    """Step of the first reading at which training stops."""
    for count in range(1, len(readings) + 1):
        if stop_reason(readings[:count], settings):
            return readings[count - 1].step
    return None


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_a_fall_of_the_gold_reward_stops_when_patience_is_used_up(patience: int) -> None:
    settings = replace(SETTINGS, patience=patience)
    found = series([0.0, 0.5, 1.0, 0.4, 0.3, 0.2, 0.1])
    assert first_stop(found, settings) == 50 + 25 * patience
    assert best_step(found, settings) == 50


def test_the_message_of_a_fall_has_numbers_steps_key_and_what_to_do() -> None:
    golds = [[float(level)] * NUM_PROMPTS for level in (0, 1, 0.75, 0.5)]
    found = [reading(25 * index, values) for index, values in enumerate(golds)]
    assert stop_reason(found, SETTINGS) == (
        "over-optimisation at step 75: on 32 held-out prompts the gold reward is 0.500, 0.500 "
        "below its best of step 25, where chance explains 0.000, while the reward that the policy "
        "is trained on rose from 0.250 to 0.750; so in 2 readings in a row (policy.watch.patience "
        "2). The policy learns the preference model's errors: train that on more prompts, raise "
        "policy.kl.coef, or lower policy.learning_rate."
    )


def test_a_fall_that_is_made_up_for_does_not_stop() -> None:
    assert first_stop(series([0.0, 1.0, 0.4, 1.1, 0.4, 1.2])) is None


def test_a_fall_of_both_rewards_is_no_over_optimisation() -> None:
    found = series([0.0, 1.0, 0.4, 0.3])
    fallen = [replace(found[0], reward=0.5), replace(found[1], reward=1.0)]
    fallen += [replace(found[2], reward=1.5), replace(found[3], reward=1.0)]
    assert stop_reason(fallen, SETTINGS) is None
    fallen[3] = replace(found[3], reward=1.01)
    assert stop_reason(fallen, SETTINGS) is not None


def test_equal_gold_rewards_do_not_stop() -> None:
    found = [reading(25 * index, [float(i) for i in range(NUM_PROMPTS)]) for index in range(5)]
    assert stop_reason(found, SETTINGS) is None
    assert best_step(found, SETTINGS) == 0


@pytest.mark.slow
def test_noise_of_a_flat_gold_reward_stops_few_runs() -> None:
    # As many readings as the recipe makes, the reward rising in all of them, on a few prompts.
    flat = [0.0] * 9
    stops = [first_stop(series(flat, seed, num_prompts=12)) is not None for seed in range(500)]
    assert sum(stops) <= 25


def test_a_real_fall_stops_runs_within_patience() -> None:
    # By 1.5 standard deviations of a prompt's noise: some six standard errors of a difference.
    stops = [first_stop(series([0.0, 0.3, 0.0, 0.0], seed)) == 75 for seed in range(20)]
    assert sum(stops) >= 19


@pytest.mark.parametrize(
    ("measure", "held", "left", "said"),
    [
        ("entropy", 0.5, 0.499, "0.499 nats per token, 0.25 times the 2.000 of step 0; "
         "policy.watch.entropy_floor is 0.25"),
        ("distinct_2", 0.25, 0.249, "0.249 of word bigrams, 0.50 times the 0.500 of step 0; "
         "policy.watch.distinct_floor is 0.5"),
        ("length_tokens", 20.0, 19.9, "19.900 tokens a response, 0.50 times the 40.000 of step 0; "
         "policy.watch.length_band is (0.5, 2.0)"),
        ("length_tokens", 80.0, 80.1, "80.100 tokens a response, 2.00 times the 40.000 of step 0; "
         "policy.watch.length_band is (0.5, 2.0)"),
    ],
)  # fmt: skip
def test_a_measure_out_of_bounds_stops_at_once_and_at_the_bound_does_not(
    measure: str, held: float, left: float, said: str
) -> None:
    at_bound = [reading(0), reading(25, **{measure: held})]
    assert stop_reason(at_bound, SETTINGS) is None
    beyond = [reading(0), reading(25, **{measure: left})]
    assert stop_reason(beyond, SETTINGS) == (
        f"{measure} at step 25 is {said}. The policy's texts degenerate: raise "
        "policy.kl.coef, or lower policy.learning_rate."
    )


def test_what_starts_at_zero_cannot_fall() -> None:
    found = [reading(0, distinct_2=0.0), reading(25, distinct_2=0.0)]
    assert stop_reason(found, SETTINGS) is None


def test_the_first_reading_stops_nothing() -> None:
    assert stop_reason([reading(0)], SETTINGS) is None
    assert stop_reason(series([0.0]), SETTINGS) is None


def test_all_broken_rules_are_said() -> None:
    found = series([0.0, 1.0, 0.4, 0.3])
    found[-1] = replace(found[-1], entropy=0.1, length_tokens=90.0)
    said = (stop_reason(found, SETTINGS) or "").splitlines()
    assert [line.split()[0] for line in said] == ["over-optimisation", "entropy", "length_tokens"]


def test_best_step_without_gold_is_the_last_within_bounds() -> None:
    found = [reading(0), reading(25), reading(50, entropy=0.1)]
    assert [best_step(found[:count], SETTINGS) for count in (1, 2, 3)] == [0, 25, 25]


def test_best_step_by_gold_leaves_out_what_is_out_of_bounds() -> None:
    found = series([0.0, 1.0, 3.0], noise=0.0)
    assert best_step(found, SETTINGS) == 50
    found[2] = replace(found[2], distinct_2=0.1)
    assert best_step(found, SETTINGS) == 25


def test_best_step_becomes_the_last_or_stays() -> None:
    found = series([0.0, 0.6, 0.3, 0.9, 0.1], noise=0.5)
    steps = [best_step(found[:count], SETTINGS) for count in range(1, 6)]
    for count, (before, after) in enumerate(pairwise(steps), start=1):
        assert after in (before, found[count].step)


@pytest.mark.parametrize(
    ("num_steps", "every", "steps"),
    [
        (100, 25, {0, 25, 50, 75, 100}),
        (60, 25, {0, 25, 50, 60}),
        (10, 25, {0, 10}),
        (10, 0, set()),
    ],
)
def test_readings_are_made_before_the_first_step_and_after_the_last(
    num_steps: int, every: int, steps: set[int]
) -> None:
    assert reading_steps(num_steps, every) == steps


def prompts(**counts: int) -> list[Prompt]:
    splits: tuple[Split, ...] = ("train", "validation", "test")
    return [
        Prompt(f"{trait}-{split}-{index}", trait, trait, "trait", "?", split)
        for trait, count in counts.items()
        for split in splits
        for index in range(count)
    ]


def test_prompts_are_of_validation_and_of_each_trait_in_turn() -> None:
    given = prompts(warm=9, brief=2, **{NO_TRAIT: 9})
    chosen = watch_prompts(given, 7)
    assert {prompt.split for prompt in chosen} == {"validation"}
    traits = [prompt.trait_id for prompt in chosen]
    assert traits.count("brief") == 2
    assert sorted(traits.count(name) for name in set(traits)) == [2, 2, 3]
    assert watch_prompts(given[::-1], 7) == chosen
    assert watch_prompts(given, 3) == chosen[:3]


def test_all_prompts_are_taken_where_there_are_fewer_than_asked_for() -> None:
    assert len(watch_prompts(prompts(warm=3), 64)) == 3


def test_too_few_prompts_name_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"there are 1, .*prompts\.validation_share, or set "):
        watch_prompts(prompts(warm=1), 64)


def test_settings_are_those_of_the_config(smoke_config: RunConfig) -> None:
    assert watch_settings(smoke_config.policy.watch) == WatchSettings(
        every=2,
        responses_per_prompt=2,
        patience=99,
        entropy_floor=0.0,
        distinct_floor=0.0,
        length_band=(0.0, 99.0),
    )
