"""Low-rank adapters in place of whole matrices, merged into the weights when a model is written.

Hu et al. (2021), https://arxiv.org/abs/2106.09685, through peft.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
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
    with torch.no_grad():
        for _, (base, *adapters), merge in merged_weights(adapted):
            if adapters:
                base.copy_(merge(base, *adapters))
    merged: PreTrainedModel = adapted.unload()
    return merged


def unadapted(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model that has the adapters; `model` itself, where it has none."""
    if not isinstance(model, PeftModel):
        return model
    base: PreTrainedModel = model.get_base_model()
    return base


def merged_weights(
    model: PeftModel,
) -> Iterator[tuple[str, tuple[nn.Parameter, ...], Callable[..., Tensor]]]:
    """The weights that `model` would have without adapters, nothing computed yet.

    Yields each one's name in the model that `add_adapters` was given, the parameters that it is
    made of, its own first, and what makes it of them.
    """
    base = model.get_base_model()
    for name, parameter in base.named_parameters():
        layer_name, is_adapted, own_name = name.partition(".base_layer.")
        if is_adapted and own_name == "weight":
            layer: Any = base.get_submodule(layer_name)
            (adapter,) = layer.active_adapters
            parts = (parameter, layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)
            scale, is_transposed = layer.scaling[adapter], layer.fan_in_fan_out
            merge = partial(_merged, scale=scale, is_transposed=is_transposed)
            yield f"{layer_name}.weight", parts, merge
        elif ".lora_A." not in name and ".lora_B." not in name:
            yield name.replace(".base_layer.", "."), (parameter,), lambda itself: itself


def _merged(weight: Tensor, a: Tensor, b: Tensor, *, scale: float, is_transposed: bool) -> Tensor:
    """In fp32, whatever the dtype of the three, and rounded once."""
    product = b.float() @ a.float()
    # In place, here and below: half the time on a CPU.
    whole = (product.T if is_transposed else product).mul_(scale).add_(weight.float())
    return _dithered(whole) if weight.dtype is torch.bfloat16 else whole.to(weight.dtype)


def _dithered(matrix: Tensor) -> Tensor:
    """`matrix` in bf16, each number rounded up as often as it is near to the upper of its two.

    To the nearest, whatever adapters add is lost where it is less than half a step of bf16, which
    early in training is nearly everywhere. SmolLM2-135M, rank 32, one step at 1e-4: a token of the
    text learnt gains 0.313 nats, of which merged weights keep 0.098 to the nearest, and 0.315 so
    (2026-11). What is a number of bf16 stays the same.

    Where to round up is no chance but Roberts' R2 sequence over rows and columns, which is spread
    evenly: every rank, device and update rounds alike.
    """
    rows, columns = (
        torch.arange(size, dtype=torch.int32, device=matrix.device) for size in matrix.shape
    )
    # Parts of 65,536, as many numbers as fp32 has from one of bf16 to the next.
    threshold = (49471 * rows[:, None] + 37345 * columns).bitwise_and_(0xFFFF)
    bits = threshold.add_(matrix.view(torch.int32)).bitwise_and_(~0xFFFF)
    return bits.view(torch.float32).bfloat16()
