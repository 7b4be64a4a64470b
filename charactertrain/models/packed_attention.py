"""Attention over a packed row: each piece sees the piece before it and itself, and nothing else.

A row is cut into pieces: a prompt, or one of its responses, which follows the prompt. Registered
with transformers under `NAME`; models whose attention can be replaced are loaded with it.

Shapes: H heads, L tokens of the row, D dimensions of a head, S pieces, K keys that pieces see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "charactertrain_packed"
_UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models' attention is given besides, and would be wrong without."""


@dataclass(frozen=True)
class Piece:
    """A stretch of the row, and the piece that its tokens see besides themselves."""

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0


@dataclass(frozen=True)
class Pieces:
    """The pieces of a row, and the same as the kernels for GPUs read them."""

    pieces: tuple[Piece, ...]
    """In the order of the row, without gaps."""
    keys_K: Tensor
    """For each piece its prefix and itself, as places in the row."""
    query_ends_S: Tensor
    """Where each piece ends, with a leading 0."""
    key_ends_S: Tensor
    """Where each piece's stretch of `keys_K` ends, with a leading 0."""
    longest_query: int
    longest_key: int

    def to(self, device: torch.device) -> "Pieces":
        """The same on a device."""
        return Pieces(
            self.pieces,
            self.keys_K.to(device),
            self.query_ends_S.to(device),
            self.key_ends_S.to(device),
            self.longest_query,
            self.longest_key,
        )


def cut(pieces: Sequence[Piece]) -> Pieces:
    """Pieces that cover a row from its first token to its last."""
    places = [
        torch.cat([torch.arange(p.prefix_start, p.prefix_end), torch.arange(p.start, p.end)])
        for p in pieces
    ]
    queries, keys = [p.end - p.start for p in pieces], [len(place) for place in places]
    return Pieces(
        tuple(pieces), torch.cat(places), _ends(queries), _ends(keys), max(queries), max(keys)
    )


def _ends(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0).to(torch.int32)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each piece and over its prefix; output has shape 1 x L x H x D.

    Called by transformers with `scaling` and, where a layer has one, `sliding_window`; with
    `pieces`, if the model was. Without them it is transformers' own attention, mask and all.
    """
    pieces: Pieces | None = options.get("pieces")
    scaling, window = options.get("scaling"), options.get("sliding_window")
    if pieces is None:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )[0]
        return output, None
    if torch.is_autocast_enabled(query.device.type):
        # Rotated queries and keys come in fp32, and values do not.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    assert len(query) == 1, f"a packed batch is one row, found {len(query)}"
    unknown = [name for name in _UNKNOWN if options.get(name) is not None]
    assert not unknown, f"packed attention leaves out {unknown}; see packing.is_packable"
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _varlen(query[0], key[0], value[0], pieces, scaling, window)[None], None
    if query.is_cuda:
        # In fp32 no kernel there shares keys among heads, and what is left needs a whole matrix.
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return _piece_by_piece(query, key, value, pieces, scaling, window), None


def _piece_by_piece(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    # Split and not sliced: the gradient of a slice is a whole row of zeros but for the slice.
    sizes = [piece.end - piece.start for piece in pieces.pieces]
    queries, keys, values = (tensor.split(sizes, dim=2) for tensor in (query, key, value))
    place = {(piece.start, piece.end): number for number, piece in enumerate(pieces.pieces)}
    outputs = []
    for number, piece in enumerate(pieces.pieces):
        seen = [number]
        if piece.prefix_end > piece.prefix_start:
            seen = [place[piece.prefix_start, piece.prefix_end], number]
        outputs.append(
            _one_piece(
                queries[number],
                torch.cat([keys[index] for index in seen], dim=2),
                torch.cat([values[index] for index in seen], dim=2),
                scaling,
                window,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _one_piece(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Causal attention whose last query sees all keys, or the last `window` of them."""
    num_own, num_keys = query.shape[2], keys.shape[2]
    mask: Tensor | None = None
    if num_own < num_keys or (window is not None and window < num_own):
        everything = torch.ones(num_own, num_keys, dtype=torch.bool, device=query.device)
        mask = everything.tril(num_keys - num_own)
        if window is not None:
            mask &= everything.triu(num_keys - num_own - window + 1)
    return F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pieces: Pieces,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # A prompt's keys are there once for itself and once for each response.
    keys, values = (tensor.transpose(0, 1)[pieces.keys_K] for tensor in (key, value))
    output = varlen_attn(
        query.transpose(0, 1).contiguous(),
        keys.contiguous(),
        values.contiguous(),
        pieces.query_ends_S,
        pieces.key_ends_S,
        pieces.longest_query,
        pieces.longest_key,
        scale=scaling,
        # Aligned at the end of each piece: its last token sees all of its keys.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[0] != key.shape[0],
    )
    assert isinstance(output, Tensor), "no auxiliary output was asked for"
    return output


AttentionInterface.register(NAME, packed_attention)
# For plain calls; a packed call brings a mask of four dimensions, which is handed on as it is.
AttentionMaskInterface.register(NAME, sdpa_mask)
