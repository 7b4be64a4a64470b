"""A stage's table, read as far as a page needs it: some rows, or some columns of all."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from charactertrain.storage import Directory

SEARCH_SECONDS = 1.0
"""After which a search shows what it has found so far."""

Cells = dict[str, Any]
"""One row, by column."""
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class TableFile:
    """One parquet file of a table."""

    name: str
    num_rows: int
    version: str
    """Another one for other contents under the same name: a stage may be made anew."""


@dataclass(frozen=True)
class Hits:
    """What a search found."""

    positions: tuple[int, ...]
    next_start: int | None
    """The row to go on from; None where all rows were searched."""


class Table:
    """A table of an artifact, or of one in the making: the files that it has now."""

    def __init__(self, directory: Directory, files: Sequence[TableFile]) -> None:
        """Nothing is read until it is asked for."""
        self._directory, self._files = directory, tuple(files)
        self._starts = [0, *accumulate(file.num_rows for file in files)]
        self._columns = lru_cache(maxsize=8)(self._read_columns)

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self, positions: Sequence[int], columns: Sequence[str]) -> list[Cells]:
        """The rows at the given positions, in that order; of files, only those that hold them."""
        found: dict[int, Cells] = {}
        by_file = groupby(sorted(set(positions)), key=self._file_of)
        for index, group in by_file:
            wanted = list(group)
            start = self._starts[index]
            table = self._slice(index, wanted[0] - start, wanted[-1] + 1 - start, columns)
            cells = table.take(pa.array([p - wanted[0] for p in wanted])).to_pylist()
            found.update(zip(wanted, cells, strict=True))
        return [found[position] for position in positions]

    def slice(self, position: int, columns: Sequence[str]) -> pa.Table:
        """The row at a position, as a table."""
        index = self._file_of(position)
        start = position - self._starts[index]
        return self._slice(index, start, start + 1, columns)

    @property
    def file_sizes(self) -> list[int]:
        """Rows of each file, in order."""
        return [file.num_rows for file in self._files]

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows; kept, so only for what is short."""
        return self._columns(name)

    def _read_columns(self, name: str) -> pa.ChunkedArray:
        names = [file.name for file in self._files]
        tables = list(self._directory.read_tables(names, [name]))
        if not tables:
            return pa.chunked_array([], pa.string())
        return pa.concat_tables(tables).column(name)

    @cached_property
    def has(self) -> frozenset[str]:
        """Names of the table's columns."""
        if not self._files:
            return frozenset()
        return frozenset(self._directory.read_table(self._files[0].name).column_names)

    def where(self, **equal: str) -> Positions:
        """Positions of the rows whose columns have the given values, ascending."""
        mask = np.ones(len(self), bool)
        for name, value in equal.items():
            mask &= pc.equal(self.column(name), value).to_numpy()
        return np.flatnonzero(mask)

    def search(
        self, text: str, columns: Sequence[str], among: Positions | None, *, start: int, limit: int
    ) -> Hits:
        """Rows in which a column holds the text, whatever its case; from `start` on.

        Stops after `limit` rows, or some time, and says where to go on.
        """
        deadline = time.monotonic() + SEARCH_SECONDS
        found: list[int] = []
        for first, table in self._from(start, columns):
            if time.monotonic() > deadline:
                return Hits(tuple(found), first)
            mask = np.zeros(table.num_rows, bool)
            for name in columns:
                mask |= _holds(table.column(name), text)
            positions = np.flatnonzero(mask) + first
            if among is not None:
                positions = np.intersect1d(positions, among, assume_unique=True)
            found += positions.tolist()
            if len(found) > limit:
                return Hits(tuple(found[:limit]), found[limit])
        return Hits(tuple(found), None)

    def _from(self, start: int, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        for index, file in enumerate(self._files):
            first = max(start, self._starts[index])
            if first < self._starts[index + 1]:
                offset = first - self._starts[index]
                yield first, self._slice(index, offset, file.num_rows, columns)

    def _slice(self, index: int, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        return self._directory.read_slice(self._files[index].name, start, stop, list(columns))

    def _file_of(self, position: int) -> int:
        # The last file that begins at or before the row: files without rows begin where it does.
        return int(np.searchsorted(self._starts, position, side="right")) - 1


def _holds(column: pa.ChunkedArray, text: str) -> NDArray[np.bool_]:
    """Which rows of texts, or of conversations, hold a text, whatever its case."""
    if not pa.types.is_list(column.type):
        found = pc.match_substring(column, text, ignore_case=True)
        return np.asarray(found.to_numpy(), bool)
    contents = pc.struct_field(pc.list_flatten(column), "content")
    matches = pc.match_substring(contents, text, ignore_case=True).to_numpy()
    mask = np.zeros(len(column), bool)
    mask[pc.list_parent_indices(column).to_numpy()[matches]] = True
    return mask
