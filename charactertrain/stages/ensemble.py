"""One reward from those of several preference models that differ in their seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from charactertrain.runtime.sampling import Sampler


@dataclass(frozen=True)
class EnsembleReward:
    """How members' rewards become one."""

    levels: tuple[float, ...]
    """Each member's mean reward of held-out responses, which its training leaves free: taken off,
    so that members can be set against one another."""
    aggregate: Literal["mean", "minimum"]
    disagreement_coef: float
    """Of the members' variance, taken off: the uncertainty-weighted optimisation of Coste et al.
    (2023), eq. 4, https://arxiv.org/abs/2310.02743; `minimum` is their worst-case one, eq. 3."""

    def combine(self, rewards_MR: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
        """The reward of each response, and the members' standard deviation about their mean.

        Args:
            rewards_MR: For each of M members its rewards of R responses.
        """
        rewards = np.array(rewards_MR, float) - np.array(self.levels)[:, None]
        combined = rewards.mean(axis=0) if self.aggregate == "mean" else rewards.min(axis=0)
        combined = combined - self.disagreement_coef * rewards.var(axis=0)
        return combined.tolist(), rewards.std(axis=0).tolist()


def ensemble_rewards(
    members: Sequence[Sampler], ensemble: EnsembleReward, sequences: Sequence[Sequence[int]]
) -> tuple[list[float], list[float]]:
    """The reward of each sequence of token ids, and the members' standard deviation."""
    return ensemble.combine([member.rewards(sequences) for member in members])
