"""What engines count: sums over engines, differences over time, rates for a line of metrics."""

from dataclasses import fields

import pytest

from charactertrain.runtime.engine_spec import EngineCounts

EARLIER = EngineCounts(
    prompt_tokens=100,
    cached_tokens=20,
    generated_tokens=30,
    requests=4,
    steps=10,
    running_sequences=15,
    running=7,
    waiting=9,
)
LATER = EngineCounts(
    prompt_tokens=300,
    cached_tokens=70,
    generated_tokens=130,
    requests=14,
    steps=50,
    running_sequences=135,
    running=2,
    waiting=1,
)


def test_counts_of_engines_add_up() -> None:
    assert (
        EngineCounts(
            prompt_tokens=400,
            cached_tokens=90,
            generated_tokens=160,
            requests=18,
            steps=60,
            running_sequences=150,
            running=9,
            waiting=10,
        )
        == EARLIER + LATER
    )
    assert EngineCounts() + LATER == LATER


def test_counts_since_are_differences_but_for_what_is_momentary() -> None:
    assert LATER.since(EARLIER) == EngineCounts(
        prompt_tokens=200,
        cached_tokens=50,
        generated_tokens=100,
        requests=10,
        steps=40,
        running_sequences=120,
        running=2,
        waiting=1,
    )
    assert LATER.since(EngineCounts()) == LATER


def test_an_engine_that_was_replaced_takes_nothing_below_zero() -> None:
    found = EARLIER.since(LATER)
    assert all(getattr(found, field.name) >= 0 for field in fields(found))
    assert (found.prompt_tokens, found.requests) == (0, 0)
    assert (found.running, found.waiting) == (7, 9)


def test_rates_are_per_second_per_step_and_per_prompt_token() -> None:
    assert LATER.since(EARLIER).rates(4.0) == {
        "generated_tokens_per_second": 25.0,
        "prompt_tokens_per_second": 50.0,
        "cache_hit_share": 0.25,
        "mean_running": 3.0,
        "requests": 10,
        "running": 2,
        "waiting": 1,
    }


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_rates_of_nothing_are_zero(seconds: float) -> None:
    assert set(EngineCounts().rates(seconds).values()) == {0}
