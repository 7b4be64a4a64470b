"""What stages ask of a sampler, and what they get back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from charactertrain.records import FinishReason
from charactertrain.templates import Shown


@dataclass(frozen=True)
class SamplingSettings:
    """How text is drawn."""

    temperature: float
    top_p: float
    max_tokens: int
    min_tokens: int
    stop: tuple[str, ...]
    """Strings that end a text; not part of it."""


@dataclass(frozen=True)
class SampleRequest:
    """One text to be written."""

    request_id: str
    shown: Shown
    seed: int


@dataclass(frozen=True)
class Sample:
    """One text written, with the log-probabilities it was drawn with."""

    request_id: str
    text: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Per token, under the distribution sampled from, in nats."""
    finish_reason: FinishReason
    weight_versions: tuple[tuple[str, int], ...]
    """The weights that wrote it, and the first token of each's: one, unless an update came in
    between."""
    cached_tokens: int
    """Of the prompt's, found in the engine's prefix cache."""

    @property
    def sequence_logprob(self) -> float:
        """Sum of the token log-probabilities, in nats."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class ScoreRequest:
    """A text whose likelihood is wanted after what was shown."""

    request_id: str
    shown: Shown
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a given text, at temperature 1."""

    request_id: str
    logprobs: tuple[float, ...]
    """Per token of the request's `token_ids`, in nats."""
    prompt_tokens: int
    """That the engine was given: what was shown and the text."""
    cached_tokens: int
    """Of them, found in its prefix cache."""


@dataclass(frozen=True)
class ChoiceRequest:
    """A question whose next token is one of a few letters."""

    request_id: str
    shown: Shown
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """How likely each choice is as the next token."""

    request_id: str
    logprobs: tuple[float, ...]
    """log P(choice) over the whole vocabulary, in nats; the choices do not sum to 1."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's tokens, found in the engine's prefix cache."""


ABORTED = "aborted"
"""The reason of a request that the engine gave up; it may be asked again."""


@dataclass(frozen=True)
class Failure:
    """A request that could not be served; its row becomes a reject."""

    request_id: str
    reason: str
    detail: str


class Sampler(Protocol):
    """Writes, scores and judges text. Results come in the order of the requests."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """Draw one text per request."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """Log-probabilities of given texts."""

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Log-probabilities of given next tokens."""

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """The preference model's scalar for each whole sequence (prompt and response)."""

    def close(self) -> None:
        """Give back what was taken to open it."""


class SamplerSource(Protocol):
    """Where a worker gets its sampler; travels to any process of the cluster."""

    def open(self) -> Sampler:
        """A sampler for this process; close it after use."""
