"""Rollouts of a policy step: groups of responses to its prompts, with their rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from charactertrain import chat
from charactertrain.exceptions import SamplingError
from charactertrain.records import Prompt
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.seeds import derive_seed
from charactertrain.stages.ensemble import EnsembleReward, ensemble_rewards
from charactertrain.templates import plain_conversation


@dataclass(frozen=True)
class Rollout:
    """One sampled response with its reward."""

    prompt_id: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Per token, under the sampler, in nats."""
    reward: float
    """The preference model's scalar, made length-neutral."""
    disagreement: float
    """Standard deviation over the preference model's members; 0 for one."""
    weight_version: str


@dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are drawn and scored."""

    sampling: SamplingSettings
    group_size: int
    seed: int


class RolloutCollector:
    """Draws and scores groups through engine actors. Used by rank 0 alone."""

    def __init__(
        self,
        policy_engine: Any,
        rewards: Sequence[Sampler],
        ensemble: EnsembleReward,
        tokenizer: chat.Tokenizer,
        settings: RolloutSettings,
    ) -> None:
        """`policy_engine` is the handle of the actor that takes the weight updates."""
        self._policy_engine, self._rewards, self._ensemble = policy_engine, rewards, ensemble
        self._tokenizer, self._settings = tokenizer, settings

    def collect(self, prompts: Sequence[Prompt], step: int) -> list[list[Rollout]]:
        """One group of responses per prompt."""
        settings = self._settings
        requests = [
            SampleRequest(
                prompt.prompt_id,
                plain_conversation(prompt.text),
                derive_seed(settings.seed, "rollout", step, prompt.prompt_id, index),
            )
            for prompt in prompts
            for index in range(settings.group_size)
        ]
        results: list[Sample | Failure] = ray.get(
            self._policy_engine.sample.remote(requests, settings.sampling)
        )
        samples = [_served(result) for result in results]
        repeated = [prompt for prompt in prompts for _ in range(settings.group_size)]
        sequences = [
            chat.encode_exchange(prompt.text, sample.text, self._tokenizer)
            for prompt, sample in zip(repeated, samples, strict=True)
        ]
        rewards, disagreements = ensemble_rewards(
            self._rewards,
            self._ensemble,
            sequences,
            [len(sample.token_ids) for sample in samples],
        )
        rollouts = [
            Rollout(
                prompt_id=prompt.prompt_id,
                prompt_token_ids=sample.prompt_token_ids,
                token_ids=sample.token_ids,
                logprobs=sample.logprobs,
                reward=reward,
                disagreement=disagreement,
                weight_version=sample.weight_version,
            )
            for prompt, sample, reward, disagreement in zip(
                repeated, samples, rewards, disagreements, strict=True
            )
        ]
        size = settings.group_size
        return [rollouts[i : i + size] for i in range(0, len(rollouts), size)]


def _served(result: Sample | Failure) -> Sample:
    if isinstance(result, Failure):
        raise SamplingError(
            f"rollout of prompt {result.request_id}: {result.reason}: {result.detail}"
        )
    return result
