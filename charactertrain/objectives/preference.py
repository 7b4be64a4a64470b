"""Losses of the preference model.

Shapes: B pairs; G prompts with K responses each.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LIST = 10
"""Longest list of `plackett_luce_loss`: its sums are over all subsets."""


@dataclass(frozen=True)
class BradleyTerryTerms:
    """Weighted sums over the pairs of a micro-batch; divide by the weight of the whole step."""

    loss_sum: Tensor
    """Cross-entropy in nats; the only field with a gradient."""
    weight_sum: Tensor
    """Weight of all pairs: what `loss_sum` is divided by."""
    accuracy_sum: Tensor
    """Weight of decided pairs whose difference has the label's sign; 0 has neither."""
    undecided_weight_sum: Tensor
    """Weight of pairs labelled exactly 0.5. Accuracy is over `weight_sum` less this."""
    differences_B: Tensor
    """Reward of chosen minus reward of rejected."""


def bradley_terry_loss(
    chosen_rewards_B: Tensor,
    rejected_rewards_B: Tensor,
    probabilities_B: Tensor,
    weights_B: Tensor,
    margins_B: Tensor,
) -> BradleyTerryTerms:
    """Cross-entropy of the Bradley-Terry model with soft labels, summed over pairs.

    With the difference d = r(chosen) - r(rejected), P(chosen is better) = sigma(d), and the loss of
    a pair is -[p log sigma(d) + (1 - p) log sigma(-d)]: the cross-entropy of Christiano et al.
    (2017), section 2.2.3, https://arxiv.org/abs/1706.03741. At p = 1 it is eq. 2 of Rafailov et al.
    (2023), https://arxiv.org/abs/2305.18290. Its gradient in d is sigma(d) - p, at most 1 in size.

    A margin m asks for more: d - m takes the place of d, as in eq. 2 of Touvron et al. (2023),
    https://arxiv.org/abs/2307.09288. `label_margins` gives margins that fit soft labels.

    Args:
        chosen_rewards_B: Raw outputs of the preference model.
        rejected_rewards_B: The same for the other response of each pair.
        probabilities_B: Label p, 0 to 1: the probability that `chosen` is the better one.
        weights_B: How much each pair counts, at least 0.
        margins_B: By how much `chosen` is to be ahead beyond its label, in logits; 0 for none.
    """
    assert chosen_rewards_B.ndim == 1, f"rewards have shape {tuple(chosen_rewards_B.shape)}, not B"
    assert chosen_rewards_B.shape == rejected_rewards_B.shape
    assert chosen_rewards_B.shape == probabilities_B.shape == weights_B.shape == margins_B.shape
    # bfloat16 has 8 bits: two rewards near 10 would differ in steps of 1/16.
    differences_B = chosen_rewards_B.float() - rejected_rewards_B.float()
    logits_B = differences_B - margins_B
    losses_B = -(
        probabilities_B * F.logsigmoid(logits_B) + (1 - probabilities_B) * F.logsigmoid(-logits_B)
    )
    decided_B = probabilities_B != 0.5
    agrees_B = decided_B & (differences_B.sign() == (probabilities_B - 0.5).sign())
    return BradleyTerryTerms(
        loss_sum=(weights_B * losses_B).sum(),
        weight_sum=weights_B.sum(),
        accuracy_sum=torch.where(agrees_B, weights_B, 0.0).sum(),
        undecided_weight_sum=torch.where(decided_B, 0.0, weights_B).sum(),
        differences_B=differences_B.detach(),
    )


def label_margins(probabilities_B: Tensor, scale: float) -> Tensor:
    """Margins in logits that grow with the label's strength: scale (2 p - 1).

    None for a label of 0.5, `scale` for a certain one, and the same pair told the other way round
    has the opposite margin.
    """
    return scale * (2 * probabilities_B - 1)


def plackett_luce_loss(rewards_GK: Tensor, utilities_GK: Tensor) -> Tensor:
    """Cross-entropy of whole rankings, in nats per choice, for each prompt: shape G.

    The model of Plackett (1975), https://doi.org/10.2307/2346567: the best of the K responses is
    chosen with probability softmax(r), then the best of the rest, and so on. The labels are
    rankings drawn from the same model with `utilities` for r, so that the loss is the cross-entropy
    of the two distributions over permutations, eq. 4 of Cao et al. (2007),
    https://doi.org/10.1145/1273496.1273513, over whole permutations and divided by the K - 1
    choices. Utilities far apart are one certain order (the likelihood loss of Xia et al., 2008,
    https://doi.org/10.1145/1390156.1390306); equal ones are a tie, for which either order is as
    likely. For K = 2 it is `bradley_terry_loss` with p = sigma(u_1 - u_2).

    Exact, by a sum over the 2^K sets of responses that may be left at some choice.

    Args:
        rewards_GK: Raw outputs of the preference model.
        utilities_GK: Of the labels, in logits; finite.
    """
    assert rewards_GK.ndim == 2, f"rewards have shape {tuple(rewards_GK.shape)}, not GK"
    assert rewards_GK.shape == utilities_GK.shape
    num_responses = rewards_GK.shape[1]
    if not 2 <= num_responses <= MAX_LIST:
        raise ValueError(f"expected lists of 2 to {MAX_LIST} responses, found {num_responses}")
    rewards_GK = rewards_GK.float()
    left_SK, reached_GS, chosen_GK = _choices(utilities_GK.detach().double())
    # At a set S that is left, choosing i costs logsumexp(r over S) - r_i.
    left_rewards_GSK = rewards_GK[:, None].masked_fill(~left_SK, -torch.inf)
    normalisers_GS = left_rewards_GSK.logsumexp(dim=2)
    costs_G = (reached_GS.float() * normalisers_GS).sum(1) - (chosen_GK.float() * rewards_GK).sum(1)
    return costs_G / (num_responses - 1)


def _choices(utilities_GK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The choices that labels make, one after the other.

    Returns:
        The sets of two or more that may be left, S x K; how likely each is to be left, G x S; and
        how likely each response is to be chosen from one of them, G x K.
    """
    num_groups, num_responses = utilities_GK.shape
    device = utilities_GK.device
    reached = torch.zeros(num_groups, 2**num_responses, dtype=torch.float64, device=device)
    reached[:, -1] = 1.0
    chosen_GK = torch.zeros_like(utilities_GK)
    kept: list[int] = []
    for size in range(num_responses, 1, -1):
        sets, members = _sets_of(size, num_responses)
        members_SN = torch.tensor(members, device=device)
        sets_S1 = torch.tensor(sets, device=device)[:, None]
        shares_GSN = utilities_GK[:, members_SN].softmax(dim=2) * reached[:, sets_S1]
        shares = shares_GSN.flatten(1)
        reached.index_add_(1, (sets_S1 - 2**members_SN).flatten(), shares)
        chosen_GK.index_add_(1, members_SN.flatten(), shares)
        kept += sets
    left_SK = torch.tensor([[bool(s >> i & 1) for i in range(num_responses)] for s in kept])
    return left_SK.to(device), reached[:, kept], chosen_GK


@cache
def _sets_of(size: int, num_responses: int) -> tuple[list[int], list[list[int]]]:
    """All sets of so many responses, as sums of powers of two, and their members."""
    members = [list(found) for found in combinations(range(num_responses), size)]
    return [sum(2**i for i in found) for found in members], members


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
