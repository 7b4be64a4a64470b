"""What a run's stages are to compute: requests to engines, and steps of training."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from charactertrain.plan.lengths import Length
from charactertrain.sizing.roofline import Step

Reader = Literal["model", "reward"]


@dataclass(frozen=True)
class Job:
    """Requests of one kind to the engines of a model."""

    name: str
    requests: float
    length: Length
    """Of what is shown; common are the tokens that a prefix cache is expected to hold."""
    written: float
    """Tokens that each writes, on average."""
    longest: float
    """Tokens that one may write."""
    reader: Reader = "model"
    predicted_share: float = 0.0
    """Of the tokens computed of what is shown, those that pass the output layer."""

    @property
    def tokens_written(self) -> float:
        """Of all requests."""
        return self.requests * self.written

    @property
    def tokens_read(self) -> float:
        """Of all requests, from a cache or not."""
        return self.requests * self.length.shown

    @property
    def tokens_computed(self) -> float:
        """Of those read, the ones that no cache holds."""
        return self.requests * self.length.own


def reading(name: str, requests: float, length: Length, reader: Reader = "model") -> Job:
    """Texts that are rewarded or judged: what engines write of it is one token."""
    return Job(name, requests, length, 1.0 if reader == "model" else 0.0, 1.0, reader)


def scoring(name: str, requests: float, length: Length) -> Job:
    """Texts whose log-probabilities are asked for: vLLM makes logits of all that it computes."""
    return replace(reading(name, requests, length), predicted_share=1.0)


@dataclass(frozen=True)
class Trained:
    """Steps of one model."""

    name: str
    steps: float
    step: Step

    @property
    def tokens(self) -> float:
        """That pass through the model, each counted once however often it passes."""
        return self.steps * self.step.groups * self.step.tokens_per_group

    @property
    def learns(self) -> bool:
        """Whether it is more than reading what is held out."""
        return self.step.passes.trained > 1


@dataclass(frozen=True)
class Online:
    """Policy steps that sample what they are trained on."""

    steps: int
    sampled: Job
    """Of one step."""
    scored: Job
    """Of one step, by each reward model."""
    trained: Step
    sends_weights: bool
    is_ahead: bool
    """Whether engines write while a step is trained."""
    read: tuple[Job, ...]
    """Of one reading of the watch; empty for none."""
    readings: int
    scorers: int
    """Reward models, each with an engine of its own."""

    @property
    def tokens_written(self) -> float:
        """By engines."""
        read = sum(job.tokens_written for job in self.read)
        return self.steps * self.sampled.tokens_written + self.readings * read

    @property
    def tokens_read(self) -> float:
        """By engines, from a cache or not."""
        scored = self.scorers * self.scored.tokens_read
        read = sum(job.tokens_read for job in self.read)
        return self.steps * (self.sampled.tokens_read + scored) + self.readings * read

    @property
    def tokens_trained(self) -> float:
        """That the policy learns from."""
        return self.steps * self.trained.groups * self.trained.tokens_per_group


@dataclass(frozen=True)
class StageWork:
    """Of one stage."""

    jobs: tuple[Job, ...] = ()
    trained: tuple[Trained, ...] = ()
    online: Online | None = None

    @property
    def tokens_written(self) -> float:
        """By engines."""
        more = 0.0 if self.online is None else self.online.tokens_written
        return _sum(job.tokens_written for job in self.jobs) + more

    @property
    def tokens_read(self) -> float:
        """By engines, from a cache or not."""
        more = 0.0 if self.online is None else self.online.tokens_read
        return _sum(job.tokens_read for job in self.jobs) + more

    @property
    def tokens_trained(self) -> float:
        """That models learn from, each counted once however often it passes through them."""
        more = 0.0 if self.online is None else self.online.tokens_trained
        return _sum(part.tokens for part in self.trained if part.learns) + more


def _sum(values: Iterable[float]) -> float:
    return float(sum(values))
