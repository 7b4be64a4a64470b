"""The readings' part of the report's view, from a manifest's summary."""

import json
from dataclasses import replace
from typing import Any

import pytest

from charactertrain.stages.policy.reading import Reading, WatchedPrompt, make_reading
from charactertrain.stages.report.watch import watch


def readings(*, golds: tuple[float, ...]) -> list[Reading]:
    """Two readings of two prompts with two responses of four tokens each."""
    return [
        make_reading(
            step,
            [
                WatchedPrompt(name, "warm", ("a b", "c!"), (4, 4), (level, level + 1.0), golds)
                for name, level in (("p1", 0.0 + step), ("p2", 2.0 + step))
            ],
            {"warm": "!"},
            kl_sum=kl_sum,
            entropy_sum=32.0,
        )
        for step, kl_sum in ((0, -1e-9), (3, 4.0))
    ]


def summary(found: list[Reading]) -> dict[str, Any]:
    values = {
        "readings": [reading.as_json() for reading in found],
        "stopped": "why",
        "exported_step": 3,
    }
    back: dict[str, Any] = json.loads(json.dumps({"history": [], "watch": values}))
    return back


def test_view_of_the_readings() -> None:
    found = watch(summary(readings(golds=(0.5, 0.5))))
    assert found is not None
    assert (found.num_prompts, found.stopped, found.exported_step) == (2, "why", 3)
    assert (found.has_gold, found.trait_ids) == (True, ("warm",))
    first, last = found.readings
    # 4 nats over 16 tokens, of 4 tokens a response: 1 nat; and not the root of less than nothing.
    assert (first.distance, last.distance) == (0.0, 1.0)
    assert (last.step, last.kl, last.entropy, last.length_tokens) == (3, 0.25, 2.0, 4.0)
    assert last.detectors == {"warm": 0.5}
    assert (last.reward.value, last.reward.ci_low, last.reward.ci_high) == (4.5, 3.5, 5.5)
    # Both prompts gained 3, so that the paired interval has no width.
    change = last.reward_change
    assert (change.value, change.ci_low, change.ci_high) == (3.0, 3.0, 3.0)
    assert last.gold is not None
    assert last.gold_change is not None
    assert (last.gold.value, last.gold_change.value) == (0.5, 0.0)


def test_view_without_gold() -> None:
    found = watch(summary(readings(golds=())))
    assert found is not None
    assert not found.has_gold
    assert {(reading.gold, reading.gold_change) for reading in found.readings} == {(None, None)}


@pytest.mark.parametrize("values", [{"history": []}, {"history": [], "watch": None}])
def test_there_is_no_view_without_readings(values: dict[str, Any]) -> None:
    assert watch(values) is None


def test_golds_of_some_readings_alone_are_refused() -> None:
    first, last = readings(golds=(0.5, 0.5))
    bare = replace(first, gold=None, gold_interval=None, golds_by_prompt=None)
    with pytest.raises(AssertionError, match="have golds, or none"):
        watch(summary([bare, last]))
