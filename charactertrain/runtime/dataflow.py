"""Data stages on Ray Data: rows in, rows out, in chunks that are written and resumed as one.

A chunk is a fixed slice of the source's rows, and its result goes to a file named after it, which
appears only when it is whole. So a chunk that is done is known by its file, a retried chunk
overwrites nothing but itself, and no row is lost or doubled however often a run is killed.
"""

import math
import pickle
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, Dataset
from ray.exceptions import RayTaskError

from charactertrain.exceptions import CharacterTrainError, SamplingError
from charactertrain.records import Reject, to_table
from charactertrain.runtime.chunks import Chunk, Source
from charactertrain.runtime.progress import Progress
from charactertrain.runtime.sampling import Sampler, SamplerSource
from charactertrain.storage import Directory

_MAX_BLOCKS = 10_000
"""Of chunks, to be worked on in one task each: Ray Data keeps some kilobytes on each."""
_MIN_ROWS_TO_JUDGE = 64


class Processor(Protocol):
    """What a stage does with the rows of a chunk."""

    def process(self, rows: list[Any]) -> tuple[list[Any], list[Reject]]:
        """Result rows and rejects for the given rows. A result row has a `trait_id`."""


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
    """Of any one trait's results; above it the job stops."""
    requests_per_row: float
    """Requests to the sampler that a row of the source brings about, roughly."""


@dataclass(frozen=True)
class PoolSettings:
    """The pool of workers, one engine's worth of work each."""

    num_workers: tuple[int, int]
    rows_per_chunk: int
    max_num_seqs: int
    """Requests that an engine runs at a time."""

    def chunks_in_flight(self, requests_per_chunk: float) -> int:
        """Chunks that a worker has under way, so that no chunk's tail leaves its engine idle.

        Twice what the engine runs at a time: while one half is at its tail, the other is waiting.
        """
        wanted = math.ceil(2 * self.max_num_seqs / max(1.0, requests_per_chunk))
        return min(_MAX_IN_FLIGHT, max(2, wanted))


_MAX_IN_FLIGHT = 64
"""Threads of a worker."""


@dataclass(frozen=True)
class Produced:
    """What a job left behind, over all its attempts."""

    files: tuple[str, ...]
    """Of the result, in the source's order."""
    reject_files: tuple[str, ...]
    num_rows: int
    rejects: dict[str, int]
    """By reason."""
    engines: dict[str, float | int]
    """What engines did for it in this attempt: tokens a second, share of cached tokens."""


def chunk_name(table: str, index: int) -> str:
    """The file that a chunk's rows go to."""
    return f"{table}/part-{index:06d}.parquet"


def run_chunks(
    job: ChunkJob, pool: PoolSettings, progress: Progress, tick: Callable[[int, int], None]
) -> Produced:
    """Work on every chunk that is not done yet.

    Args:
        job: What to do.
        pool: The workers.
        progress: Where to show it.
        tick: Called now and then while the job runs, with its results and rejects so far.

    Raises:
        SamplingError: More than `max_reject_share` of a trait's results were rejected.
    """
    chunks = list(job.source.chunks(_rows_per_chunk(job, pool)))
    existing = set(job.target.files(job.table))
    pending = [c for c in chunks if chunk_name(job.table, c.index) not in existing]
    total = sum(chunk.num_rows for chunk in chunks)
    done = total - sum(chunk.num_rows for chunk in pending)
    tally = _Tally(job)
    tally.add_files(chunks, existing)
    with progress.task(job.name, total=total, done=done) as advance:
        for result in _results(job, pending, pool):
            tally.add(pickle.loads(result["rows"]), pickle.loads(result["rejects"]))
            advance(result["num_source_rows"])
            tally.check(min_rows=_MIN_ROWS_TO_JUDGE)
            tick(tally.num_rows, tally.num_rejects)
    tally.check(min_rows=1)
    return _produced(job, chunks, tally)


class _Tally:
    """Results and rejects by trait, and the gate on them."""

    def __init__(self, job: ChunkJob) -> None:
        self._job = job
        self._rows: Counter[str] = Counter()
        self._rejects: Counter[str] = Counter()
        self._reasons: Counter[tuple[str, str]] = Counter()

    def add(self, rows: Counter[str], rejects: Counter[tuple[str, str]]) -> None:
        """Count a chunk: rows by trait, rejects by trait and reason."""
        self._rows.update(rows)
        self._reasons.update(rejects)
        for (trait_id, _), count in rejects.items():
            self._rejects[trait_id] += count

    def add_files(self, chunks: Sequence[Chunk], existing: Collection[str]) -> None:
        """Count what earlier attempts wrote."""
        job = self._job
        done = [n for n in (chunk_name(job.table, c.index) for c in chunks) if n in existing]
        for table in job.target.read_tables(done, ["trait_id"]):
            self.add(Counter(table["trait_id"].to_pylist()), Counter())
        rejects = set(job.target.files(f"rejects/{job.table}"))
        found = [f"rejects/{name}" for name in done if f"rejects/{name}" in rejects]
        for table in job.target.read_tables(found, ["trait_id", "reason"]):
            columns = (table[name].to_pylist() for name in table.column_names)
            self.add(Counter(), Counter(zip(*columns, strict=True)))

    @property
    def num_rows(self) -> int:
        """Results of all traits."""
        return self._rows.total()

    @property
    def num_rejects(self) -> int:
        """Of all traits."""
        return self._rejects.total()

    @property
    def rejects(self) -> dict[str, int]:
        """Of all traits, by reason."""
        by_reason: Counter[str] = Counter()
        for (_, reason), count in self._reasons.items():
            by_reason[reason] += count
        return dict(by_reason)

    def check(self, *, min_rows: int) -> None:
        """Raise SamplingError if a trait with `min_rows` results or more has too many rejects."""
        for trait_id, num_rejects in self._rejects.items():
            total = self._rows[trait_id] + num_rejects
            if total >= min_rows and num_rejects > self._job.max_reject_share * total:
                reasons = Counter(
                    {reason: n for (trait, reason), n in self._reasons.items() if trait == trait_id}
                )
                listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common(4))
                raise SamplingError(
                    f"{self._job.name}: {num_rejects} of {total} rows of trait {trait_id!r} were "
                    f"rejected ({listed}), more than the allowed share of "
                    f"{self._job.max_reject_share:.2f}. Their texts are in "
                    f"{self._job.target.uri}/rejects/{self._job.table}. What is done is kept; mend "
                    "the trait, the template or the limit, and run again."
                )


