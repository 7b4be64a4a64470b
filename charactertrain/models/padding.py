"""Responses as rows of padded batches, for models whose attention cannot be packed.

Each row is a prompt and one response, padded at its end to the longest of its batch. Rows of about
one length come into one batch, so that little of it is padding.

Shapes: R rows, L tokens of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from charactertrain.models.packing import PromptGroup

MAX_PADDING = 0.05
"""Of the tokens of a batch."""


@dataclass(frozen=True)
class PaddedRows:
    """Some of the groups' responses, one to a row."""

    input_ids: Tensor
    """R x L."""
    attention_mask: Tensor
    """R x L, 0 at padding."""
    last_R: Tensor
    """For each row the place of its last token."""
    response_R: Tensor
    """For each row the number of its response among all of the groups; -1 if it comes again."""

    def to(self, device: torch.device) -> "PaddedRows":
        """The same on a device."""
        return PaddedRows(*(value.to(device) for value in vars(self).values()))

    def model_inputs(self) -> dict[str, Tensor]:
        """What any transformers model is called with."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def num_batches(groups: Sequence[PromptGroup]) -> int:
    """Few batches, of each of which no more than `MAX_PADDING` is padding."""
    return len(_cut(sorted(map(len, _rows(groups)))))


def pad(groups: Sequence[PromptGroup], count: int) -> list[PaddedRows]:
    """Groups as `count` batches, `num_batches` of them or more.

    Workers take as many batches at a time, each for its own groups; where there are fewer rows than
    batches, rows come again.
    """
    rows = _rows(groups)
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
    sizes = _cut([len(rows[index]) for index in order])
    while len(sizes) < count and max(sizes) > 1:
        largest = sizes.index(max(sizes))
        size = sizes[largest]
        sizes[largest : largest + 1] = [size - size // 2, size // 2]
    batches, start = [], 0
    for size in sizes:
        batches.append(_batch(rows, order[start : start + size]))
        start += size
    again = replace(batches[-1], response_R=torch.full_like(batches[-1].response_R, -1))
    return batches + [again] * (count - len(batches))


def _rows(groups: Sequence[PromptGroup]) -> list[list[int]]:
    return [
        [*group.prompt_token_ids, *response] for group in groups for response in group.responses
    ]


def _cut(lengths: Sequence[int]) -> list[int]:
    """Sizes of batches of rows of rising length."""
    sizes: list[int] = []
    total = 0
    for length in lengths:
        if sizes and total + length >= (1 - MAX_PADDING) * (sizes[-1] + 1) * length:
            sizes[-1] += 1
            total += length
        else:
            sizes.append(1)
            total = length
    return sizes


def _batch(rows: Sequence[list[int]], chosen: Sequence[int]) -> PaddedRows:
    tokens = [torch.tensor(rows[index]) for index in chosen]
    lengths_R = torch.tensor([len(row) for row in tokens])
    places_L = torch.arange(int(lengths_R.max()))
    return PaddedRows(
        input_ids=torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        attention_mask=(places_L[None] < lengths_R[:, None]).long(),
        last_R=lengths_R - 1,
        response_R=torch.tensor(chosen),
    )
