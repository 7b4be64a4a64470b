"""Rollouts of the policy: groups of responses to a prompt, sampled and scored."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from charactertrain import chat
from charactertrain.exceptions import SamplingError
from charactertrain.records import Prompt
from charactertrain.runtime.sampling import (
    ABORTED,
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.seeds import derive_seed
from charactertrain.stages.preference_model.ensemble import EnsembleReward, ensemble_rewards
from charactertrain.templates import plain_conversation

Version = int
"""Of weights: the optimizer steps that they have behind them."""


@dataclass(frozen=True)
class Rollout:
    """One sampled response with its reward."""

    prompt_id: str
    prompt: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    """Per token, under the sampler, in nats."""
    reward: float
    """The preference model's scalar, made length-neutral."""
    disagreement: float
    """Standard deviation over the preference model's members; 0 for one."""
    versions: tuple[tuple[Version, int], ...]
    """The weights that wrote it, and the first token of each's."""

    def token_versions(self) -> list[Version]:
        """The weights that wrote each token."""
        ends = [*(start for _, start in self.versions[1:]), len(self.token_ids)]
        return [
            version
            for (version, start), end in zip(self.versions, ends, strict=True)
            for _ in range(start, end)
        ]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What `asdict` and JSON have made of it."""
        lists = {
            name: tuple(values[name]) for name in ("prompt_token_ids", "token_ids", "logprobs")
        }
        versions = tuple((version, start) for version, start in values["versions"])
        return cls(**{**values, **lists, "versions": versions})


@dataclass(frozen=True)
class HeldOut:
    """Responses to a prompt that is not trained on."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    golds: tuple[float, ...]
    """The gold model's reward of each; empty where none was trained."""


@dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are drawn and scored."""

    sampling: SamplingSettings
    group_size: int
    seed: int


class Aborted(Exception):  # noqa: N818  not an error: it is to be asked again
    """The engine gave the requests up."""


class RolloutMaker:
    """Draws groups from engine actors and has them scored."""

    def __init__(
        self,
        rewards: Sequence[Sampler],
        ensemble: EnsembleReward,
        tokenizer: chat.Tokenizer,
        settings: RolloutSettings,
    ) -> None:
        """`rewards` are those of the preference model's members."""
        self._rewards, self._ensemble = rewards, ensemble
        self._tokenizer, self._settings = tokenizer, settings

    async def make(
        self, engine: Any, prompt: Prompt, seed_key: str | int, size: int
    ) -> tuple[Rollout, ...]:
        """So many responses to a prompt.

        Args:
            engine: The handle of an actor that takes the weight updates.
            prompt: What is shown.
            seed_key: Decides the seeds, with the prompt.
            size: Responses.

        Raises:
            Aborted: The engine gave them up.
            SamplingError: It refused them.
        """
        requests = [
            SampleRequest(
                prompt.prompt_id,
                plain_conversation(prompt.text),
                derive_seed(self._settings.seed, "rollout", seed_key, prompt.prompt_id, index),
            )
            for index in range(size)
        ]
        results = await engine.sample.remote(requests, self._settings.sampling)
        samples = [_served(result) for result in results]
        sequences = [
            chat.encode_exchange(prompt.text, sample.text, self._tokenizer) for sample in samples
        ]
        lengths = [len(sample.token_ids) for sample in samples]
        # In a thread: it waits for the answer, and replaces an engine that dies.
        rewards, disagreements = await asyncio.to_thread(
            ensemble_rewards, self._rewards, self._ensemble, sequences, lengths
        )
        return tuple(
            Rollout(
                prompt_id=prompt.prompt_id,
                prompt=prompt.text,
                prompt_token_ids=sample.prompt_token_ids,
                token_ids=sample.token_ids,
                text=sample.text,
                logprobs=sample.logprobs,
                reward=reward,
                disagreement=disagreement,
                versions=tuple((int(version), start) for version, start in sample.weight_versions),
            )
            for sample, reward, disagreement in zip(samples, rewards, disagreements, strict=True)
        )


def _served(result: Sample | Failure) -> Sample:
    if not isinstance(result, Failure):
        return result
    if result.reason == ABORTED:
        raise Aborted
    raise SamplingError(f"rollout of prompt {result.request_id}: {result.reason}: {result.detail}")
