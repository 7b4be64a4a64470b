"""Advantages of responses: relative to others to the same prompt, or to earlier steps.

Shapes: P prompts, G responses per prompt.
"""

from dataclasses import dataclass

from torch import Tensor


def grpo_advantages(rewards_PG: Tensor, *, epsilon: float) -> Tensor:
    """(r - mean) / (std + epsilon) in each group: GRPO, Shao et al. (2024), section 4.1.2.

    https://arxiv.org/abs/2402.03300. Every prompt gets the same say, however little its responses
    differ. The paper does not say which standard deviation: this is the sample's (divided by
    G - 1), as in TRL and verl.

    Args:
        rewards_PG: At least two responses per prompt.
        epsilon: In units of reward; rewards that differ by much less are noise.
    """
    centered_PG = centered_advantages(rewards_PG)
    return centered_PG / (centered_PG.std(dim=-1, keepdim=True) + epsilon)


def centered_advantages(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean in each group: Dr. GRPO, Liu et al. (2025), section 3.2.

    https://arxiv.org/abs/2503.20783. Without the standard deviation, a prompt whose responses
    hardly differ has hardly any influence. The paper's other half, no division by a response's
    length, is the part of `aggregation.token_weights`.
    """
    assert rewards_PG.ndim == 2, f"rewards have shape {tuple(rewards_PG.shape)}, not PG"
    assert rewards_PG.shape[1] > 1, "a group of one response has no baseline"
    # Differences to the first response are exactly 0 in a group of equal rewards. A mean is not
    # exact, and the rest would be divided by a standard deviation of the same tiny size.
    differences_PG = rewards_PG - rewards_PG[:, :1]
    return differences_PG - differences_PG.mean(dim=-1, keepdim=True)


def leave_one_out_advantages(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of the *other* rewards in the group: RLOO, Ahmadian et al. (2024).

    https://arxiv.org/abs/2402.14740. The baseline does not depend on the response that it is
    subtracted from, so the policy gradient is unbiased. As r_i - mean = (G - 1)/G times
    (r_i - mean of the others), it is the centered advantage times G / (G - 1).
    """
    group_size = rewards_PG.shape[-1]
    return centered_advantages(rewards_PG) * (group_size / (group_size - 1))


@dataclass(frozen=True)
class RunningBaseline:
    """REINFORCE's baseline: the mean reward of earlier steps, later ones counting for more.

    REINFORCE is Williams (1992), https://doi.org/10.1007/BF00992696. The mean is an exponential
    moving average with the bias correction of Kingma and Ba (2015), section 3,
    https://arxiv.org/abs/1412.6980: divided by the weight that the steps so far have, so that the
    zero it starts from counts for nothing. A checkpoint keeps `dataclasses.asdict` of it.
    """

    mean: float = 0.0
    """Weighted mean of the steps' mean rewards, already corrected."""
    weight: float = 0.0
    """1 - decay ** steps; 0 before the first."""

    def advantages(self, rewards_PG: Tensor) -> Tensor:
        """Reward minus the baseline of *earlier* steps, shape PG.

        These do not depend on the responses that the baseline is subtracted from, so the policy
        gradient is unbiased. All prompts share it: one that is easier than others has advantages
        above zero. In the first step there is none, and `leave_one_out_advantages` stand in.
        """
        if self.weight == 0.0:
            return leave_one_out_advantages(rewards_PG)
        return rewards_PG - self.mean

    def updated(self, rewards_PG: Tensor, *, decay: float) -> "RunningBaseline":
        """The baseline of the next step.

        Args:
            rewards_PG: Of the whole step, over all ranks.
            decay: How much of an earlier step's influence is left after another one, at least 0 and
                below 1; at 0.9 the baseline looks back about 10 steps.
        """
        assert 0 <= decay < 1, f"decay {decay} is not at least 0 and below 1"
        weight = decay * self.weight + (1 - decay)
        step_mean = float(rewards_PG.double().mean())
        mean = self.mean + (1 - decay) / weight * (step_mean - self.mean)
        return RunningBaseline(mean, weight)


def zero_variance_groups(rewards_PG: Tensor) -> Tensor:
    """True, shape P, where all responses to a prompt have equal rewards: nothing to learn there."""
    return rewards_PG.amax(dim=-1) == rewards_PG.amin(dim=-1)
