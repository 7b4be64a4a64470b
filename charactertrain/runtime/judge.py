"""A sampler whose judgements come from another model than the one that writes."""

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplerSource,
    SamplingSettings,
    Score,
    ScoreRequest,
)


@dataclass(frozen=True)
class JudgedSource:
    """Opens a sampler that writes and scores with one model and judges with another."""

    own: SamplerSource
    judge: SamplerSource

    def open(self) -> "JudgedSampler":
        """Neither model is started before it is asked."""
        return JudgedSampler(self)


class JudgedSampler:
    """A `Sampler` of two: choices are the judge's, everything else is the model's own."""

    def __init__(self, source: JudgedSource) -> None:
        """Open nothing yet: a run may need only one of the two."""
        self._source = source
        self._own: Sampler | None = None
        self._judge: Sampler | None = None
        # A worker's threads share its sampler.
        self._opening = threading.Lock()

    @property
    def _writer(self) -> Sampler:
        with self._opening:
            self._own = self._own or self._source.own.open()
            return self._own

    @property
    def _judging(self) -> Sampler:
        with self._opening:
            self._judge = self._judge or self._source.judge.open()
            return self._judge

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """Draw one text per request."""
        return self._writer.sample(requests, settings)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """Log-probabilities of given texts."""
        return self._writer.score(requests)

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Log-probabilities of given next tokens, of the judge."""
        return self._judging.choose(requests)

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """The preference model's scalar for each whole sequence."""
        return self._writer.rewards(token_ids)

    def close(self) -> None:
        """Give back what was opened."""
        with contextlib.ExitStack() as opened:
            for sampler in (self._own, self._judge):
                if sampler is not None:
                    opened.callback(sampler.close)
