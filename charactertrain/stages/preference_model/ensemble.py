"""One reward from those of several preference models that differ in their seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from charactertrain.runtime.sampling import Sampler


@dataclass(frozen=True)
class LengthBand:
    """A soft bound on length."""

    shortest: int
    longest: int
    cost: float
    """Reward per token outside."""

    def costs(self, lengths_R: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """What each response's length costs it."""
        lengths = np.array(lengths_R, float)
        outside = np.maximum(self.shortest - lengths, 0) + np.maximum(lengths - self.longest, 0)
        return np.asarray(self.cost * outside)


@dataclass(frozen=True)
class EnsembleReward:
    """How members' rewards become one."""

    levels: tuple[float, ...]
    """Each member's mean reward of held-out responses, which its training leaves free: taken off,
    so that members can be set against one another."""
    length_slopes: tuple[float, ...]
    """Each member's reward per token of length, taken off, so that length earns nothing."""
    reference_tokens: float
    """The length whose reward stays as it is; any constant, if only it is the same for all."""
    aggregate: Literal["mean", "minimum"]
    disagreement_coef: float
    """Of the members' variance, taken off: the uncertainty-weighted optimisation of Coste et al.
    (2023), eq. 4, https://arxiv.org/abs/2310.02743; `minimum` is their worst-case one, eq. 3."""
    length: LengthBand | None
    """What lengths are wanted, whatever the preference model thinks of length."""

    def combine(
        self, rewards_MR: Sequence[Sequence[float]], lengths_R: Sequence[int]
    ) -> tuple[list[float], list[float]]:
        """The reward of each response, and the members' standard deviation about their mean.

        Args:
            rewards_MR: For each of M members its rewards of R responses.
            lengths_R: Tokens of each response.
        """
        extra_R = np.array(lengths_R, float) - self.reference_tokens
        earned_MR = np.array(self.length_slopes)[:, None] * extra_R
        rewards = np.array(rewards_MR, float) - np.array(self.levels)[:, None] - earned_MR
        combined = rewards.mean(axis=0) if self.aggregate == "mean" else rewards.min(axis=0)
        combined = combined - self.disagreement_coef * rewards.var(axis=0)
        if self.length is not None:
            combined = combined - self.length.costs(lengths_R)
        return combined.tolist(), rewards.std(axis=0).tolist()


def ensemble_rewards(
    members: Sequence[Sampler],
    ensemble: EnsembleReward,
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int],
) -> tuple[list[float], list[float]]:
    """The reward of each sequence of token ids, and the members' standard deviation.

    Args:
        members: One for each of the ensemble's levels.
        ensemble: How their rewards become one.
        sequences: Prompts with their responses.
        lengths: Tokens of each response.
    """
    return ensemble.combine([member.rewards(sequences) for member in members], lengths)
