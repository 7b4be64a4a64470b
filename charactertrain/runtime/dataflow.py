"""Data stages on Ray Data: rows in, rows out, in chunks that are written and resumed as one.

A chunk is a fixed slice of the source's rows, and its result goes to a file named after it, which
appears only when it is whole. So a chunk that is done is known by its file, a retried chunk
overwrites nothing but itself, and no row is lost or doubled however often a run is killed.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayTaskError

from charactertrain.artifacts import FileEntry
from charactertrain.exceptions import CharacterTrainError, SamplingError
from charactertrain.records import Reject, from_table, to_table
from charactertrain.runtime.engines import SamplerSource, close_sampler
from charactertrain.runtime.progress import Progress
from charactertrain.runtime.sampling import Sampler
from charactertrain.storage import Directory

_MAX_BLOCKS = 1000
_MIN_ROWS_TO_JUDGE = 64


class Processor(Protocol):
    """What a stage does with the rows of a chunk."""

    def process(self, rows: list[Any]) -> tuple[list[Any], list[Reject]]:
        """Result rows and rejects for the given rows."""


@dataclass(frozen=True)
class Source:
    """The rows to be worked on: parquet files of one record type."""

    directory: Directory
    files: tuple[FileEntry, ...]
    row_type: type
    whole_files: bool
    """Each file is one chunk, so that rows which belong together stay together."""


@dataclass(frozen=True)
class ChunkJob:
    """One pass over a source."""

    name: str
    """Shown in the progress display."""
    source: Source
    target: Directory
    table: str
    """Sub-directory of the target that the result's parquet files go to."""
    result_type: type
    make_processor: Callable[[Sampler], Processor]
    sampler: SamplerSource
    max_reject_share: float


@dataclass(frozen=True)
class PoolSettings:
    """The pool of workers, one engine's worth of work each."""

    num_workers: tuple[int, int]
    rows_per_chunk: int
    chunks_in_flight: int


@dataclass(frozen=True)
class _Chunk:
    index: int
    file: str
    start: int
    stop: int


def chunk_name(table: str, index: int) -> str:
    """The file that a chunk's rows go to."""
    return f"{table}/part-{index:06d}.parquet"


def run_chunks(job: ChunkJob, pool: PoolSettings, progress: Progress) -> tuple[list[str], int, int]:
    """Work on every chunk that is not done yet.

    Returns:
        Names of all files of the result and its rejects, the number of rows, and of rejects.

    Raises:
        SamplingError: More than `max_reject_share` of the rows were rejected.
    """
    chunks = list(_chunks(job.source, _rows_per_chunk(job, pool)))
    existing = set(job.target.files())
    pending = [c for c in chunks if chunk_name(job.table, c.index) not in existing]
    total = sum(chunk.stop - chunk.start for chunk in chunks)
    done = total - sum(chunk.stop - chunk.start for chunk in pending)
    with progress.task(job.name, total=total, done=done) as advance:
        num_rows = num_rejects = 0
        for result in _results(job, pending, pool):
            num_rows += result["num_rows"]
            num_rejects += result["num_rejects"]
            advance(result["num_source_rows"])
            if num_rows + num_rejects >= _MIN_ROWS_TO_JUDGE:
                _check_rejects(job, num_rows, num_rejects)
    return _collect(job, chunks)


def _rows_per_chunk(job: ChunkJob, pool: PoolSettings) -> int:
    """The chunk size of the job's first attempt: an index means other rows at another size."""
    name = f"{job.table}/rows_per_chunk.txt"
    if not job.target.exists(name):
        job.target.write_bytes(name, str(pool.rows_per_chunk).encode())
    return int(job.target.read_bytes(name))


def _chunks(source: Source, rows_per_chunk: int) -> Iterator[_Chunk]:
    index = 0
    for entry in source.files:
        num_rows = entry.num_rows or 0
        step = max(1, num_rows) if source.whole_files else rows_per_chunk
        for start in range(0, num_rows, step):
            yield _Chunk(index, entry.name, start, min(start + step, num_rows))
            index += 1


