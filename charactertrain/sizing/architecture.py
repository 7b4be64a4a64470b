"""What a model's config.json says of its size. No weights are read.

Dimensions: D hidden, H heads, K key-value heads, d of a head, F of the gated product, L layers, V
vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from charactertrain.exceptions import ModelError

TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Dense decoders with grouped attention and a gated product, which the formulas are of."""
_FOUR_NORMS = ("gemma2", "gemma3_text")
_HEAD_NORMS = ("gemma3_text", "qwen3")
_TIED_UNLESS_SAID = ("gemma", "gemma2", "gemma3_text")
_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a dense decoder."""

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    is_tied: bool
    """Whether the output layer is the embedding."""
    has_bias: bool
    """Of the projections to queries, keys and values."""

    @property
    def query_width(self) -> int:
        """H d."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """K d."""
        return self.kv_heads * self.head_dim

    @property
    def body_parameters(self) -> int:
        """Of all layers and the last norm: L (2 D Hd + 2 D Kd + 3 D F + norms) + D."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        product = 3 * self.hidden * self.intermediate
        norms = (4 if self.model_type in _FOUR_NORMS else 2) * self.hidden
        norms += 2 * self.head_dim if self.model_type in _HEAD_NORMS else 0
        bias = self.query_width + 2 * self.kv_width if self.has_bias else 0
        return self.layers * (attention + product + norms + bias) + self.hidden

    @property
    def parameters(self) -> int:
        """Body, embedding and, unless it is tied to that, the output layer of V D each."""
        embeddings = 1 if self.is_tied else 2
        return self.body_parameters + embeddings * self.vocabulary * self.hidden

    @property
    def multiplied_parameters(self) -> int:
        """That every written token is multiplied with, so that a step of an engine reads them.

        Body and output layer; of the embedding a token's row alone is read.
        """
        return self.body_parameters + self.vocabulary * self.hidden

    def with_scalar_head(self) -> "Architecture":
        """The preference model's: one output, too small to count, in place of the output layer.

        Parameters are those of the body and the embedding, as where the output layer is tied.
        """
        return replace(self, is_tied=True)

    def adapter_parameters(self, rank: int) -> int:
        """Of low-rank adapters on every matrix of the body: rank (inputs + outputs) of each."""
        attention = 4 * self.hidden + 2 * self.query_width + 2 * self.kv_width
        product = 3 * (self.hidden + self.intermediate)
        return self.layers * rank * (attention + product)

    def kv_bytes(self, bytes_per_value: int = 2) -> int:
        """KV cache of a token: 2 L K d values. Windows of attention would need less."""
        return 2 * self.layers * self.kv_width * bytes_per_value

    def forward_operations(self, context: float, *, predicted_share: float = 1.0) -> float:
        """Floating-point operations of one token's forward pass.

        2 for each parameter that it is multiplied with, and 4 L H d for each token that it attends
        to (Kaplan et al., 2020, table 1, https://arxiv.org/abs/2001.08361).

        Args:
            context: Tokens that it attends to, on average.
            predicted_share: Share of tokens whose next one is predicted, which pass the output
                layer.
        """
        output = predicted_share * self.vocabulary * self.hidden
        attention = 4 * self.layers * self.query_width * context
        return 2 * (self.body_parameters + output) + attention


def from_config(values: Mapping[str, Any], source: str) -> Architecture:
    """The architecture that a config.json describes; `source` names it in messages.

    Raises:
        ModelError: It is of another kind, or lacks a dimension.
    """
    model_type = values.get("model_type")
    if model_type not in TYPES:
        raise ModelError(
            f"{source}: model_type is {model_type!r}, and sizes are computed for "
            f"{', '.join(TYPES)}; plan with a model of one of these whose size is the nearest"
        )
    missing = [key for key in _KEYS if not isinstance(values.get(key), int)]
    if missing:
        raise ModelError(
            f"{source}: expected whole numbers for {', '.join(_KEYS)}, found none for "
            f"{', '.join(missing)}; give the directory of a whole model"
        )
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    return Architecture(
        model_type=model_type,
        hidden=hidden,
        intermediate=values["intermediate_size"],
        layers=values["num_hidden_layers"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or hidden // heads,
        vocabulary=values["vocab_size"],
        is_tied=values.get("tie_word_embeddings", model_type in _TIED_UNLESS_SAID),
        has_bias=model_type == "qwen2",
    )
