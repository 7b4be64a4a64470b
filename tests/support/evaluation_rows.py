"""Traits, prompts and replies of an evaluation, and a sampler that finds everything too long."""

from collections.abc import Sequence

from charactertrain.records import Prompt, Reply, Trait
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)

TRAITS = {
    "warm": Trait("warm", "I am warm.", (), "(?i)glad", 1.0, "small"),
    "curious": Trait("curious", "I ask how things come to be.", (), None, 1.0, "small"),
}
PROMPTS = [
    Prompt("p1", "warm", "warm/tea", "trait", "Tea?", "test"),
    Prompt("p2", "curious", "curious/rain", "trait", "It rains.", "test"),
]
REPLY = Reply(
    sample_id="s1",
    prompt_id="p1",
    trait_id="warm",
    kind="trait",
    arm="policy",
    prompt="Tea?",
    text="Glad to, thank you.",
    token_ids=(3, 4, 5, 6),
    sequence_logprob=-2.0,
    finish_reason="stop",
)


class RefusingSampler:
    """Finds everything too long."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """A failure per request."""
        return [
            Failure(request.request_id, "too_long", f"more than {settings.max_tokens}")
            for request in requests
        ]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """A failure per request."""
        return [Failure(request.request_id, "too_long", "99 tokens") for request in requests]

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """A failure per request."""
        return [Failure(request.request_id, "too_long", "99 tokens") for request in requests]

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """Nothing."""
        raise AssertionError(f"nobody asks for {len(token_ids)} rewards")

    def close(self) -> None:
        """Nothing was taken."""
