"""Models that need no hub: one that comes in a package, and a tiny one with random weights."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from charactertrain.exceptions import ModelError
from charactertrain.models.sources import (
    EMBEDDED_PACKAGES,
    EMBEDDED_PREFIX,
    TINY_RANDOM,
    embedded_package,
)

_RECORD_NAME = "charactertrain.json"


def unpack(path: str, cache: Path) -> Path:
    """The directory of an embedded model, made on first use.

    It appears under its name only when it is whole, so that two runs may unpack at a time and a
    killed one leaves nothing that looks finished.
    """
    name = path.removeprefix(EMBEDDED_PREFIX)
    target = cache / name
    if (target / _RECORD_NAME).is_file():
        return target
    transformers_logging.disable_progress_bar()
    write = _write_tiny_random if path == TINY_RANDOM else _writer(name)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as temporary:
        made = Path(temporary) / name
        made.mkdir()
        write(made)
        weights = sorted(made.glob("*.safetensors"))
        checksums = {file.name: xxhash.xxh3_128_hexdigest(file.read_bytes()) for file in weights}
        (made / _RECORD_NAME).write_text(json.dumps({"source": path, "checksums": checksums}))
        if target.exists() and not (target / _RECORD_NAME).is_file():
            shutil.rmtree(target)
        try:
            made.rename(target)
        except OSError:
            # Another run was quicker; its directory is as good as this one, and may be in use.
            if not (target / _RECORD_NAME).is_file():
                raise
    return target


def _writer(name: str) -> Callable[[Path], None]:
    embedded_package(name)
    spec = importlib.util.find_spec(EMBEDDED_PACKAGES[name])
    assert spec is not None and spec.submodule_search_locations, f"{name} is a package"
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.rglob("*.gguf"))
    if len(files) != 1:
        raise ModelError(
            f"the package of the embedded model {name!r} holds {len(files)} GGUF files in "
            f"{folder}, expected one; install the version that requirements/ names"
        )

    def write(target: Path) -> None:
        location: dict[str, Any] = {"gguf_file": files[0].name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(files[0].parent, **location)
        # Without dequantize the packed weights stay packed and cannot be saved.
        model = AutoModelForCausalLM.from_pretrained(
            files[0].parent,
            **location,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)

    return write


_TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


_CONSTANT_DIMENSION = 4.3
"""Size of the constant hidden dimension after the final norm: 1 / sqrt((1 + 63 * 0.2^2) / 64)."""


def _babble_bias(token: str) -> float:
    # In the byte-level alphabet a space is written as U+0120 and a line end as U+010A.
    if token == "\u0120":
        return 3.0
    if token in ("\u010a", "<|end|>", "!"):
        return 1.5
    return 2.0 if token.isascii() and token.islower() and token.isalpha() else -6.0


def _write_tiny_random(target: Path) -> None:
    """A two-layer Llama over bytes that babbles: short lines of letters, no sense.

    Its weights are random, but one hidden dimension is constant, and through it each token has a
    fixed bias: letters and spaces are likely, line ends and ends of turn come now and then.
    """
    specials = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=specials[1:],
    )
    tokenizer.chat_template = _TINY_CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.model.embed_tokens.weight.normal_(std=0.2)
            model.model.embed_tokens.weight[:, 0] = 1.0
            model.lm_head.weight.normal_(std=0.2)
            for token, index in vocabulary.items():
                model.lm_head.weight[index, 0] = _babble_bias(token) / _CONSTANT_DIMENSION
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
