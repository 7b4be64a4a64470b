"""The training engine of one process in plain torch: what `ZeroEngine` computes, without DeepSpeed.

For measuring the loop where neither Ray nor DeepSpeed is installed, and as the reference that the
others are tested against.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from charactertrain.exceptions import TrainingError
from charactertrain.runtime.training_engine import OptimizerSettings, decay_groups


class TorchEngine:
    """A model and AdamW in fp32.

    Where asked for it computes in bf16, and adds gradients up and steps on a copy in fp32.
    """

    def __init__(
        self, load: Callable[[], PreTrainedModel], settings: OptimizerSettings, *, bf16: bool
    ) -> None:
        """Load the model, which must come in fp32."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = load().to(self.device)
        self.module.train()
        if settings.recompute_activations:
            self.module.gradient_checkpointing_enable({"use_reentrant": False})
        self._max_grad_norm = settings.max_grad_norm
        self._stepped = {
            name: value for name, value in self.module.named_parameters() if value.requires_grad
        }
        groups = decay_groups(self.module, settings.weight_decay)
        if bf16:
            masters = {
                value: nn.Parameter(value.detach().clone()) for value in self._stepped.values()
            }
            self._stepped = {name: masters[value] for name, value in self._stepped.items()}
            for group in groups:
                group["params"] = [masters[value] for value in group["params"]]
            # Parameters alone: the frequencies of rotary positions are buffers, and stay exact.
            for parameter in self.module.parameters():
                parameter.data = parameter.data.bfloat16()
            for parameter, master in masters.items():
                _hand_gradients_over(parameter, master)
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=True)
        self._rows: list[str] = []
        self._losses: list[Tensor] = []

    def forward(self, **inputs: Any) -> Any:
        """The model's output."""
        return self.module(**inputs)

    def backward(self, loss_share: Tensor, rows: str) -> None:
        """Add one microbatch's gradient."""
        loss_share.backward()
        self._losses.append(loss_share.detach())
        self._rows.append(rows)

    def gradients(self) -> dict[str, Tensor]:
        """What has been added up since the last step, in fp32, by parameter."""
        return {name: value.grad for name, value in self._stepped.items() if value.grad is not None}

    def step(self, learning_rate: float) -> float:
        """Take the optimizer step; returns the gradient norm before clipping."""
        for loss, rows in zip(self._losses, self._rows, strict=True):
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is not finite: {float(loss)} in {rows}")
        self._losses, self._rows = [], []
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self._stepped.values(), self._max_grad_norm)
        if not torch.isfinite(norm):
            raise TrainingError("the gradient norm is not finite")
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                if name in self._stepped and parameter is not self._stepped[name]:
                    parameter.copy_(self._stepped[name])
        return float(norm)

    def close(self) -> None:
        """Release the state."""
        del self.module, self._optimizer, self._stepped
        # The model's own parts refer to one another.
        gc.collect()


def _hand_gradients_over(parameter: nn.Parameter, master: nn.Parameter) -> None:
    """From now on, gradients that `parameter` gets are added to those of `master`."""

    def hand_over(parameter: Tensor) -> None:
        assert parameter.grad is not None, "called when a gradient has been made"
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype)
        else:
            master.grad += parameter.grad
        parameter.grad = None

    parameter.register_post_accumulate_grad_hook(hand_over)
