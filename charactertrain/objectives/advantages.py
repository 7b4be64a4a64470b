"""Advantages of responses relative to the other responses to the same prompt.

Shapes: P prompts, G responses per prompt.
"""

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
    length, is `token_mean`'s part.
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


def zero_variance_groups(rewards_PG: Tensor) -> Tensor:
    """True, shape P, where all responses to a prompt have equal rewards: nothing to learn there."""
    return rewards_PG.amax(dim=-1) == rewards_PG.amin(dim=-1)
