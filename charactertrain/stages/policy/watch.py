"""The watch over policy training: on which prompts, after which steps, and when it says stop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from charactertrain.config import WatchSection
from charactertrain.exceptions import ConfigError
from charactertrain.records import Prompt
from charactertrain.seeds import derive_seed
from charactertrain.stages.policy.reading import Reading
from charactertrain.statistics.bootstrap import Fall, fall_from_best

_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class WatchSettings:
    """When readings are made, and when they stop the training; as `policy.watch` has it."""

    every: int
    responses_per_prompt: int
    patience: int
    entropy_floor: float
    distinct_floor: float
    length_band: tuple[float, float]


def watch_settings(section: WatchSection) -> WatchSettings:
    """The section as plain values."""
    return WatchSettings(
        every=section.every,
        responses_per_prompt=section.responses_per_prompt,
        patience=section.patience,
        entropy_floor=section.entropy_floor,
        distinct_floor=section.distinct_floor,
        length_band=section.length_band,
    )


def watch_prompts(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """Up to `count` validation prompts, of each trait in turn, in the order of a hash of the id.

    Not test prompts: the step to export is chosen by these, and the evaluation's are to be unseen.

    Raises:
        ConfigError: There are fewer than two.
    """
    by_trait: dict[str, list[Prompt]] = {}
    for prompt in sorted(prompts, key=lambda p: derive_seed("watch", p.prompt_id)):
        if prompt.split == "validation":
            by_trait.setdefault(prompt.trait_id, []).append(prompt)
    turns = [(turn, prompt) for found in by_trait.values() for turn, prompt in enumerate(found)]
    chosen = tuple(prompt for _, prompt in sorted(turns, key=lambda item: item[0]))[:count]
    if len(chosen) < 2:
        raise ConfigError(
            f"policy.watch reads on validation prompts, of which there are {len(chosen)}, and an "
            "interval needs two; raise prompts.validation_share, or set policy.watch.every=0"
        )
    return chosen


def reading_steps(num_steps: int, every: int) -> set[int]:
    """Numbers of steps after which a reading is made: 0, each `every`-th, and the last."""
    return {*range(0, num_steps, every), num_steps} if every else set()


def stop_reason(readings: Sequence[Reading], settings: WatchSettings) -> str | None:
    """Why training is to stop after the last reading, a line for each rule; None to go on.

    Over-optimisation, as in Gao et al. (2023), https://arxiv.org/abs/2210.10760: in the last
    `patience` readings the gold reward lay below its best by more than chance explains
    (`bootstrap.fall_from_best`), and the reward that the policy is trained on above what it was
    there. Without a gold model this cannot be seen. Collapse: entropy or distinct-2 below its
    floor, or length outside its band, in the last reading alone.

    Args:
        readings: All so far, in the order of steps, the first from before the first step.
        settings: Patience, floors and band.
    """
    lines = [
        *_over_optimisation(readings, settings),
        *_out_of_bounds(readings[0], readings[-1], settings),
    ]
    return "\n".join(lines) or None


def best_step(readings: Sequence[Reading], settings: WatchSettings) -> int:
    """The step whose weights to export, out of the readings so far.

    Of the readings within floors and band, as the first always is: the one with the highest
    gold reward, of equal ones the first; where no gold model was trained, the last, since
    nothing then tells a better policy from one that has learnt the preference model's errors.
    As readings come in it changes to the last of them or not at all, so that only the weights
    of the best need to be kept.
    """
    sound = [reading for reading in readings if not _out_of_bounds(readings[0], reading, settings)]
    golds = [reading.gold for reading in sound if reading.gold is not None]
    best = golds.index(max(golds)) if golds else -1
    return sound[best].step


def _over_optimisation(readings: Sequence[Reading], settings: WatchSettings) -> list[str]:
    patience = settings.patience
    if len(readings) <= patience or readings[-1].gold is None:
        return []
    # The last first: most often it has not parted, and the others need not be looked at.
    if not all(_has_parted(readings[: len(readings) - ago]) for ago in range(patience)):
        return []
    fall, last = _gold_fall(readings), readings[-1]
    best = readings[fall.best]
    return [
        f"over-optimisation at step {last.step}: on {last.num_prompts} held-out prompts the gold "
        f"reward is {last.gold:.3f}, {fall.fall:.3f} below its best of step {best.step}, where "
        f"chance explains {fall.limit:.3f}, while the reward that the policy is trained on rose "
        f"from {best.reward:.3f} to {last.reward:.3f}; so in {patience} readings in a row "
        f"(policy.watch.patience {patience}). The policy learns the preference model's errors: "
        "train that on more prompts, raise policy.kl.coef, or lower policy.learning_rate."
    ]


def _has_parted(readings: Sequence[Reading]) -> bool:
    """Whether from the best to the last, gold reward fell and the reward trained on rose."""
    fall = _gold_fall(readings)
    return fall.is_established and readings[-1].reward > readings[fall.best].reward


def _gold_fall(readings: Sequence[Reading]) -> Fall:
    series = []
    for reading in readings:
        assert reading.golds_by_prompt is not None, "all readings of a run have golds, or none"
        series.append({name: [gold] for name, gold in reading.golds_by_prompt.items()})
    return fall_from_best(series, num_resamples=_NUM_RESAMPLES, seed=0)


def _out_of_bounds(first: Reading, last: Reading, settings: WatchSettings) -> list[str]:
    """A line for each measure that is not within what the first reading allows it."""
    shortest, longest = settings.length_band
    bounds = (
        ("entropy", "nats per token", "entropy_floor", settings.entropy_floor, math.inf),
        ("distinct_2", "of word bigrams", "distinct_floor", settings.distinct_floor, math.inf),
        ("length_tokens", "tokens a response", "length_band", shortest, longest),
    )
    lines = []
    for measure, unit, key, low, high in bounds:
        value, start = getattr(last, measure), getattr(first, measure)
        # From nothing there is nowhere to fall.
        ratio = value / start if start else 1.0
        if not low <= ratio <= high:
            lines.append(
                f"{measure} at step {last.step} is {value:.3f} {unit}, {ratio:.2f} times the "
                f"{start:.3f} of step {first.step}; policy.watch.{key} is "
                f"{getattr(settings, key)}. The policy's texts degenerate: raise "
                "policy.kl.coef, or lower policy.learning_rate."
            )
    return lines
