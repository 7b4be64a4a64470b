"""The loss of the supervised warm start.

Shapes: N tokens of the responses of a micro-batch in a row.
"""

from torch import Tensor

from charactertrain.objectives.aggregation import weighted_sum


def supervised_loss(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """This micro-batch's share of the mean negative log-likelihood, in nats per token.

    Args:
        logprobs_N: Of each token under the policy being trained.
        weights_N: Each token's share of the whole step (`aggregation`).
    """
    return -weighted_sum(logprobs_N, weights_N)
