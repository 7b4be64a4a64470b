"""The loss of the supervised warm start.

Shapes: B responses, T tokens.
"""

from torch import Tensor

from charactertrain.objectives.logprobs import token_mean


def supervised_loss(logprobs_BT: Tensor, mask_BT: Tensor, *, num_tokens: int | Tensor) -> Tensor:
    """This micro-batch's share of the mean negative log-likelihood, in nats per token.

    Args:
        logprobs_BT: Of each token under the policy being trained.
        mask_BT: True at the tokens of responses.
        num_tokens: Tokens that count in the whole step, over all ranks and micro-batches.
    """
    return -token_mean(logprobs_BT, mask_BT, num_tokens=num_tokens)
