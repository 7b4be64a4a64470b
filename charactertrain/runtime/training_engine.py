"""What a training loop needs of an engine, whichever spreads the state."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class OptimizerSettings:
    """How a model is stepped."""

    weight_decay: float
    """Of matrices."""
    max_grad_norm: float
    recompute_activations: bool
    """Compute activations again in the backward pass in place of keeping them."""


class Computing(Protocol):
    """A model that can be asked, trained or not."""

    def forward(self, **inputs: Any) -> Any:
        """The model's output."""

    def close(self) -> None:
        """Release what it holds, so that another can take its place. Of no use afterwards."""


class TrainingEngine(Computing, Protocol):
    """A model, and gradients that add up until a step is taken."""

    @property
    def module(self) -> PreTrainedModel:
        """The model as it is trained."""

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""

    def backward(self, loss_share: Tensor, rows: str) -> None:
        """Add one microbatch's gradient.

        Args:
            loss_share: This microbatch's share of the loss of the whole step, normalised by counts
                over all workers and microbatches, so that shares add up to the step's loss.
            rows: What it is of, for the message if it is not finite.
        """

    def step(self, learning_rate: float) -> float:
        """Take the optimizer step; returns the global gradient norm before clipping.

        Raises:
            TrainingError: A loss is not finite, on any rank: raised on every rank, and no weight
                has changed. Or the gradient's norm is not.
        """


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        # Under ZeRO-3 a parameter's own shape is that of its shard.
        num_dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
        (decayed if num_dimensions > 1 else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
