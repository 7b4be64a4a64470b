"""Log-probabilities of tokens and the entropy of their distributions.

Shapes: B sequences, T tokens, V vocabulary, N = B * T tokens in one row, C tokens of a chunk.
Tokens may as well come in one row: N in place of BT.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(logits_BTV: Tensor, token_ids_BT: Tensor) -> Tensor:
    """Log-probability of each token, shape BT, in nats, at least in float32.

    `logits_BTV[b, t]` must be the logits that predict `token_ids_BT[b, t]`: the caller shifts.

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


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


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
        normalizers = [at_least_float32(chunk_CV).logsumexp(-1) for chunk_CV in _chunks(logits_BTV)]
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
            logprobs_CV = at_least_float32(logits_CV) - normalizers_BT.flatten()[chunk, None]
            gradient_CV = logprobs_CV.exp_().mul_(-gradient_C1)
            gradient_CV.scatter_add_(-1, token_ids_BT.flatten()[chunk, None], gradient_C1)
            target_CV.copy_(gradient_CV)
        return logits_gradient_BTV, None


def _entropy(logits_CV: Tensor) -> Tensor:
    logprobs_CV = at_least_float32(logits_CV).log_softmax(-1)
    # 0 * -inf is nan, in the value and in the gradient.
    finite_CV = logprobs_CV.clamp(min=torch.finfo(logprobs_CV.dtype).min)
    return -(finite_CV.exp() * finite_CV).sum(-1)
