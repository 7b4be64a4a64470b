"""Which responses the report shows side by side: some by chance, some for what they show."""

from collections import Counter
from collections.abc import Mapping, Sequence

from charactertrain.artifacts import read_rows
from charactertrain.pipeline import Work
from charactertrain.records import EvaluationSample
from charactertrain.report.effects_view import BASE, POLICY, Measure
from charactertrain.report.view import Pick, Reply, Sample
from charactertrain.seeds import derive_seed

NUM_RANDOM = 6
"""Prompts of a trait that are shown whatever came of them."""
NUM_EXTREME = 3
"""Prompts of a trait on which the contrast rose most, and as many on which it fell most."""

NOTE = (
    f"Picked at random: up to {NUM_RANDOM} prompts per trait, from each scenario family in turn "
    "and in the order of a hash of the prompt's id, so that no result bears on the choice. Biggest "
    f"wins and worst losses: the {NUM_EXTREME} prompts on which the contrast of the policy's reply "
    "is furthest above and below that of the base's. Of each arm the first response is shown."
)

Answers = Mapping[str, EvaluationSample]
"""The first response of each arm to one prompt."""


def first_answers(work: Work) -> dict[str, Answers]:
    """By prompt id; prompts that base or policy has no response to are left out."""
    first: dict[str, dict[str, EvaluationSample]] = {}
    for sample in read_rows(*work.inputs["evaluation"], "samples", EvaluationSample):
        first.setdefault(sample.prompt_id, {}).setdefault(sample.arm, sample)
    return {prompt_id: arms for prompt_id, arms in first.items() if {BASE, POLICY} <= arms.keys()}


def samples(
    answers: Mapping[str, Answers], families: Mapping[str, str], trait_id: str
) -> tuple[Sample, ...]:
    """What is shown of a trait: the biggest wins, the worst losses, then what chance picked.

    Args:
        answers: By prompt id, of all traits.
        families: Family of each prompt id.
        trait_id: Of the trait.
    """
    own = {
        prompt_id: arms for prompt_id, arms in answers.items() if arms[BASE].trait_id == trait_id
    }
    rises = {prompt_id: rise(arms) for prompt_id, arms in own.items()}
    picks: dict[Pick, Sequence[str]] = {
        "win": extremes(rises, sign=1),
        "loss": extremes(rises, sign=-1),
        "random": pick({prompt_id: families[prompt_id] for prompt_id in own}),
    }
    return tuple(
        _sample(own[prompt_id], how) for how, chosen in picks.items() for prompt_id in chosen
    )


def rise(arms: Answers) -> float:
    """Contrast of the policy's response minus that of the base's, in nats per token."""
    return arms[POLICY].contrast - arms[BASE].contrast


def extremes(rises: Mapping[str, float], *, sign: int) -> list[str]:
    """Prompt ids of the greatest rises (`sign` 1) or falls (-1), the greatest first.

    A prompt that moved the other way is not among them, however few there are.
    """
    moved = [prompt_id for prompt_id, found in rises.items() if sign * found > 0]
    return sorted(moved, key=lambda prompt_id: (-sign * rises[prompt_id], prompt_id))[:NUM_EXTREME]


def pick(families: Mapping[str, str]) -> list[str]:
    """Up to `NUM_RANDOM` prompt ids, from each family in turn, in the order of a hash of the id.

    Args:
        families: Family of each prompt id. Nothing else bears on the choice.
    """
    seen: Counter[str] = Counter()
    turns = {}
    for prompt_id in sorted(families, key=derive_seed):
        turns[prompt_id] = seen[families[prompt_id]]
        seen[families[prompt_id]] += 1
    return sorted(turns, key=turns.__getitem__)[:NUM_RANDOM]


def _sample(arms: Answers, how: Pick) -> Sample:
    others = [arm for arm in arms if arm not in (BASE, POLICY)]
    return Sample(
        prompt=arms[BASE].prompt,
        kind=arms[BASE].kind,
        pick=how,
        contrast_rise=rise(arms),
        replies={
            arm: Reply(text=arms[arm].text, measures=sample_measures(arms[arm]))
            for arm in (BASE, POLICY, *others)
        },
    )


def sample_measures(sample: EvaluationSample) -> dict[Measure, float]:
    """What was measured of one reply; detector_rate is 0 or 1."""
    found: dict[Measure, float | bool | None] = {
        "contrast": sample.contrast,
        "detector_rate": sample.detected,
        "reward": sample.reward,
        "gold_reward": sample.gold_reward,
    }
    return {measure: float(value) for measure, value in found.items() if value is not None}
