"""Low-rank adapters in place of whole matrices, merged into the weights when a model is written.

Hu et al. (2021), https://arxiv.org/abs/2106.09685, through peft.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from charactertrain.exceptions import ModelError

_HEADS = ("score", "lm_head")


@dataclass(frozen=True)
class LoraSettings:
    """The adapters of every linear layer of the body."""

    rank: int
    alpha: int
    """The adapters' output is multiplied by alpha / rank."""


def add_adapters(model: PreTrainedModel, settings: LoraSettings) -> PeftModel:
    """`model` with adapters on every linear layer of its body.

    Only the adapters are trained, and the preference model's head.
    """
    layers = {
        name.rpartition(".")[2]: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    for head in _HEADS:
        layers.pop(head, None)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=sorted(layers),
        lora_dropout=0.0,
        # How GPT-2's layers hold their weights.
        fan_in_fan_out=any(layers.values()),
    )
    # In the model's own dtype: DeepSpeed wants one of all that is trained, and keeps fp32 masters.
    adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if name.endswith(".score.weight"):
            parameter.requires_grad = True
    return adapted


def merge_adapters(
    model: PreTrainedModel, settings: LoraSettings, trained: Mapping[str, Tensor]
) -> PreTrainedModel:
    """A freshly loaded `model` with what was trained merged into its weights.

    Args:
        model: As `add_adapters` was given it.
        settings: As `add_adapters` was given them.
        trained: Parameters that `add_adapters` left trainable, by their names there.
    """
    adapted: Any = add_adapters(model, settings)
    expected = {
        (name, parameter.shape)
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    }
    odd = expected ^ {(name, tensor.shape) for name, tensor in trained.items()}
    if odd:
        names = sorted({name for name, _ in odd})
        raise ModelError(
            f"adapters do not fit the model: {', '.join(names[:4])} are on one side alone, or of "
            "another shape"
        )
    adapted.load_state_dict(dict(trained), strict=False)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged
