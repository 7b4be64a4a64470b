"""The readings' part of the report's view."""

import math
from collections.abc import Mapping

from charactertrain.artifacts import Json
from charactertrain.report.data_view import Estimate
from charactertrain.report.watch_view import WatchReading, WatchView
from charactertrain.stages.policy.reading import Reading
from charactertrain.statistics.bootstrap import cluster_bootstrap_difference

_NUM_RESAMPLES = 2000


def watch(summary: Json) -> WatchView | None:
    """The readings during policy training, as its manifest has them; None where there are none."""
    found = summary.get("watch")
    if found is None:
        return None
    readings = [Reading.from_json(values) for values in found["readings"]]
    return WatchView(
        readings=tuple(_reading(readings[0], reading) for reading in readings),
        num_prompts=readings[0].num_prompts,
        stopped=found["stopped"],
        exported_step=found["exported_step"],
    )


def _reading(first: Reading, reading: Reading) -> WatchReading:
    gold, gold_change = None, None
    if reading.gold is not None and reading.gold_interval is not None:
        gold = _estimate(reading.gold, reading.gold_interval)
        gold_change = _change(first.golds_by_prompt, reading.golds_by_prompt)
    return WatchReading(
        step=reading.step,
        kl=reading.kl,
        # Of a response, as Gao et al. (2023) have it. Not below 0, where rounding may put it.
        distance=math.sqrt(max(reading.kl * reading.length_tokens, 0.0)),
        reward=_estimate(reading.reward, reading.reward_interval),
        gold=gold,
        reward_change=_change(first.rewards_by_prompt, reading.rewards_by_prompt),
        gold_change=gold_change,
        entropy=reading.entropy,
        length_tokens=reading.length_tokens,
        distinct_2=reading.distinct_2,
        detectors=reading.detectors,
    )


def _estimate(value: float, interval: tuple[float, float]) -> Estimate:
    return Estimate(value=value, ci_low=interval[0], ci_high=interval[1])


def _change(first: Mapping[str, float] | None, last: Mapping[str, float] | None) -> Estimate:
    """The change of the mean, paired by prompt."""
    assert first is not None and last is not None, "all readings of a run have golds, or none"
    found = cluster_bootstrap_difference(
        {prompt_id: [value] for prompt_id, value in first.items()},
        {prompt_id: [value] for prompt_id, value in last.items()},
        num_resamples=_NUM_RESAMPLES,
        seed=0,
    )
    return Estimate(value=found.difference, ci_low=found.ci_low, ci_high=found.ci_high)
