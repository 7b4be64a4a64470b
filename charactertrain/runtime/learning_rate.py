"""The learning rate of each step."""

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """A linear rise from near zero, then what `decay` says, to zero behind the last step."""

    peak: float
    warmup_steps: int
    total_steps: int
    decay: Decay

    def rate(self, step: int) -> float:
        """The rate of a step; steps count from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.peak
        left = self.total_steps - self.warmup_steps
        done = (step - self.warmup_steps) / left if left > 0 else 1.0
        if self.decay == "linear":
            return self.peak * (1 - done)
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))
