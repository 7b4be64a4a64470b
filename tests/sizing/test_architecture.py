"""Sizes that follow from a config.json, by hand and against what transformers builds of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_model import SMALL

from charactertrain.exceptions import ModelError
from charactertrain.models.configs import read_config
from charactertrain.sizing.architecture import TYPES, from_config


def test_parameters_are_those_counted_by_hand() -> None:
    # A layer: 2 x 4 x (4 + 2) of attention, 3 x 4 x 8 of the product, 2 x 4 of the norms.
    assert SMALL.body_parameters == 2 * (48 + 96 + 8) + 4
    assert SMALL.parameters == 308 + 2 * 40
    assert SMALL.multiplied_parameters == 308 + 40
    # By rank: (4 + 4) + 2 (4 + 2) + (4 + 4) of attention, 3 (4 + 8) of the product, two layers.
    assert SMALL.adapter_parameters(2) == 2 * 2 * (28 + 36)


def test_a_preference_model_has_no_output_layer() -> None:
    assert SMALL.with_scalar_head().parameters == 308 + 40
    assert SMALL.with_scalar_head().with_scalar_head() == SMALL.with_scalar_head()


def test_kv_cache_and_operations_are_those_counted_by_hand() -> None:
    # Keys and values, 2 layers, 2 wide, 2 bytes.
    assert SMALL.kv_bytes() == 2 * 2 * 2 * 2
    assert SMALL.forward_operations(10) == 2 * 348 + 4 * 2 * 4 * 10
    assert SMALL.forward_operations(0, predicted_share=0.5) == 2 * (308 + 20)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        # As the models' own pages have them.
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("embedded:smollm2_135m", 134_515_008),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
    ],
)
def test_shipped_models_have_the_parameters_that_are_published(path: str, parameters: int) -> None:
    assert from_config(read_config(path), path).parameters == parameters


def test_every_model_of_the_config_is_shipped() -> None:
    models = Path(__file__).resolve().parents[2] / "conf" / "model"
    paths = [yaml.safe_load(file.read_text())["path"] for file in models.glob("*.yaml")]
    assert len(paths) > 4
    for path in paths:
        assert from_config(read_config(path), path).parameters > 0


def test_the_random_model_is_as_its_directory_says(tiny_model: Any) -> None:
    made = from_config(read_config(str(tiny_model)), "made")
    assert from_config(read_config("tiny_random"), "shipped") == made


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("has_output", [True, False])
def test_parameters_are_those_of_the_model_that_transformers_builds(
    model_type: str, has_output: bool
) -> None:
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    config = AutoConfig.for_model(
        model_type,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device("meta"):
        kind = AutoModelForCausalLM if has_output else AutoModelForSequenceClassification
        model = kind.from_config(config)
    found = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not name.startswith("score.")
    )
    architecture = from_config(config.to_dict(), model_type)
    expected = architecture if has_output else architecture.with_scalar_head()
    assert found == expected.parameters


def test_another_kind_of_model_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"model_type is 'mixtral'.*llama"):
        from_config({"model_type": "mixtral"}, "there")
    values = dict(read_config("Qwen/Qwen3-8B"))
    del values["vocab_size"]
    with pytest.raises(ModelError, match=r"there: expected whole.*found none for vocab_size"):
        from_config(values, "there")


def test_what_a_config_leaves_out_is_what_transformers_takes() -> None:
    values = read_config("meta-llama/Llama-3.1-8B-Instruct")
    short = {k: v for k, v in values.items() if k not in ("head_dim", "tie_word_embeddings")}
    assert from_config(short, "short") == from_config(values, "whole")
    every_head = {k: v for k, v in values.items() if k != "num_key_value_heads"}
    assert from_config(every_head, "old").kv_heads == 32


def test_a_model_that_is_nowhere_is_named() -> None:
    with pytest.raises(ModelError, match="'no/such' is no directory here"):
        read_config("no/such")
