"""Rows of files of the researcher's own: parquet, JSONL, or a directory that `datasets` saved.

A row comes with where it is, since what is wrong with it is said with its file and number.
`setting` is that which names the file, such as `prompts.file`.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from charactertrain.exceptions import ConfigError
from charactertrain.records import Split
from charactertrain.seeds import derive_seed

_BATCH_ROWS = 4096

Item = TypeVar("Item")


def checksum(location: str, *, setting: str) -> str:
    """xxh3-128 over the files of `location`, which is a file or a directory.

    Raises:
        ConfigError: There is no such file, or the directory holds no Arrow file.
    """
    digest = xxhash.xxh3_128()
    for file in _files(location, setting):
        with file.open("rb") as stream:
            while chunk := stream.read(2**23):
                digest.update(chunk)
    return digest.hexdigest()


def read_rows(location: str, *, setting: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row is, for messages, and the row.

    Raises:
        ConfigError: There is no such file, it cannot be read, or it holds no rows.
    """
    is_empty = True
    for file in _files(location, setting):
        try:
            for where, row in _rows_of_file(file):
                is_empty = False
                yield where, row
        except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{setting}: {file} cannot be read: {error}") from error
    if is_empty:
        raise ConfigError(f"{setting}: {location} holds no rows; expected at least one")


def in_batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """A few thousand at a time."""
    waiting = iter(items)
    while batch := list(islice(waiting, _BATCH_ROWS)):
        yield batch


def drawn_split(family: str, *, validation_share: float, test_share: float, seed: int) -> Split:
    """The split of a family for which no row names one."""
    draw = derive_seed(seed, "split", family) / 2**31
    if draw < test_share:
        return "test"
    return "validation" if draw < test_share + validation_share else "train"


def check_text(value: object, key: str, where: str) -> None:
    """Raise ConfigError if a value that is there is no text, or is one that no file can store."""
    if not isinstance(value, str | None):
        raise ConfigError(f"{where}: {key} is {value!r}, expected text")
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: {key} holds what no file can store: {error}") from None


def check_one_of(value: object, allowed: Collection[str], key: str, where: str) -> None:
    """Raise ConfigError if a value is none of those that are allowed."""
    if value not in allowed:
        raise ConfigError(f"{where}: {key} is {value!r}; expected one of {', '.join(allowed)}")


def _rows_of_file(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, line {number}", _json_row(line, f"{file}, line {number}")
        return
    number = 0
    if file.suffix == ".parquet":
        batches: Iterator[pa.RecordBatch] = pq.ParquetFile(file).iter_batches(_BATCH_ROWS)
    else:
        batches = iter(pa.ipc.open_stream(pa.OSFile(str(file))))
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield f"{file}, row {number}", row


def _json_row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: expected an object, found a {type(row).__name__}")
    return row


def _files(location: str, setting: str) -> list[Path]:
    path = Path(location).expanduser()
    if path.is_dir():
        # Not every *.arrow: `datasets` caches what it computed beside the data.
        found = sorted(path.glob("data-*.arrow")) or sorted(path.glob("*.parquet"))
        if found:
            return found
        raise ConfigError(
            f"{setting}: {path} holds no data-*.arrow or *.parquet; expected a directory that "
            "`Dataset.save_to_disk` wrote (a DatasetDict has one per split: name one of them)"
        )
    if not path.is_file():
        raise ConfigError(f"{setting}: there is no file {path}")
    if path.suffix not in {".parquet", ".jsonl"}:
        raise ConfigError(
            f"{setting}: {path} has the suffix {path.suffix!r}; expected .parquet or .jsonl, or "
            "a directory that `datasets` saved"
        )
    return [path]
