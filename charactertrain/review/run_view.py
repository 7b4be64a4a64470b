"""A run as the pages see it: what its stages have made so far, read when it is asked for."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pyarrow.fs as pafs

from charactertrain import artifacts
from charactertrain.artifacts import Manifest
from charactertrain.records import Ranking, Response, from_table, schema
from charactertrain.review.tables import Cells, Table, TableFile
from charactertrain.stages.definitions import NAMES
from charactertrain.storage import Directory

_METRICS_NAME = "metrics.jsonl"
_METRICS_TAIL_BYTES = 256 * 1024
_SOURCES = {"responses": ("prompts", "prompts"), "rankings": ("responses", "responses")}
"""The table whose rows a stage works through; its chunks hold the results of so many of them."""


@dataclass(frozen=True)
class StageState:
    """How far a stage has come."""

    name: str
    state: Literal["finished", "running", "waiting"]
    rows: Mapping[str, int]
    """By table, without rejects; of a running stage those of finished chunks."""
    num_rejects: int
    wall_seconds: float | None
    created_at: str
    updated_at: float | None
    """When a running stage last wrote something, in seconds since the epoch."""


@dataclass(frozen=True)
class Curve:
    """One measure of a training stage, step by step."""

    stage: str
    """With the model or the phase, where a stage trains several."""
    measure: str
    values: tuple[float, ...]


class RunView:
    """One run directory, finished or being worked on. Reads only, and only its own files."""

    def __init__(self, directory: Directory) -> None:
        """Nothing is read until it is asked for."""
        self.directory = directory
        self._manifest = lru_cache(maxsize=64)(self._read_manifest)
        self._num_rows = lru_cache(maxsize=100_000)(self._read_num_rows)
        self._tables = lru_cache(maxsize=64)(self._open_table)

    @property
    def name(self) -> str:
        """Of the run: its directory's."""
        return self.directory.root.rpartition("/")[2]

    def manifest(self, stage: str) -> Manifest | None:
        """Of a finished stage; None of any other."""
        info = self.directory.filesystem.get_file_info(
            self.directory.path(f"{stage}/{artifacts.MANIFEST_NAME}")
        )
        if info.type is pafs.FileType.NotFound:
            return None
        return self._manifest(stage, info.mtime_ns)

    def _read_manifest(self, stage: str, _mtime_ns: int) -> Manifest | None:
        return artifacts.read_manifest(self.directory.child(stage))

    def table(self, stage: str, name: str) -> Table:
        """A stage's table; of a running stage as far as its finished chunks go."""
        manifest = self.manifest(stage)
        if manifest is not None:
            entries = manifest.table(name)
            return self._tables(
                stage,
                tuple(TableFile(e.name, e.num_rows or 0, e.checksum) for e in entries),
            )
        directory = self.directory.child(stage)
        # No manifest lists the chunks yet; each appears only when it is whole.
        names = [file for file in directory.files(name) if file.endswith(".parquet")]
        return self._tables(stage, tuple(self._files_now(stage, names)))

    def _files_now(self, stage: str, names: Sequence[str]) -> Iterator[TableFile]:
        """Of a running stage, with the rows that each file has."""
        directory = self.directory.child(stage)
        infos = directory.filesystem.get_file_info([directory.path(name) for name in names])
        for name, info in zip(names, infos, strict=True):
            version = str(info.mtime_ns)
            yield TableFile(name, self._num_rows(stage, name, version), version)

    def _open_table(self, stage: str, files: tuple[TableFile, ...]) -> Table:
        return Table(self.directory.child(stage), files)

    def _read_num_rows(self, stage: str, file: str, _version: str) -> int:
        return self.directory.child(stage).num_rows(file)

    def stages(self) -> list[StageState]:
        """All stages, in order."""
        return [self._stage(name) for name in NAMES]

    def _stage(self, name: str) -> StageState:
        manifest = self.manifest(name)
        if manifest is not None:
            rows = {t: n for t, n in manifest.rows.items() if not t.startswith("rejects/")}
            rejects = sum(manifest.rejects.values())
            finished = (manifest.wall_seconds, manifest.created_at, None)
            return StageState(name, "finished", rows, rejects, *finished)
        directory = self.directory.child(name)
        if artifacts.unfinished(directory) is None:
            return StageState(name, "waiting", {}, 0, None, "", None)
        counts: Counter[str] = Counter()
        parquet = [file for file in directory.files() if file.endswith(".parquet")]
        for found in self._files_now(name, parquet):
            counts[found.name.rpartition("/")[0]] += found.num_rows
        rejects = sum(n for table, n in counts.items() if table.startswith("rejects/"))
        rows = {table: n for table, n in counts.items() if not table.startswith("rejects/")}
        return StageState(name, "running", rows, rejects, None, "", self._changed_at(directory))

    def _changed_at(self, directory: Directory) -> float | None:
        selector = pafs.FileSelector(directory.root, recursive=True, allow_not_found=True)
        infos = directory.filesystem.get_file_info(selector)
        return max((info.mtime.timestamp() for info in infos if info.mtime), default=None)

    def progress(self, state: StageState) -> tuple[int, int] | None:
        """Source rows that a running data stage has worked through, and all of them."""
        if state.state != "running" or state.name not in _SOURCES:
            return None
        source, table = _SOURCES[state.name]
        directory = self.directory.child(state.name)
        if not directory.exists(f"{state.name}/rows_per_chunk.txt"):
            return None
        chunks = [f for f in directory.files(state.name) if f.endswith(".parquet")]
        if state.name == "rankings":
            done = {self._chunk_number(file) for file in chunks}
            sizes = [n for n in self.table(source, table).file_sizes if n]
            return sum(n for i, n in enumerate(sizes) if i in done), sum(sizes)
        per_chunk = int(directory.read_bytes(f"{state.name}/rows_per_chunk.txt"))
        total = len(self.table(source, table))
        return min(total, per_chunk * len(chunks)), total

    @staticmethod
    def _chunk_number(file: str) -> int:
        return int(file.removesuffix(".parquet").rpartition("-")[2])

    def curves(self, measures: Sequence[str]) -> list[Curve]:
        """The last part of what training stages logged of the given measures."""
        directory = self.directory
        if not directory.exists(_METRICS_NAME):
            return []
        with directory.filesystem.open_input_file(directory.path(_METRICS_NAME)) as stream:
            size = stream.size()
            stream.seek(max(0, size - _METRICS_TAIL_BYTES))
            lines = stream.read().splitlines()
        found: dict[tuple[str, str], list[float]] = {}
        # The first line may be cut at its beginning, the last is being written perhaps.
        for line in lines:
            try:
                values: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            for measure in measures:
                value = values.get(measure)
                if isinstance(value, int | float):
                    found.setdefault((_phase(values), measure), []).append(float(value))
        return [Curve(*key, tuple(values)) for key, values in found.items()]

    def traits(self) -> dict[str, str]:
        """Statements by trait id, in the constitution's order."""
        table = self.table("traits", "traits")
        cells = table.rows(range(len(table)), ["trait_id", "statement"])
        return {row["trait_id"]: row["statement"] for row in cells}

    def constitution(self) -> dict[str, Any] | None:
        """The trait file's contents, as the run was made with; None before the run has begun."""
        manifest = self.manifest("traits")
        return None if manifest is None else manifest.identity.config.get("constitution")

    def prompt(self, prompt_id: str) -> Cells | None:
        """A prompt's row; None where there is none of that id."""
        for name in ("prompts", "general"):
            table = self.table("prompts", name)
            if len(table):
                for position in table.where(prompt_id=prompt_id):
                    return table.rows([int(position)], sorted(table.has))[0]
        return None

    def responses(self, prompt_id: str) -> dict[str, Response]:
        """The responses to a prompt, by id, without tokens and their log-probabilities."""
        table = self.table("responses", "responses")
        if not len(table):
            return {}
        names = [name for name in schema(Response).names if name not in ("token_ids", "logprobs")]
        cells = table.rows([int(p) for p in table.where(prompt_id=prompt_id)], names)
        found = [Response(token_ids=(), logprobs=(), **row) for row in cells]
        return {response.response_id: response for response in found}

    def ranking(self, prompt_id: str) -> Ranking | None:
        """The ranking of a prompt's responses; None where there is none yet."""
        table = self.table("rankings", "rankings")
        if not len(table):
            return None
        for position in table.where(prompt_id=prompt_id):
            return self.ranking_at(int(position))
        return None

    def ranking_at(self, position: int) -> Ranking:
        """The ranking in a row of the table."""
        table = self.table("rankings", "rankings")
        found = table.slice(position, schema(Ranking).names)
        return from_table(found, Ranking)[0]


def _phase(values: Mapping[str, Any]) -> str:
    """The stage that logged a line, and which of its models or phases."""
    stage = str(values.get("stage"))
    if "warm start" in values:
        return f"{stage}, warm start"
    return f"{stage}, {values['member']}" if "member" in values else stage
