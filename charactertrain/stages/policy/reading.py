"""A reading of the policy on held-out prompts: what is measured after a step of its training."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from charactertrain.exceptions import TrainingError
from charactertrain.statistics.bootstrap import cluster_bootstrap_mean
from charactertrain.texts import measures

_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class WatchedPrompt:
    """A held-out prompt with what was measured of each of its responses."""

    prompt_id: str
    trait_id: str
    texts: tuple[str, ...]
    num_tokens: tuple[int, ...]
    rewards: tuple[float, ...]
    """Of the preference model that the policy is trained against."""
    golds: tuple[float, ...]
    """Of the gold model; empty where none was trained."""


@dataclass(frozen=True)
class Reading:
    """The policy after a step, on the same prompts as at every other reading."""

    step: int
    """Steps taken; 0 is the policy as it starts."""
    reward: float
    """Mean reward that the policy is trained on."""
    reward_interval: tuple[float, float]
    """95 %, over prompts."""
    gold: float | None
    """Mean reward of the gold model; None where none was trained."""
    gold_interval: tuple[float, float] | None
    detectors: Mapping[str, float]
    """By trait, the share of responses to its prompts in which its detector is found."""
    kl: float
    """To the reference, in nats per token, by the k3 estimator."""
    entropy: float
    """In nats per token."""
    length_tokens: float
    """Mean of the responses."""
    distinct_2: float
    """Share of word bigrams that are distinct; 0 where no response has two words."""
    num_prompts: int
    rewards_by_prompt: Mapping[str, float]
    """Means over a prompt's responses, so that readings are compared prompt by prompt."""
    golds_by_prompt: Mapping[str, float] | None

    def as_json(self) -> dict[str, Any]:
        """For a manifest's summary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Reading":
        """What `as_json` gave, also after JSON has made lists of its tuples."""
        intervals = {
            name: None if values[name] is None else tuple(values[name])
            for name in ("reward_interval", "gold_interval")
        }
        return cls(**{**values, **intervals})


def make_reading(
    step: int,
    prompts: Sequence[WatchedPrompt],
    detectors: Mapping[str, str],
    *,
    kl_sum: float,
    entropy_sum: float,
) -> Reading:
    """The reading after a step.

    Args:
        step: Steps taken.
        prompts: With as many responses each; all with golds, or none.
        detectors: Regular expression by trait id; traits without one are absent.
        kl_sum: Over all tokens of all responses, in nats.
        entropy_sum: Likewise.

    Raises:
        TrainingError: KL or entropy is not finite.
        ValueError: A reward is not finite, or there is only one prompt.
    """
    _check(step, prompts, kl_sum, entropy_sum)
    num_tokens = sum(sum(prompt.num_tokens) for prompt in prompts)
    num_responses = sum(len(prompt.texts) for prompt in prompts)
    rewards = {prompt.prompt_id: prompt.rewards for prompt in prompts}
    reward, reward_interval, rewards_by_prompt = _summed_up(rewards)
    gold, gold_interval, golds_by_prompt = None, None, None
    if prompts[0].golds:
        golds = {prompt.prompt_id: prompt.golds for prompt in prompts}
        gold, gold_interval, golds_by_prompt = _summed_up(golds)
    return Reading(
        step=step,
        reward=reward,
        reward_interval=reward_interval,
        gold=gold,
        gold_interval=gold_interval,
        detectors=_detector_rates(prompts, detectors),
        kl=kl_sum / num_tokens,
        entropy=entropy_sum / num_tokens,
        length_tokens=num_tokens / num_responses,
        distinct_2=_distinct_2([text for prompt in prompts for text in prompt.texts]),
        num_prompts=len(prompts),
        rewards_by_prompt=rewards_by_prompt,
        golds_by_prompt=golds_by_prompt,
    )


def _check(step: int, prompts: Sequence[WatchedPrompt], kl_sum: float, entropy_sum: float) -> None:
    sizes = {(len(p.texts), len(p.num_tokens), len(p.rewards)) for p in prompts}
    num_golds = {len(prompt.golds) for prompt in prompts}
    # A mean over responses is one over prompts only if each prompt has as many.
    assert len(sizes) == len(num_golds) == 1, f"prompts with as many of each: {sizes}, {num_golds}"
    assert len(set(*sizes)) == 1, f"as many rewards and lengths as responses: {sizes}"
    assert num_golds <= {0, len(prompts[0].texts)}, f"no golds or one each: {num_golds}"
    if not (math.isfinite(kl_sum) and math.isfinite(entropy_sum)):
        raise TrainingError(
            f"the reading after step {step}: the KL's sum is {kl_sum} and the entropy's "
            f"{entropy_sum} on {len(prompts)} held-out prompts; lower policy.learning_rate"
        )


def _summed_up(
    by_prompt: Mapping[str, Sequence[float]],
) -> tuple[float, tuple[float, float], dict[str, float]]:
    found = cluster_bootstrap_mean(by_prompt, num_resamples=_NUM_RESAMPLES, seed=0)
    means = {prompt_id: fmean(values) for prompt_id, values in by_prompt.items()}
    return found.estimate, (found.ci_low, found.ci_high), means


def _detector_rates(
    prompts: Sequence[WatchedPrompt], detectors: Mapping[str, str]
) -> dict[str, float]:
    found: dict[str, list[bool]] = {}
    for prompt in prompts:
        if prompt.trait_id in detectors:
            pattern = detectors[prompt.trait_id]
            matches = [measures.detector_matches(pattern, text) for text in prompt.texts]
            found.setdefault(prompt.trait_id, []).extend(matches)
    return {trait_id: fmean(matches) for trait_id, matches in sorted(found.items())}


def _distinct_2(texts: Sequence[str]) -> float:
    # Words as in the evaluation. A policy that is down to single words has not failed to be
    # measured: it has lost all variety.
    words = [text.split() for text in texts]
    return measures.distinct_n(words, 2) if any(len(found) > 1 for found in words) else 0.0
