"""Checksums of weights on the device where they are, for transports that never touch the host."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

_ROW_WORDS = 4096
_ROWS = 1024
"""At a time: torch sums a copy in int64, here of 32 MiB."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Sums = dict[str, tuple[int, int, int]]
"""By weight."""


def word_sums(weight: Tensor) -> Tensor:
    """Three sums of a weight's words, modulo 2^64, which tell its values and their places.

    With the words w in rows of 4,096: the sum of w, of w times its row, of w times its column. One
    flipped bit changes the first, and words that changed places one of the others.

    Returns:
        int64 of shape (3,), on the weight's device; nothing waits for it.
    """
    words = weight.detach().contiguous().view(-1).view(_WORDS[weight.element_size()])
    num_rows = words.numel() // _ROW_WORDS
    rows = words[: num_rows * _ROW_WORDS].view(num_rows, _ROW_WORDS)
    rest = words[num_rows * _ROW_WORDS :]
    of_columns = torch.zeros(_ROW_WORDS, dtype=torch.int64, device=words.device)
    of_columns[: rest.numel()] += rest
    of_rows = []
    for part in rows.split(_ROWS):
        values = part.to(torch.int64)
        of_rows.append(values.sum(1))
        of_columns += values.sum(0)
    of_rows.append(rest.sum(0, keepdim=True, dtype=torch.int64))
    return _combined(torch.cat(of_rows), of_columns)


def _combined(of_rows: Tensor, of_columns: Tensor) -> Tensor:
    return torch.stack([of_rows.sum(), _by_place(of_rows), _by_place(of_columns)])


def _by_place(sums: Tensor) -> Tensor:
    return (sums * torch.arange(len(sums), device=sums.device)).sum()


class Summed:
    """Checksums of the weights that have passed."""

    def __init__(self) -> None:
        """None has."""
        self._sums: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Begin another update."""
        self._sums.clear()

    def passed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, summed on their way, on the stream that asks for them."""
        for name, weight in weights:
            self._sums[name] = word_sums(weight)
            yield name, weight

    def sums(self) -> Sums:
        """Of all since `forget`; waits for the device."""
        if not self._sums:
            return {}
        if torch.cuda.is_available():
            # They were summed on the transport's own streams.
            torch.cuda.synchronize()
        rows = torch.stack(list(self._sums.values())).tolist()
        return {name: (row[0], row[1], row[2]) for name, row in zip(self._sums, rows, strict=True)}


class SummedSource(WeightSource):
    """A source whose weights are summed as they are sent."""

    def __init__(self, source: WeightSource) -> None:
        """Send what `source` does."""
        self._source = source
        self.summed = Summed()

    def metadata(self) -> list[ParamMeta]:
        """Those of the source."""
        metadata: list[ParamMeta] = self._source.metadata()
        return metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what the source does; once through is an update."""
        self.summed.forget()
        return self.summed.passed(self._source)


def differing(sent: Sums, received: Sums) -> str | None:
    """The first weight that is not what was sent, or did not arrive; None if all are."""
    return next((name for name in [*sent, *received] if sent.get(name) != received.get(name)), None)
