"""Norms, rotary positions and gated products in one kernel each, on a CUDA device.

By Liger, of which the GPU lock has a version. transformers computes each by several kernels, whose
passes over memory take as long as a layer's matrix products.
"""

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

FUSED = {"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"}
"""Types of models of which tests show that the kernels compute the same."""


def fuse(model: PreTrainedModel) -> None:
    """Replace what can be, where there is a CUDA device; from then on the model computes there."""
    is_usable = torch.cuda.is_available() and is_liger_kernel_available()
    if is_usable and model.config.model_type in FUSED:
        # Not the loss: rewards and logprobs are computed from the model's own output.
        loss = {"cross_entropy": False, "fused_linear_cross_entropy": False}
        apply_liger_kernel(model, {"rms_norm": True, "rope": True, **loss})
