"""From values of tokens to a loss: how much a token counts, and sums and means over responses.

A token's weight is its share of the whole optimizer step, over all ranks and micro-batches. A loss
is a weighted sum, so that the shares of micro-batches add up to the loss however the step was cut.
A mean per micro-batch would weigh a token by how few others it came with.

Shapes: N tokens of the responses of a micro-batch in a row, R responses. `response_N` says which of
the R a token belongs to. A response without tokens is one of the R, and adds nothing.
"""

import torch
from torch import Tensor

from charactertrain.objectives.logprobs import at_least_float32


def token_weights(response_N: Tensor, num_tokens: int) -> Tensor:
    """Weights, shape N, by which every token of the step counts the same: 1 / num_tokens.

    A long response counts for more than a short one. DAPO, Yu et al. (2025), section 3.3,
    https://arxiv.org/abs/2503.14476. Dr. GRPO, Liu et al. (2025), section 3.2,
    https://arxiv.org/abs/2503.20783, divides by a constant in place of the number of tokens: up to
    that factor, which the learning rate takes in, it is the same.

    Args:
        response_N: The response of each token, which decides their number and device.
        num_tokens: Tokens of the whole step, over all ranks and micro-batches.
    """
    return response_N.new_full(response_N.shape, 1 / max(num_tokens, 1), dtype=torch.float32)


def sequence_weights(lengths_R: Tensor, response_N: Tensor, num_responses: int) -> Tensor:
    """Weights, shape N, by which every response of the step counts the same.

    1 / (num_responses * length of the token's response): GRPO, Shao et al. (2024), eq. 3,
    https://arxiv.org/abs/2402.03300. A token of a long response counts for less than one of a short
    response, so that a bad response is punished less per token the longer it is (Dr. GRPO, Liu et
    al. 2025, section 3.1, https://arxiv.org/abs/2503.20783).

    Args:
        lengths_R: Tokens of each response.
        response_N: The response of each token.
        num_responses: Responses of the whole step, over all ranks and micro-batches, those without
            tokens too.
    """
    # Only lengths that tokens have: none of them is 0.
    return 1.0 / (num_responses * lengths_R[response_N])


def weighted_sum(values_N: Tensor, weights_N: Tensor) -> Tensor:
    """This micro-batch's share of a mean over the step, at least in float32."""
    assert values_N.ndim == 1, f"values have shape {tuple(values_N.shape)}, not N"
    assert values_N.shape == weights_N.shape, (values_N.shape, weights_N.shape)
    return (at_least_float32(values_N) * weights_N).sum()


def response_sums(values_N: Tensor, response_N: Tensor, num_responses: int) -> Tensor:
    """Sum of the values of each response, shape R, at least in float32; 0 where it has no tokens.

    Args:
        values_N: One value per token.
        response_N: The response of each token, 0 to R - 1.
        num_responses: R, of this micro-batch.
    """
    assert values_N.shape == response_N.shape, (values_N.shape, response_N.shape)
    values_N = at_least_float32(values_N)
    return values_N.new_zeros(num_responses).index_add(0, response_N, values_N)


def response_means(values_N: Tensor, response_N: Tensor, num_responses: int) -> Tensor:
    """Mean of the values of each response, shape R; 0 where it has no tokens. See above."""
    lengths_R = response_sums(torch.ones_like(values_N), response_N, num_responses)
    return response_sums(values_N, response_N, num_responses) / lengths_R.clamp(min=1)
