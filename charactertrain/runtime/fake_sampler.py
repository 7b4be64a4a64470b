"""A sampler without a model: for dry runs, scale simulation and fast tests of the plumbing.

Everything it returns is a function of the request alone, so that a killed and resumed run can be
compared with an undisturbed one, row by row.
"""

import math
from collections.abc import Sequence

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
from charactertrain.seeds import derive_seed
from charactertrain.templates import Shown

_VOCABULARY = (
    "the a my your one some small large old new green quiet river garden letter question train "
    "morning friend story idea road table music answer window winter paper bread mountain think "
    "maybe often always never evidence study I you we they go make find keep ask tell like want "
    "about with from over under before after because although while when where"
)
_WORDS = tuple(_VOCABULARY.split())


class FakeSampler:
    """Writes words drawn by a hash of the seed."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """Draw one text per request, of `min_tokens` to `max_tokens` words."""
        return [self._sample(request, settings) for request in requests]

    def _sample(self, request: SampleRequest, settings: SamplingSettings) -> Sample:
        key = _text(request.shown)
        spread = settings.max_tokens - settings.min_tokens + 1
        shortest = max(settings.min_tokens, 1)
        length = shortest + derive_seed(request.seed, key, "length") % spread
        length = min(length, settings.max_tokens)
        token_ids = tuple(
            derive_seed(request.seed, key, index) % len(_WORDS) for index in range(length)
        )
        return Sample(
            request_id=request.request_id,
            text=" ".join(_WORDS[token] for token in token_ids),
            prompt_token_ids=_token_ids(key),
            token_ids=token_ids,
            logprobs=tuple(-math.log(len(_WORDS)) for _ in token_ids),
            finish_reason="length" if length == settings.max_tokens else "stop",
            weight_version="fake",
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """A fixed log-probability per (what is shown, token)."""
        return [
            Score(
                request.request_id,
                tuple(
                    -(1 + derive_seed(_text(request.shown), token) % 4000 / 1000)
                    for token in request.token_ids
                ),
            )
            for request in requests
        ]

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """A fixed probability per question, never certain."""
        results: list[Choice | Failure] = []
        for request in requests:
            first = 0.1 + 0.8 * (derive_seed(_text(request.shown)) % 1000) / 1000
            logprobs = (math.log(first), math.log(1 - first))
            results.append(Choice(request.request_id, logprobs[: len(request.choices)]))
        return results

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """A fixed number in [-1, 1) per sequence."""
        return [derive_seed(*ids) % 2000 / 1000 - 1 for ids in token_ids]


def _text(shown: Shown) -> str:
    return "\n".join([*(message.content for message in shown.messages), shown.text])


def _token_ids(text: str) -> tuple[int, ...]:
    return tuple(derive_seed(word) % len(_WORDS) for word in text.split())
