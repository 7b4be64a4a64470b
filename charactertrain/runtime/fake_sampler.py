"""A sampler without a model: for dry runs, scale simulation and fast tests of the plumbing.

Everything it returns is a function of the request alone, so that a killed and resumed run can be
compared with an undisturbed one, row by row.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        # A generator per request, not a hash per token: simulations write millions of texts.
        draw = random.Random(derive_seed(request.seed, key))
        shortest = max(settings.min_tokens, 1)
        length = draw.randint(shortest, max(shortest, settings.max_tokens))
        token_ids = tuple(draw.choices(range(len(_WORDS)), k=length))
        return Sample(
            request_id=request.request_id,
            text=" ".join(_WORDS[token] for token in token_ids),
            prompt_token_ids=_token_ids(key),
            token_ids=token_ids,
            logprobs=(-math.log(len(_WORDS)),) * length,
            finish_reason="length" if length == settings.max_tokens else "stop",
            weight_versions=(("fake", 0),),
            cached_tokens=0,
        )

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """A fixed log-probability per (what is shown, token)."""
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Score:
        key = _text(request.shown)
        logprobs = tuple(
            -(1 + derive_seed(key, token) % 4000 / 1000) for token in request.token_ids
        )
        prompt_tokens = len(key.split()) + len(logprobs)
        return Score(request.request_id, logprobs, prompt_tokens=prompt_tokens, cached_tokens=0)

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Fixed probabilities per question, never certain."""
        return [self._choose(request) for request in requests]

    def _choose(self, request: ChoiceRequest) -> Choice:
        key = _text(request.shown)
        weights = [1 + derive_seed(key, choice) % 1000 for choice in request.choices]
        logprobs = tuple(math.log(weight / sum(weights)) for weight in weights)
        return Choice(request.request_id, logprobs, prompt_tokens=len(key.split()), cached_tokens=0)

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """A fixed number in [-1, 1) per sequence."""
        return [derive_seed(*ids) % 2000 / 1000 - 1 for ids in token_ids]

    def close(self) -> None:
        """Nothing was taken."""


@dataclass(frozen=True)
class Planted:
    """A trait that a fake arm shows with a known probability."""

    statement: str
    """Where it is shown, the phrase is likelier."""
    cue: str
    """In a conversation, says that the trait is at stake there."""
    phrase: str
    """How it shows."""
    probability: float
    dropped_at: str = ""
    """In a conversation, has it dropped; empty for nothing."""


class PlantedSampler(FakeSampler):
    """Writes and scores as `FakeSampler` does, and shows planted traits: what is to be found."""

    def __init__(self, planted: Sequence[Planted]) -> None:
        """The traits, each by draws of its own."""
        self._planted = tuple(planted)

    def _sample(self, request: SampleRequest, settings: SamplingSettings) -> Sample:
        sample, shown = super()._sample(request, settings), _text(request.shown)
        for index, trait in enumerate(self._planted):
            is_dropped = bool(trait.dropped_at) and trait.dropped_at in shown
            if trait.cue not in shown or is_dropped:
                continue
            if random.Random(derive_seed(request.seed, trait.cue)).random() < trait.probability:
                sample = replace(
                    sample,
                    text=f"{trait.phrase} {sample.text}",
                    token_ids=(len(_WORDS) + index, *sample.token_ids),
                    logprobs=(-1.0, *sample.logprobs),
                )
        return sample

    def _score(self, request: ScoreRequest) -> Score:
        shown = _text(request.shown)
        score = super()._score(request)
        logprobs = list(score.logprobs)
        for position, token in enumerate(request.token_ids):
            if token >= len(_WORDS):
                is_shown = self._planted[token - len(_WORDS)].statement in shown
                logprobs[position] = -1.0 if is_shown else -1.0 - PLANTED_SHIFT
        return replace(score, logprobs=tuple(logprobs))


PLANTED_SHIFT = 4.0
"""Nats by which a planted phrase, one token, is likelier where its trait is shown."""


@dataclass(frozen=True)
class FakeSource:
    """Opens a fake sampler in the worker itself, without an engine."""

    def open(self) -> FakeSampler:
        """A new one."""
        return FakeSampler()


def _text(shown: Shown) -> str:
    return "\n".join([*(message.content for message in shown.messages), shown.text])


def _token_ids(text: str) -> tuple[int, ...]:
    return tuple(len(word) for word in text.split())
