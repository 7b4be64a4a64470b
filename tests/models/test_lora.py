"""Adapters: none of their own at first, the only thing that is trained, and merged exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
)

from charactertrain.exceptions import ModelError
from charactertrain.models import packed_attention
from charactertrain.models.lora import (
    LoraSettings,
    add_adapters,
    merge_adapters,
    merged_weights,
)
from charactertrain.models.packing import PromptGroup, is_packable, pack
from charactertrain.runtime.weights import Weight, iter_full

SETTINGS = LoraSettings(rank=3, alpha=12)
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]])

LLAMA = LlamaConfig(
    vocab_size=32,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    pad_token_id=0,
    num_labels=1,
    initializer_range=0.2,
)
# Its layers are transposed, and its output is the embedding.
GPT2 = GPT2Config(
    vocab_size=32,
    n_positions=32,
    n_embd=32,
    n_layer=2,
    n_head=4,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    num_labels=1,
    initializer_range=0.2,
)

Load = Callable[[], PreTrainedModel]


def loader(auto_class: Any, config: Any) -> Load:
    """Loads the same random model every time."""

    def load() -> PreTrainedModel:
        torch.manual_seed(0)
        model: PreTrainedModel = auto_class.from_config(config, attn_implementation="sdpa")
        return model.eval()

    return load


LOADERS = {
    "llama_lm": loader(AutoModelForCausalLM, LLAMA),
    "llama_score": loader(AutoModelForSequenceClassification, LLAMA),
    "gpt2_lm": loader(AutoModelForCausalLM, GPT2),
    "gpt2_score": loader(AutoModelForSequenceClassification, GPT2),
}


@pytest.fixture(name="load", params=LOADERS)
def loader_of_each_kind(request: pytest.FixtureRequest) -> Load:
    return LOADERS[request.param]


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=IDS).logits
    return logits


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def trained(model: PeftModel) -> dict[str, Tensor]:
    """What is trainable, after a few steps."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        logits = model(input_ids=IDS).logits
        (logits - torch.randn(logits.shape, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return trainable(model)


def test_new_adapters_change_no_output(load: Load) -> None:
    torch.testing.assert_close(outputs(add_adapters(load(), SETTINGS)), outputs(load()))


def test_only_adapters_and_the_head_are_trained(load: Load) -> None:
    model = load()
    num_layers = sum(
        name.rpartition(".")[2] not in ("score", "lm_head")
        and type(module).__name__ in ("Linear", "Conv1D")
        for name, module in model.named_modules()
    )
    has_head = hasattr(model, "score")
    names = trainable(add_adapters(model, SETTINGS)).keys()
    adapters = [name for name in names if ".lora_" in name]
    # Two matrices for each linear layer of the body.
    assert len(adapters) == 2 * num_layers
    assert not any("score" in name or "lm_head" in name for name in adapters)
    others = [name for name in names if ".lora_" not in name]
    assert [name.rpartition(".score.")[2] for name in others] == ["weight"] * has_head


def test_nothing_but_what_is_trainable_changes_in_training(load: Load) -> None:
    model = add_adapters(load(), SETTINGS)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = trained(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in after), name


def test_merged_weights_give_the_outputs_of_the_adapted_model(load: Load) -> None:
    adapted = add_adapters(load(), SETTINGS)
    parameters = trained(adapted)
    adapted.eval()
    found = outputs(adapted)
    assert (found - outputs(load())).abs().max() > 0.05
    merged = merge_adapters(load(), SETTINGS, parameters)
    torch.testing.assert_close(outputs(merged), found, atol=1e-5, rtol=1e-4)


def test_merged_model_is_one_of_its_own_kind(load: Load, tmp_path: Path) -> None:
    plain = load()
    merged = merge_adapters(load(), SETTINGS, trained(add_adapters(load(), SETTINGS)))
    assert type(merged) is type(plain)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    merged.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(outputs(again), outputs(merged))


@pytest.mark.parametrize("kind", ["llama_lm", "gpt2_lm"])
def test_merged_weights_one_by_one_are_those_of_the_merged_model(kind: str) -> None:
    load = LOADERS[kind]
    adapted = add_adapters(load(), SETTINGS)
    parameters = trained(adapted)
    weights = [Weight(*found) for found in merged_weights(adapted)]
    assert [weight.name for weight in weights] == [name for name, _ in load().named_parameters()]
    found = dict(iter_full(weights, torch.float32))
    assert {weight.name: weight.shape for weight in weights} == {
        name: tuple(tensor.shape) for name, tensor in found.items()
    }
    merged: Any = add_adapters(load(), SETTINGS)
    merged.load_state_dict(parameters, strict=False)
    for name, parameter in merged.merge_and_unload().named_parameters():
        assert torch.equal(found[name], parameter), name
    # Nothing is merged where it is trained.
    assert trainable(adapted).keys() == parameters.keys()
    assert all(torch.equal(value, parameters[name]) for name, value in trainable(adapted).items())


def merged_in_bf16(adapter_std: float) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's weights before and after, and what they would be in fp32."""
    load, layer = LOADERS["llama_lm"], "model.layers.1.mlp.down_proj"
    random = torch.Generator().manual_seed(2)
    parameters = {
        name: (adapter_std * torch.randn(value.shape, generator=random)).bfloat16()
        for name, value in trainable(add_adapters(load(), SETTINGS)).items()
    }
    merged = merge_adapters(load().bfloat16(), SETTINGS, parameters)
    a, b = (
        next(value.float() for name, value in parameters.items() if f"{layer}.lora_{which}" in name)
        for which in "AB"
    )
    before = load().get_submodule(layer).weight.detach().bfloat16()
    return before, merged.get_submodule(layer).weight.detach(), before.float() + 4.0 * (b @ a)


def test_merging_under_bf16_rounds_once_and_to_a_neighbour() -> None:
    _, after, exact = merged_in_bf16(0.2)
    assert after.dtype is torch.bfloat16
    above = torch.nextafter(after, torch.tensor(torch.inf, dtype=torch.bfloat16)).float()
    below = torch.nextafter(after, torch.tensor(-torch.inf, dtype=torch.bfloat16)).float()
    assert bool(((below < exact) & (exact < above)).all())


def test_what_adapters_add_below_the_resolution_of_bf16_is_kept_on_average() -> None:
    before, after, exact = merged_in_bf16(0.003)
    added = exact - before.float()

    def kept(weights: Tensor) -> float:
        return float(((weights.float() - before.float()) * added).sum() / added.square().sum())

    assert kept(exact.bfloat16()) < 0.3
    assert kept(after) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(*merged_in_bf16(0.0)[:2])


def test_merging_adds_the_scaled_product_of_the_two_matrices() -> None:
    load = LOADERS["llama_score"]
    parameters = trained(add_adapters(load(), SETTINGS))
    layer = "model.layers.1.mlp.down_proj"
    (a,) = [value for name, value in parameters.items() if f"{layer}.lora_A" in name]
    (b,) = [value for name, value in parameters.items() if f"{layer}.lora_B" in name]
    assert a.shape == (3, 64)
    merged = merge_adapters(load(), SETTINGS, parameters)
    before = load().get_submodule(layer).weight
    # alpha / rank = 12 / 3.
    torch.testing.assert_close(merged.get_submodule(layer).weight, before + 4.0 * b @ a)


def test_trained_head_is_in_the_merged_model() -> None:
    load = LOADERS["llama_score"]
    parameters = trained(add_adapters(load(), SETTINGS))
    (head,) = [value for name, value in parameters.items() if name.endswith(".score.weight")]
    merged = merge_adapters(load(), SETTINGS, parameters)
    assert torch.equal(merged.score.weight, head)
    assert not torch.equal(merged.score.weight, load().score.weight)


def test_parameters_of_other_names_are_refused(load: Load) -> None:
    parameters = trainable(add_adapters(load(), SETTINGS))
    name, value = next(iter(parameters.items()))
    missing = {other: parameters[other] for other in parameters if other != name}
    for wrong in (missing, {**parameters, "more": value}, {**missing, "other": value}, {}):
        with pytest.raises(ModelError, match="do not fit"):
            merge_adapters(load(), SETTINGS, wrong)


def test_parameters_of_another_rank_are_refused(load: Load) -> None:
    parameters = trainable(add_adapters(load(), LoraSettings(rank=2, alpha=12)))
    with pytest.raises(ModelError, match="do not fit"):
        merge_adapters(load(), SETTINGS, parameters)


def test_adapted_model_is_packed_as_the_model_itself() -> None:
    groups = (PromptGroup((5, 6, 7), ((8, 9), (10, 11, 12))), PromptGroup((14,), ((16, 17),)))
    row = pack(groups)

    def logits(model: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(**row.model_inputs()).logits
        return found

    model = LOADERS["llama_lm"]()
    model.set_attn_implementation(packed_attention.NAME)
    plain = logits(model)
    adapted = add_adapters(model, SETTINGS)
    assert is_packable(adapted)
    torch.testing.assert_close(logits(adapted), plain)