def _results(
    job: ChunkJob, pending: Sequence[_Chunk], pool: PoolSettings
) -> Iterator[dict[str, Any]]:
    if not pending:
        return
    items = [vars(chunk) for chunk in pending]
    dataset: Dataset = ray.data.from_items(
        items, override_num_blocks=min(len(items), _MAX_BLOCKS)
    ).map_batches(
        _ChunkWorker,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_kwargs={"job": job},
        compute=ActorPoolStrategy(
            min_size=pool.num_workers[0],
            max_size=pool.num_workers[1],
            max_tasks_in_flight_per_actor=pool.chunks_in_flight,
            max_concurrent_calls_per_actor=pool.chunks_in_flight,
            enable_true_multi_threading=True,
        ),
        num_cpus=0,
    )
    for row in dataset.iter_rows():
        if row["error"]:
            error: CharacterTrainError = pickle.loads(row["error"])
            raise error
        yield row


class _ChunkWorker:
    """The Ray Data actor: reads a chunk, works on it, writes it, and reports counts."""

    def __init__(self, job: ChunkJob) -> None:
        self._job = job
        self._error = b""
        try:
            self._sampler = job.sampler.open()
            self._processor = job.make_processor(self._sampler)
        except CharacterTrainError as error:
            self._error = _pickled(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._report(_Chunk(**item)) for item in batch.to_pylist()])

    def _report(self, chunk: _Chunk) -> dict[str, Any]:
        """Counts, or an error of ours as a value: raised here, Ray would bury it in a traceback."""
        nothing = {"num_source_rows": 0, "num_rows": 0, "num_rejects": 0}
        if self._error:
            return nothing | {"error": self._error}
        try:
            return self._work(chunk) | {"error": b""}
        except CharacterTrainError as error:
            return nothing | {"error": _pickled(error)}

    def _work(self, chunk: _Chunk) -> dict[str, Any]:
        job = self._job
        table = job.source.directory.read_table(chunk.file).slice(
            chunk.start, chunk.stop - chunk.start
        )
        rows, rejects = self._processor.process(from_table(table, job.source.row_type))
        # Rejects first: the chunk counts as done as soon as its rows are there.
        name = chunk_name(f"rejects/{job.table}", chunk.index)
        if rejects:
            job.target.write_table(name, to_table(rejects, Reject))
        else:
            # Of an attempt that was killed between the two files.
            job.target.delete(name)
        job.target.write_table(chunk_name(job.table, chunk.index), to_table(rows, job.result_type))
        return {
            "num_source_rows": chunk.stop - chunk.start,
            "num_rows": len(rows),
            "num_rejects": len(rejects),
        }

    def __del__(self) -> None:
        if hasattr(self, "_sampler"):
            close_sampler(self._sampler)


def _pickled(error: CharacterTrainError) -> bytes:
    # What an engine raised arrives as a class of Ray's own, whose message is a traceback.
    return pickle.dumps(error.cause if isinstance(error, RayTaskError) else error)


def _check_rejects(job: ChunkJob, num_rows: int, num_rejects: int) -> None:
    total = num_rows + num_rejects
    if num_rejects > job.max_reject_share * total:
        raise SamplingError(
            f"{job.name}: {num_rejects} of {total} rows were rejected, more than the allowed "
            f"share of {job.max_reject_share:.2f}. The reasons are in "
            f"{job.target.uri}/rejects/{job.table}. What is done is kept."
        )


def _collect(job: ChunkJob, chunks: Sequence[_Chunk]) -> tuple[list[str], int, int]:
    """Names of the job's files, and its rows and rejects, over all attempts."""
    existing = set(job.target.files())
    names = []
    counts = {job.table: 0, f"rejects/{job.table}": 0}
    for chunk in chunks:
        for table in counts:
            name = chunk_name(table, chunk.index)
            if name in existing:
                names.append(name)
                counts[table] += job.target.read_table(name, columns=[]).num_rows
            elif table == job.table:
                raise SamplingError(f"{job.name}: chunk {chunk.index} was not written")
    num_rows, num_rejects = counts.values()
    _check_rejects(job, num_rows, num_rejects)
    return names, num_rows, num_rejects


def count_reasons(target: Directory, names: Sequence[str]) -> dict[str, int]:
    """Rejects by reason over the given reject files."""
    counts: dict[str, int] = {}
    for name in names:
        if name.startswith("rejects/"):
            for reason in target.read_table(name, columns=["reason"])["reason"].to_pylist():
                counts[reason] = counts.get(reason, 0) + 1
    return counts
