"""Losses of the preference model.

Shapes: B pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class BradleyTerryTerms:
    """Weighted sums over the pairs of a micro-batch; divide by the weight of the whole step."""

    loss_sum: Tensor
    """Cross-entropy in nats; the only field with a gradient."""
    weight_sum: Tensor
    """Weight of all pairs: what `loss_sum` is divided by."""
    accuracy_sum: Tensor
    """Weight of decided pairs whose margin has the label's sign; a margin of 0 has neither."""
    undecided_weight_sum: Tensor
    """Weight of pairs labelled exactly 0.5. Accuracy is over `weight_sum` less this."""
    margins_B: Tensor
    """Reward of chosen minus reward of rejected."""


def bradley_terry_loss(
    chosen_rewards_B: Tensor,
    rejected_rewards_B: Tensor,
    probabilities_B: Tensor,
    weights_B: Tensor,
) -> BradleyTerryTerms:
    """Cross-entropy of the Bradley-Terry model with soft labels, summed over pairs.

    With the margin d = r(chosen) - r(rejected), P(chosen is better) = sigma(d), and the loss of a
    pair is -[p log sigma(d) + (1 - p) log sigma(-d)]: the cross-entropy of Christiano et al.
    (2017), section 2.2.3, https://arxiv.org/abs/1706.03741. At p = 1 it is eq. 2 of Rafailov et al.
    (2023), https://arxiv.org/abs/2305.18290. Its gradient in d is sigma(d) - p, at most 1 in size.

    Args:
        chosen_rewards_B: Raw outputs of the preference model.
        rejected_rewards_B: The same for the other response of each pair.
        probabilities_B: Label p, 0 to 1: the probability that `chosen` is the better one.
        weights_B: How much each pair counts, at least 0.
    """
    assert chosen_rewards_B.ndim == 1, f"rewards have shape {tuple(chosen_rewards_B.shape)}, not B"
    assert chosen_rewards_B.shape == rejected_rewards_B.shape
    assert chosen_rewards_B.shape == probabilities_B.shape == weights_B.shape
    # bfloat16 has 8 bits: two rewards near 10 would differ in steps of 1/16.
    margins_B = chosen_rewards_B.float() - rejected_rewards_B.float()
    losses_B = -(
        probabilities_B * F.logsigmoid(margins_B) + (1 - probabilities_B) * F.logsigmoid(-margins_B)
    )
    decided_B = probabilities_B != 0.5
    agrees_B = decided_B & (margins_B.sign() == (probabilities_B - 0.5).sign())
    return BradleyTerryTerms(
        loss_sum=(weights_B * losses_B).sum(),
        weight_sum=weights_B.sum(),
        accuracy_sum=torch.where(agrees_B, weights_B, 0.0).sum(),
        undecided_weight_sum=torch.where(decided_B, 0.0, weights_B).sum(),
        margins_B=margins_B.detach(),
    )


def reward_centering(
    chosen_rewards_B: Tensor, rejected_rewards_B: Tensor, weights_B: Tensor
) -> Tensor:
    """Weighted sum of (r(chosen) + r(rejected))^2, which pulls rewards towards mean zero.

    The Bradley-Terry loss leaves the level of rewards free; this fixes it and says nothing about
    the margin. Eisenstein et al. (2023), eq. 2, https://arxiv.org/abs/2312.09244; TRL multiplies
    it by `center_rewards_coefficient`, 0.01 recommended.
    """
    assert chosen_rewards_B.shape == rejected_rewards_B.shape == weights_B.shape
    return (weights_B * (chosen_rewards_B.float() + rejected_rewards_B.float()).square()).sum()
