"""Direct preference optimization: the policy learns from pairs, without a preference model.

Shapes: B pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from charactertrain.objectives.logprobs import at_least_float32
from charactertrain.objectives.preference import bradley_terry_loss


@dataclass(frozen=True)
class DPOTerms:
    """Weighted sums over the pairs of a micro-batch; with shares of a step they add up to means."""

    loss: Tensor
    """Cross-entropy in nats; the only field with a gradient."""
    weight_sum: Tensor
    """Weight of all pairs."""
    accuracy_sum: Tensor
    """Weight of decided pairs whose margin has the label's sign; 0 has neither."""
    undecided_weight_sum: Tensor
    """Weight of pairs labelled exactly 0.5. Accuracy is over `weight_sum` less this."""
    margin_sum: Tensor
    """Margins beta d, in logits, chosen over rejected, times their weights."""


def dpo_loss(  # noqa: PLR0913  the formula has this many symbols
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    probabilities_B: Tensor,
    weights_B: Tensor,
    *,
    beta: float,
) -> DPOTerms:
    """The cross-entropy of soft labels with the policy's own preferences.

    With d = log(pi / ref)(chosen) - log(pi / ref)(rejected), a pair's loss is
    -[p log sigma(beta d) + (1 - p) log sigma(-beta d)]. At p = 1 it is eq. 7 of Rafailov et al.
    (2023), https://arxiv.org/abs/2305.18290; at p = 1 - epsilon for all pairs it is that with label
    smoothing. It is log 2 where policy and reference agree, and lowest at beta d = logit p: with
    p < 1, a pair stops pulling once the policy prefers it as much as its label does. In d its
    gradient is beta (sigma(beta d) - p).

    It is `bradley_terry_loss` of the rewards beta log(pi / ref), of which the policy is the optimum
    (eq. 5 there, whose other term is the same for both responses).

    Args:
        policy_chosen_B: log pi(chosen | prompt), summed over the response's tokens, in nats.
        policy_rejected_B: The same for the other response of each pair.
        reference_chosen_B: Under the reference: fixed.
        reference_rejected_B: Under the reference: fixed.
        probabilities_B: Label p, 0 to 1: the probability that `chosen` is the better one.
        weights_B: Each pair's share of the whole step, over all ranks and micro-batches.
        beta: Weight of the pull towards the reference, above 0. Common: 0.05 to 0.5.
    """
    assert policy_chosen_B.shape == reference_chosen_B.shape
    assert policy_rejected_B.shape == reference_rejected_B.shape
    # Sums over tokens are large and near to one another: first the differences, then beta.
    chosen_rewards_B = beta * (at_least_float32(policy_chosen_B) - reference_chosen_B.detach())
    rejected_rewards_B = beta * (
        at_least_float32(policy_rejected_B) - reference_rejected_B.detach()
    )
    terms = bradley_terry_loss(
        chosen_rewards_B,
        rejected_rewards_B,
        probabilities_B,
        weights_B,
        margins_B=torch.zeros_like(weights_B),
    )
    return DPOTerms(
        loss=terms.loss_sum,
        weight_sum=terms.weight_sum,
        accuracy_sum=terms.accuracy_sum,
        undecided_weight_sum=terms.undecided_weight_sum,
        margin_sum=(weights_B * terms.differences_B).sum(),
    )
