"""Sources of rows, in slices that are worked on, written and resumed as one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from charactertrain.artifacts import FileEntry
from charactertrain.records import from_table
from charactertrain.storage import Directory


@dataclass(frozen=True)
class Chunk:
    """A slice of a source: the unit of work, of writing and of resuming."""

    index: int
    part: str
    """The file that the rows are in; empty where they are computed."""
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Rows of the source."""
        return self.stop - self.start


class Source(Protocol):
    """The rows to be worked on."""

    def chunks(self, rows_per_chunk: int) -> Iterator[Chunk]:
        """The source in slices, in order."""

    def read(self, chunk: Chunk) -> list[Any]:
        """The rows of a slice."""


@dataclass(frozen=True)
class FileSource:
    """Parquet files of one record type."""

    directory: Directory
    files: tuple[FileEntry, ...]
    row_type: type
    whole_files: bool
    """Each file is one chunk, so that rows which belong together stay together."""

    def chunks(self, rows_per_chunk: int) -> Iterator[Chunk]:
        """Slices of each file; none spans two."""
        index = 0
        for entry in self.files:
            num_rows = entry.num_rows or 0
            step = max(1, num_rows) if self.whole_files else rows_per_chunk
            for start in range(0, num_rows, step):
                yield Chunk(index, entry.name, start, min(start + step, num_rows))
                index += 1

    def read(self, chunk: Chunk) -> list[Any]:
        """Records of the slice."""
        table = self.directory.read_table(chunk.part).slice(chunk.start, chunk.num_rows)
        return from_table(table, self.row_type)


@dataclass(frozen=True)
class ComputedSource:
    """Rows that are computed from their index, so that none needs to be stored."""

    rows: Sequence[Any]

    def chunks(self, rows_per_chunk: int) -> Iterator[Chunk]:
        """Slices of the sequence."""
        for index, start in enumerate(range(0, len(self.rows), rows_per_chunk)):
            yield Chunk(index, "", start, min(start + rows_per_chunk, len(self.rows)))

    def read(self, chunk: Chunk) -> list[Any]:
        """Rows of the slice."""
        return [self.rows[index] for index in range(chunk.start, chunk.stop)]