def _rows_per_chunk(job: ChunkJob, pool: PoolSettings) -> int:
    """The chunk size of the job's first attempt: an index means other rows at another size."""
    name = f"{job.table}/rows_per_chunk.txt"
    if not job.target.exists(name):
        job.target.write_bytes(name, str(pool.rows_per_chunk).encode())
    return int(job.target.read_bytes(name))


def _results(
    job: ChunkJob, pending: Sequence[Chunk], pool: PoolSettings
) -> Iterator[dict[str, Any]]:
    if not pending:
        return
    items = [asdict(chunk) for chunk in pending]
    # By the rows that are there: a chunk that is a whole file has as many as it has.
    mean_rows = sum(chunk.num_rows for chunk in pending) / len(pending)
    in_flight = pool.chunks_in_flight(job.requests_per_row * mean_rows)
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
            max_tasks_in_flight_per_actor=in_flight,
            max_concurrent_calls_per_actor=in_flight,
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
    """The Ray Data actor: reads a chunk, works on it, writes it, and reports counts.

    It never gives its lease back, the session ends all of them after the job: Ray ends a worker in
    the middle of whatever it calls, and Ray 2.60 ends the called actor with it, if that is async.
    """

    def __init__(self, job: ChunkJob) -> None:
        self._job = job
        self._error = b""
        try:
            self._sampler = job.sampler.open()
            self._processor = job.make_processor(self._sampler)
        except CharacterTrainError as error:
            self._error = _pickled(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._report(Chunk(**item)) for item in batch.to_pylist()])

    def _report(self, chunk: Chunk) -> dict[str, Any]:
        """Counts, or an error of ours as a value: raised here, Ray would bury it in a traceback."""
        nothing = {"num_source_rows": 0, "rows": b"", "rejects": b""}
        if self._error:
            return nothing | {"error": self._error}
        try:
            return self._work(chunk) | {"error": b""}
        except CharacterTrainError as error:
            return nothing | {"error": _pickled(error)}

    def _work(self, chunk: Chunk) -> dict[str, Any]:
        job = self._job
        rows, rejects = self._processor.process(job.source.read(chunk))
        # Rejects first: the chunk counts as done as soon as its rows are there.
        name = f"rejects/{chunk_name(job.table, chunk.index)}"
        if rejects:
            job.target.write_table(name, to_table(rejects, Reject))
        else:
            # Of an attempt that was killed between the two files.
            job.target.delete(name)
        job.target.write_table(chunk_name(job.table, chunk.index), to_table(rows, job.result_type))
        return {
            "num_source_rows": chunk.num_rows,
            "rows": pickle.dumps(Counter(row.trait_id for row in rows)),
            "rejects": pickle.dumps(Counter((row.trait_id, row.reason) for row in rejects)),
        }


def _pickled(error: CharacterTrainError) -> bytes:
    # What an engine raised arrives as a class of Ray's own, whose message is a traceback.
    return pickle.dumps(error.cause if isinstance(error, RayTaskError) else error)


def _produced(job: ChunkJob, chunks: Sequence[Chunk], tally: _Tally) -> Produced:
    existing = set(job.target.files(job.table)) | set(job.target.files(f"rejects/{job.table}"))
    files = [chunk_name(job.table, chunk.index) for chunk in chunks]
    missing = [name for name in files if name not in existing]
    if missing:
        raise SamplingError(f"{job.name}: {len(missing)} chunks were not written: {missing[:3]}")
    reject_files = [f"rejects/{name}" for name in files if f"rejects/{name}" in existing]
    return Produced(tuple(files), tuple(reject_files), tally.num_rows, tally.rejects, {})


def count_reasons(target: Directory, names: Sequence[str]) -> dict[str, int]:
    """Rejects by reason over the reject files among the given ones."""
    rejects = [name for name in names if name.startswith("rejects/")]
    counts: Counter[str] = Counter()
    for table in target.read_tables(rejects, ["reason"]):
        counts.update(table["reason"].to_pylist())
    return dict(counts)
