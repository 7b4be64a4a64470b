"""What the report page shows of the readings on held-out prompts during policy training.

As in `view`, no field has a default: what a run does not have is None.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from charactertrain.report.data_view import Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchReading:
    """The policy after a step, on the same held-out prompts as at every other reading."""

    step: int
    """Steps taken; 0 is the policy as it starts."""
    kl: float
    """KL to the reference in nats per token."""
    distance: float
    """Square root of the KL to the reference in nats per response."""
    reward: Estimate
    """Mean reward that the policy is trained on, with its interval over prompts."""
    gold: Estimate | None
    """Mean reward of the gold model; None where none was trained."""
    reward_change: Estimate
    """Since the first reading, with its interval paired by prompt."""
    gold_change: Estimate | None
    """Likewise of the gold reward."""
    entropy: float
    """Mean entropy of the next-token distribution in nats."""
    length_tokens: float
    """Mean response length in tokens."""
    distinct_2: float
    """Share of bigrams that are distinct, 0 to 1."""
    detectors: Mapping[str, float]
    """By trait, the share of responses to its prompts in which its detector is found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchView:
    """All readings, and what came of them."""

    readings: tuple[WatchReading, ...]
    """In the order of steps, at least one."""
    num_prompts: int
    """Held-out prompts of each reading."""
    stopped: str | None
    """Why training was stopped, a line for each rule; None where no rule stopped it."""
    exported_step: int
    """Step whose weights became the policy."""

    @property
    def has_gold(self) -> bool:
        """Whether a gold model was there to show over-optimisation."""
        return self.readings[0].gold is not None

    @property
    def trait_ids(self) -> tuple[str, ...]:
        """Traits with a detector that was looked for."""
        return tuple(self.readings[0].detectors)
