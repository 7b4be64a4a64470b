"""A model whose sizes can be worked out by hand."""

from charactertrain.sizing.architecture import Architecture

SMALL = Architecture(
    model_type="llama",
    hidden=4,
    intermediate=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=2,
    vocabulary=10,
    is_tied=False,
    has_bias=False,
)
