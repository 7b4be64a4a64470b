"""metrics.jsonl: the lines of a run, over all its attempts, and where each belongs."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from charactertrain.storage import Directory

METRICS_NAME = "metrics.jsonl"

_REWRITE_SECONDS = 30.0
"""An object store's files cannot grow: the whole is written anew, at most this often."""

_COUNTERS = {"step": "optimise", "warm start": "warm_start", "reading": "readings"}
"""Keys of a line that count its phase's steps, and the phase."""


@dataclass(frozen=True)
class Line:
    """One line of the file."""

    number: int
    """From 0, over all attempts."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """The phase of a stage that a line is of, and the step there."""

    stage: str
    phase: str
    """A phase of training, a member of the preference model, or a data stage's task; or empty."""
    counter: str | None
    """The key that counts steps; None for a line that is of none."""
    step: int | None
    num_steps: int | None
    """Of the phase, where the line tells."""


def place_of(stage: str, values: Mapping[str, Any]) -> Place:
    """Where a line belongs: counters are `7/200` or a number."""
    for counter, phase in _COUNTERS.items():
        if counter in values:
            step, _, total = str(values[counter]).partition("/")
            name = str(values.get("member", phase))
            return Place(stage, name, counter, int(step), int(total) if total else None)
    return Place(stage, str(values.get("job", "")), None, None, None)


class MetricFile(Protocol):
    """The file, wherever the run directory is."""

    def append(self, line: bytes) -> None:
        """Add a line, which ends in a newline."""

    def read(self) -> bytes:
        """All that earlier attempts and this one wrote."""

    def flush(self) -> None:
        """Write what is not written yet."""


def metric_file(directory: Directory) -> MetricFile:
    """The file of metrics of a run directory; nothing is written yet."""
    return _LocalFile(directory) if directory.is_local else _StoredFile(directory)


def lines_of(text: bytes) -> Iterator[Line]:
    """The lines; one that a machine's end cut off is no line, and keeps its number."""
    for number, line in enumerate(text.splitlines()):
        try:
            yield Line(number, json.loads(line))
        except ValueError:
            continue


class _LocalFile:
    """On a local disk: every line is written as it comes."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory.local_path
        self._is_whole = False
        """Whether the last line is known to end in a newline."""

    def append(self, line: bytes) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / METRICS_NAME).open("ab+") as file:
            if not self._is_whole:
                self._is_whole = True
                line = _newline_before(file) + line
            file.write(line)

    def read(self) -> bytes:
        path = self._directory / METRICS_NAME
        return path.read_bytes() if path.exists() else b""

    def flush(self) -> None:
        pass


def _newline_before(file: Any) -> bytes:
    if file.seek(0, 2) == 0:
        return b""
    file.seek(-1, 2)
    return b"" if file.read(1) == b"\n" else b"\n"


class _StoredFile:
    """In an object store: kept here, and written as a whole now and then."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._text: bytes | None = None
        self._is_written = True
        self._written_at = -math.inf

    def append(self, line: bytes) -> None:
        self._text = self.read() + line
        self._is_written = False
        if time.monotonic() - self._written_at >= _REWRITE_SECONDS:
            self.flush()

    def read(self) -> bytes:
        if self._text is None:
            is_there = self._directory.exists(METRICS_NAME)
            self._text = self._directory.read_bytes(METRICS_NAME) if is_there else b""
        return self._text

    def flush(self) -> None:
        if self._text is None or self._is_written:
            return
        self._directory.write_bytes(METRICS_NAME, self._text)
        self._is_written, self._written_at = True, time.monotonic()
