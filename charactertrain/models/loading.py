"""Loading causal language models and preference models for training."""

import json
from pathlib import Path

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


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer; it must have a chat template and a token that ends a reply."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
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
    config = AutoConfig.from_pretrained(directory)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and context_tokens > longest:
        raise ModelError(
            f"model.context_tokens is {context_tokens}, and {directory} attends over {longest}; "
            "lower model.context_tokens"
        )


def load_causal_lm(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype`, for training or as the frozen reference."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    return model


_HEAD_STD = 0.002
"""Small, so that rewards start near zero: at the usual 0.02 first margins are noise of about 1."""


def load_preference_model(directory: Path, dtype: torch.dtype, *, seed: int) -> PreTrainedModel:
    """A scalar head on the body in `directory`; the head is random unless it was trained."""
    config = AutoConfig.from_pretrained(directory)
    if config.pad_token_id is None:
        config.pad_token_id = end_token_ids(directory)[0]
    usual_std = config.initializer_range
    if not any("SequenceClassification" in name for name in config.architectures or []):
        config.num_labels = 1
        config.initializer_range = _HEAD_STD
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        directory, config=config, dtype=dtype, use_safetensors=True, attn_implementation="sdpa"
    )
    model.config.initializer_range = usual_std
    model.config.use_cache = False
    return model


def end_token_ids(directory: Path) -> list[int]:
    """The tokens that end a reply, as generation stops at them."""
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        if file.is_file():
            end = json.loads(file.read_text()).get("eos_token_id")
            if end is not None:
                return end if isinstance(end, list) else [end]
    raise ModelError(f"{directory} names no eos_token_id in its generation or model config")


def stored_dtype(directory: Path) -> torch.dtype:
    """The dtype that the model's weights are stored in, and that what is made of it is saved in."""
    dtype = AutoConfig.from_pretrained(directory).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
