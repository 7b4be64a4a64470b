"""Loading causal language models and preference models for training."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from charactertrain.exceptions import ModelError
from charactertrain.models import packed_attention
from charactertrain.models.fused_kernels import fuse
from charactertrain.models.packing import is_packable


def _load(auto_class: Any, directory: Path, **options: Any) -> Any:
    """What one of transformers' auto classes makes of a directory, with none of its own code."""
    try:
        # Left out, it means to ask on the terminal whether to run the directory's code.
        return auto_class.from_pretrained(directory, trust_remote_code=False, **options)
    except ValueError as error:
        if not _brings_code(directory):
            raise
        raise ModelError(
            f"{directory}: expected a model that transformers knows, found one that brings its own "
            "code (auto_map in its config), which is not run. Choose a model of a known "
            f"architecture. transformers says: {error}"
        ) from error


def _brings_code(directory: Path) -> bool:
    files = [directory / name for name in ("config.json", "tokenizer_config.json")]
    return any("auto_map" in json.loads(file.read_text()) for file in files if file.is_file())


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer; it must have a chat template and a token that ends a reply."""
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, directory)
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{directory} has no chat template: expected a chat model, found a base model. Choose "
            "an instruction-tuned model."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{directory}: the tokenizer has no end-of-sequence token")
    return tokenizer


def check_context(directory: Path, context_tokens: int) -> None:
    """Raise ModelError if the model cannot attend over `context_tokens`."""
    config = _load(AutoConfig, directory)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and context_tokens > longest:
        raise ModelError(
            f"model.context_tokens is {context_tokens}, and {directory} attends over {longest}; "
            "lower model.context_tokens"
        )


def load_causal_lm(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype`, for training or as the frozen reference."""
    config = _load(AutoConfig, directory)
    return _load_weights(AutoModelForCausalLM, directory, config, dtype)


def _load_weights(
    auto_class: Any, directory: Path, config: Any, dtype: torch.dtype
) -> PreTrainedModel:
    dropouts = {
        name: value
        for name, value in vars(config).items()
        if name.endswith(("dropout", "_pdrop", "_drop")) and isinstance(value, float)
    }
    # One pass over each response: dropout would add noise, and a resumed step would draw it anew.
    for name in dropouts:
        setattr(config, name, 0.0)
    model: PreTrainedModel = _load(
        auto_class,
        directory,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation="sdpa",
    )
    for name, value in dropouts.items():
        setattr(model.config, name, value)
    if is_packable(model):
        model.set_attn_implementation(packed_attention.NAME)
    fuse(model)
    model.config.use_cache = False
    return model


_HEAD_STD = 0.002
"""Small, so that rewards start near zero: at the usual 0.02 first margins are noise of about 1."""


def load_preference_model(directory: Path, dtype: torch.dtype, *, seed: int) -> PreTrainedModel:
    """A scalar head on the body in `directory`; the head is random unless it was trained."""
    config = _load(AutoConfig, directory)
    if config.pad_token_id is None:
        config.pad_token_id = end_token_ids(directory)[0]
    usual_std = config.initializer_range
    if not any("SequenceClassification" in name for name in config.architectures or []):
        config.num_labels = 1
        config.initializer_range = _HEAD_STD
    torch.manual_seed(seed)
    model = _load_weights(AutoModelForSequenceClassification, directory, config, dtype)
    if not hasattr(model, "score"):
        raise ModelError(
            f"{directory}: expected a model whose sequence classification has a linear head "
            f"`score`, found {type(model).__name__}; choose another model"
        )
    model.config.initializer_range = usual_std
    return model


def end_token_ids(directory: Path) -> list[int]:
    """The tokens that end a reply, as vLLM stops at them: the model's own and the tokenizer's."""
    ends: list[int] = []
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        end = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if end is not None:
            ends = end if isinstance(end, list) else [end]
            break
    of_tokenizer: Any = load_tokenizer(directory).eos_token_id
    return list(dict.fromkeys([*ends, of_tokenizer]))
