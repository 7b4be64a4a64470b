"""Replies of the evaluation's arms to held-out prompts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from charactertrain.records import Prompt, Reject, Reply, Trait
from charactertrain.runtime.sampling import Sample, Sampler, SampleRequest, SamplingSettings
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.stages.context import traits_shown
from charactertrain.templates import (
    REFERENCE_VARIANT,
    Shown,
    plain_conversation,
    response_conversation,
)

Conversing = Callable[[Prompt], Shown]
"""What an arm is shown of a prompt."""


def plain(prompt: Prompt) -> Shown:
    """The prompt alone."""
    return plain_conversation(prompt.text)


@dataclass(frozen=True)
class Prompted:
    """The prompt with the character, as responses are asked for at their plainest."""

    traits: Mapping[str, Trait]
    mode: str
    """`context.traits_prompted`."""
    placement: str

    def __call__(self, prompt: Prompt) -> Shown:
        """The conversation."""
        return response_conversation(
            prompt.text,
            traits_shown(dict(self.traits), prompt.trait_id, self.mode),
            variant=REFERENCE_VARIANT,
            placement=self.placement,
        )


class ReplyWriter:
    """Samples replies of one arm."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        arm: str,
        conversing: Conversing,
        count: int,
        settings: SamplingSettings,
        seed: int,
    ) -> None:
        """`count` replies per prompt."""
        self._sampler, self._arm, self._conversing = sampler, arm, conversing
        self._count, self._settings, self._seed = count, settings, seed

    def process(self, rows: list[Prompt]) -> tuple[list[Reply], list[Reject]]:
        """Replies, and rejects for prompts that do not fit the context."""
        asked = [(prompt, index) for prompt in rows for index in range(self._count)]
        results = self._sampler.sample(
            [self._request(prompt, index) for prompt, index in asked], self._settings
        )
        replies, rejects = [], []
        for (prompt, _), result in zip(asked, results, strict=True):
            if isinstance(result, Sample):
                replies.append(self._reply(prompt, result))
            else:
                why = ("evaluation", result.reason, result.detail)
                rejects.append(Reject(result.request_id, prompt.trait_id, *why))
        return replies, rejects

    def _request(self, prompt: Prompt, index: int) -> SampleRequest:
        # The same seeds in all arms, so that they differ by their weights and what they are shown.
        return SampleRequest(
            stable_id(self._arm, prompt.prompt_id, index),
            self._conversing(prompt),
            derive_seed(self._seed, "evaluation", prompt.prompt_id, index),
        )

    def _reply(self, prompt: Prompt, sample: Sample) -> Reply:
        return Reply(
            sample_id=sample.request_id,
            prompt_id=prompt.prompt_id,
            trait_id=prompt.trait_id,
            kind=prompt.kind,
            arm=self._arm,
            prompt=prompt.text,
            text=sample.text,
            token_ids=sample.token_ids,
            sequence_logprob=sample.sequence_logprob,
            finish_reason=sample.finish_reason,
        )
