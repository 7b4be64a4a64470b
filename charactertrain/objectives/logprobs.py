"""Log-probabilities of tokens, and sums and means of values over tokens.

Shapes: B sequences, T tokens, V vocabulary, N = B * T tokens in one row, C tokens of a chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(logits_BTV: Tensor, token_ids_BT: Tensor) -> Tensor:
    """Log-probability of each token, shape BT, in nats, at least in float32.

    `logits_BTV[b, t]` must be the logits that predict `token_ids_BT[b, t]`: the caller shifts.
    Padding needs a valid id (not -100), whose value is then masked.

    Memory beyond the logits: a chunk of them in float32 and, in the backward, their gradient.
    """
    assert logits_BTV.shape[:-1] == token_ids_BT.shape, (logits_BTV.shape, token_ids_BT.shape)
    logprobs_BT: Tensor = _TokenLogprobs.apply(logits_BTV, token_ids_BT)  # type: ignore[no-untyped-call]
    return logprobs_BT


def entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of each next-token distribution, shape BT, in nats, 0 to log V.

    A logit of -inf is a token of probability zero, which adds nothing.
    """
    entropies = [_entropy(logits_CV) for logits_CV in _chunks(logits_BTV)]
    return torch.cat(entropies).view(logits_BTV.shape[:-1])


def masked_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of the values where the mask is True; what padding holds (nan too) has no influence."""
    assert values_BT.shape == mask_BT.shape, (values_BT.shape, mask_BT.shape)
    # Not values * mask: nan * 0 is nan.
    return torch.where(mask_BT, values_BT, 0.0).sum()


def token_mean(values_BT: Tensor, mask_BT: Tensor, *, num_tokens: int | Tensor) -> Tensor:
    """This micro-batch's share of the mean over all tokens of an optimizer step.

    Args:
        values_BT: One value per token.
        mask_BT: True where a token counts.
        num_tokens: Tokens that count in the whole step, over all ranks and micro-batches, so that
            shares add up to the mean however the step was cut. A mean per micro-batch would weigh
            a token by how few others it came with.
    """
    return masked_sum(values_BT, mask_BT) / num_tokens


_CHUNK_VALUES = 2**23
"""Logits that are in float32 at a time: 32 MiB of them."""


def _chunks(values_BTV: Tensor) -> Iterator[Tensor]:
    """The tokens of all sequences in chunks, shape CV."""
    values_NV = values_BTV.flatten(0, -2)
    return iter(values_NV.split(max(1, _CHUNK_VALUES // values_NV.shape[-1])))


class _TokenLogprobs(torch.autograd.Function):
    # Autograd alone keeps a float32 copy of all logits and makes more in the backward: 650 MiB at
    # the peak for 6 x 192 x 49152 float32 logits (216 MiB), where this takes 260 (CPU).

    @staticmethod
    def forward(ctx: Any, logits_BTV: Tensor, token_ids_BT: Tensor) -> Tensor:
        normalizers = [
            _at_least_float32(chunk_CV).logsumexp(-1) for chunk_CV in _chunks(logits_BTV)
        ]
        normalizers_BT = torch.cat(normalizers).view(token_ids_BT.shape)
        ctx.save_for_backward(logits_BTV, token_ids_BT, normalizers_BT)
        return logits_BTV.gather(-1, token_ids_BT[..., None]).squeeze(-1) - normalizers_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BT: Tensor) -> tuple[Tensor, None]:
        # d logprob / d logit of v = [v is the token] - softmax of v.
        logits_BTV, token_ids_BT, normalizers_BT = ctx.saved_tensors
        logits_gradient_BTV = torch.empty_like(logits_BTV)
        first = 0
        for logits_CV, target_CV in zip(
            _chunks(logits_BTV), _chunks(logits_gradient_BTV), strict=True
        ):
            chunk = slice(first, first + len(logits_CV))
            first = chunk.stop
            gradient_C1 = gradient_BT.flatten()[chunk, None]
            logprobs_CV = _at_least_float32(logits_CV) - normalizers_BT.flatten()[chunk, None]
            gradient_CV = logprobs_CV.exp_().mul_(-gradient_C1)
            gradient_CV.scatter_add_(-1, token_ids_BT.flatten()[chunk, None], gradient_C1)
            target_CV.copy_(gradient_CV)
        return logits_gradient_BTV, None


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _entropy(logits_CV: Tensor) -> Tensor:
    logprobs_CV = _at_least_float32(logits_CV).log_softmax(-1)
    # 0 * -inf is nan, in the value and in the gradient.
    finite_CV = logprobs_CV.clamp(min=torch.finfo(logprobs_CV.dtype).min)
    return -(finite_CV.exp() * finite_CV).sum(-1)
