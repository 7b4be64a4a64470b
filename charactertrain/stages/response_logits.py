"""What causal language models say of the response tokens of a packed row.

Shapes: N response tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from charactertrain.models.packing import PackedRow
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.runtime.training_engine import Computing, TrainingEngine


@dataclass(frozen=True)
class Models:
    """What the tokens of a step pass through."""

    policy: TrainingEngine
    reference: Computing | None
    """None where nothing pulls the policy to it."""
    forbidden: tuple[int, ...]
    """Tokens that no response can hold: those that would end one."""


def response_logits(model: Computing, row: PackedRow) -> Tensor:
    """Logits that predict the response tokens, shape NV."""
    logits_1NV: Tensor = model.forward(
        **row.model_inputs(), use_cache=False, logits_to_keep=row.predictor_N
    ).logits
    return logits_1NV[0]


def impossible(logits_NV: Tensor, token_ids: Sequence[int]) -> Tensor:
    """The logits with the given tokens at probability zero."""
    if not token_ids:
        return logits_NV
    ids = torch.tensor(list(token_ids), device=logits_NV.device)
    return logits_NV.index_fill(-1, ids, float("-inf"))


def end_logprobs(logits_NV: Tensor, end_ids: Sequence[int]) -> Tensor:
    """Log-probability that one of the ending tokens comes at each place, shape N."""
    logprobs = [
        token_logprobs(logits_NV, torch.full(logits_NV.shape[:-1], end, device=logits_NV.device))
        for end in end_ids
    ]
    return torch.stack(logprobs).logsumexp(0)
