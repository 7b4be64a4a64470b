"""The training engine of one process in plain torch: what `ZeroEngine` computes, without DeepSpeed.

For measuring the loop where neither Ray nor DeepSpeed is installed, and as the reference that the
others are tested against.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from charactertrain.exceptions import TrainingError
from charactertrain.runtime.training_engine import OptimizerSettings, decay_groups


class TorchEngine:
    """A model with fp32 weights and AdamW; computes in bf16 where asked for."""

    def __init__(
        self, load: Callable[[], PreTrainedModel], settings: OptimizerSettings, *, bf16: bool
    ) -> None:
        """Load the model, which must come in fp32."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = load().to(self.device)
        self.module.train()
        if settings.recompute_activations:
            self.module.gradient_checkpointing_enable({"use_reentrant": False})
        self._bf16 = bf16
        self._max_grad_norm = settings.max_grad_norm
        self._optimizer = torch.optim.AdamW(
            decay_groups(self.module, settings.weight_decay), lr=0.0, betas=(0.9, 0.95), fused=True
        )
        self._rows: list[str] = []
        self._losses: list[Tensor] = []

    def forward(self, **inputs: Any) -> Any:
        """The model's output."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            return self.module(**inputs)

    def backward(self, loss_share: Tensor, rows: str) -> None:
        """Add one microbatch's gradient."""
        loss_share.backward()
        self._losses.append(loss_share.detach())
        self._rows.append(rows)

    def step(self, learning_rate: float) -> float:
        """Take the optimizer step; returns the gradient norm before clipping."""
        for loss, rows in zip(self._losses, self._rows, strict=True):
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is not finite: {float(loss)} in {rows}")
        self._losses, self._rows = [], []
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._max_grad_norm)
        if not torch.isfinite(norm):
            raise TrainingError("the gradient norm is not finite")
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)
