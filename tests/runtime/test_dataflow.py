"""Chunks of rows through Ray Data with the fake sampler: done once, resumed, refused."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
from rich.console import Console

from charactertrain.artifacts import FileEntry
from charactertrain.exceptions import (
    ArtifactError,
    CharacterTrainError,
    ChoiceError,
    ModelError,
    SamplingError,
)
from charactertrain.records import Prompt, Reject, Reply, from_table, to_table
from charactertrain.runtime.chunks import FileSource
from charactertrain.runtime.dataflow import (
    ChunkJob,
    PoolSettings,
    Produced,
    count_reasons,
    run_chunks,
)
from charactertrain.runtime.fake_sampler import FakeSource
from charactertrain.runtime.progress import Progress
from charactertrain.runtime.sampling import Sample, Sampler, SampleRequest, SamplingSettings
from charactertrain.storage import Directory, open_directory
from charactertrain.templates import plain_conversation

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

NUM_PROMPTS = 10
POOL = PoolSettings(num_workers=(1, 2), rows_per_chunk=3, max_num_seqs=3)
PROGRESS = Progress(Console(file=io.StringIO()), lambda *_: None)


def run(job: ChunkJob, pool: PoolSettings = POOL) -> Produced:
    """Run the job without a session."""
    return run_chunks(job, pool, PROGRESS, lambda *_: None)


class Writer:
    """One reply per prompt; rejects the prompts whose number is a multiple of `reject_every`."""

    def __init__(self, sampler: Sampler, *, reject_every: int) -> None:
        self._sampler, self._reject_every = sampler, reject_every

    def process(self, rows: list[Prompt]) -> tuple[list[Reply], list[Reject]]:
        """Replies and rejects."""
        settings = SamplingSettings(1.0, 1.0, 8, 1, ())
        requests = [
            SampleRequest(row.prompt_id, plain_conversation(row.text), seed=int(row.prompt_id[1:]))
            for row in rows
        ]
        replies, rejects = [], []
        for row, sample in zip(rows, self._sampler.sample(requests, settings), strict=True):
            assert isinstance(sample, Sample)
            if self._reject_every and int(row.prompt_id[1:]) % self._reject_every == 0:
                rejects.append(Reject(row.prompt_id, row.trait_id, "replies", "unlucky", ""))
                continue
            replies.append(
                Reply(
                    sample_id=row.prompt_id,
                    prompt_id=row.prompt_id,
                    trait_id=row.trait_id,
                    kind=row.kind,
                    arm="base",
                    prompt=row.text,
                    text=sample.text,
                    token_ids=sample.token_ids,
                    sequence_logprob=sample.sequence_logprob,
                    finish_reason=sample.finish_reason,
                )
            )
        return replies, rejects


MakeJob = Callable[..., ChunkJob]


@pytest.fixture(name="make_job")
def job_maker(tmp_path: Path) -> MakeJob:
    """Makes a job over ten prompts in two files, of seven and of three."""
    directory = open_directory(str(tmp_path / "run"))

    def make(
        *, num_prompts: int = NUM_PROMPTS, reject_every: int = 0, share: float = 1.0
    ) -> ChunkJob:
        prompts = [
            Prompt(f"p{i}", "warm", "warm/tea", "trait", f"Message {i}.", "train")
            for i in range(num_prompts)
        ]
        entries = []
        for index, rows in enumerate((prompts[:7], prompts[7:])):
            name = f"prompts/part-{index:06d}.parquet"
            directory.write_table(name, to_table(rows, Prompt))
            entries.append(FileEntry(name, 0, "", len(rows)))
        return ChunkJob(
            name="replies",
            source=FileSource(directory, tuple(entries), Prompt, whole_files=False),
            target=directory,
            table="replies",
            result_type=Reply,
            make_processor=partial(Writer, reject_every=reject_every),
            sampler=FakeSource(),
            max_reject_share=share,
            requests_per_row=1,
        )

    return make


def replies(target: Directory, names: Sequence[str]) -> list[Reply]:
    return [
        row
        for name in names
        if name.startswith("replies/")
        for row in from_table(target.read_table(name), Reply)
    ]


def changed(target: Directory) -> dict[str, int]:
    """When each file of the result was written, in nanoseconds."""
    paths = target.local_path.glob("replies/*.parquet")
    return {path.name: path.stat().st_mtime_ns for path in paths}


def test_run_chunks_works_on_every_row_once_in_files_named_by_chunk(make_job: MakeJob) -> None:
    job = make_job()
    produced = run(job)
    names = list(produced.files)
    # Seven rows make chunks of 3, 3 and 1, and three rows make one: a chunk is of one file.
    assert names == [f"replies/part-{index:06d}.parquet" for index in range(4)]
    assert (produced.num_rows, produced.rejects) == (10, {})
    tables = [[row.prompt_id for row in replies(job.target, [name])] for name in names]
    assert tables == [["p0", "p1", "p2"], ["p3", "p4", "p5"], ["p6"], ["p7", "p8", "p9"]]


def test_run_chunks_takes_whole_files_where_rows_belong_together(make_job: MakeJob) -> None:
    job = make_job()
    job = replace(job, source=replace(job.source, whole_files=True))
    names = run(job).files
    assert [len(replies(job.target, [name])) for name in names] == [7, 3]


def test_run_chunks_resumed_makes_only_what_is_missing_and_the_same(make_job: MakeJob) -> None:
    job = make_job()
    names = run(job).files
    before, times = replies(job.target, names), changed(job.target)
    for name in ("replies/part-000001.parquet", "replies/part-000003.parquet"):
        job.target.delete(name)
    produced = run(job)
    assert produced.files == names
    assert produced.num_rows == 10
    assert replies(job.target, produced.files) == before
    after = changed(job.target)
    rewritten = {name for name in times if times[name] != after[name]}
    assert rewritten == {"part-000001.parquet", "part-000003.parquet"}


def test_run_chunks_that_are_all_done_start_nothing(make_job: MakeJob) -> None:
    job = make_job()
    run(job)
    times = changed(job.target)
    run(job)
    assert changed(job.target) == times


def test_run_chunks_resumed_with_another_chunk_size_keeps_the_first(make_job: MakeJob) -> None:
    job = make_job()
    names = run(job).files
    expected = replies(job.target, names)
    job.target.delete("replies/part-000001.parquet")
    other = replace(POOL, rows_per_chunk=2)
    produced = run(job, other)
    assert produced.files == names
    assert produced.num_rows == 10
    assert replies(job.target, produced.files) == expected


def test_run_chunks_counts_rejects_and_names_their_files(make_job: MakeJob) -> None:
    job = make_job(reject_every=4, share=0.3)
    produced = run(job)
    assert (produced.num_rows, produced.rejects) == (7, {"unlucky": 3})
    # p0, p4 and p8 are in the chunks 0, 1 and 3.
    assert list(produced.reject_files) == [
        f"rejects/replies/part-{index:06d}.parquet" for index in (0, 1, 3)
    ]
    assert count_reasons(job.target, produced.reject_files) == {"unlucky": 3}
    assert "p4" not in {row.prompt_id for row in replies(job.target, produced.files)}


def test_run_chunks_keeps_no_rejects_of_an_attempt_that_was_killed(make_job: MakeJob) -> None:
    job = make_job(reject_every=4)
    # Killed between its rejects and its rows, on hardware where other rows were rejected.
    left = to_table(
        [Reject("p0", "warm", "replies", "unlucky", ""), Reject("p1", "warm", "", "", "")], Reject
    )
    for index in (0, 2):
        job.target.write_table(f"rejects/replies/part-{index:06d}.parquet", left)
    produced = run(job)
    assert (produced.num_rows, produced.rejects) == (7, {"unlucky": 3})
    assert list(produced.reject_files) == [
        f"rejects/replies/part-{index:06d}.parquet" for index in (0, 1, 3)
    ]
    assert count_reasons(job.target, produced.reject_files) == {"unlucky": 3}


def test_run_chunks_judges_a_resumed_run_by_all_of_its_rows(make_job: MakeJob) -> None:
    # A quarter of all, and of the one row that is left to do.
    job = make_job(reject_every=4, share=0.25)
    with pytest.raises(SamplingError, match="3 of 10 rows of trait 'warm'"):
        run(job)
    job.target.delete("replies/part-000002.parquet")
    with pytest.raises(SamplingError, match="3 of 10 rows of trait 'warm'"):
        run(job)
    produced = run(replace(job, max_reject_share=0.3))
    assert (produced.num_rows, produced.rejects) == (7, {"unlucky": 3})


@pytest.mark.parametrize(
    ("requests_per_chunk", "expected"),
    [(8, 4), (16, 2), (1000, 2), (5, 7), (0.1, 32), (0, 32)],
)
def test_chunks_in_flight_are_twice_what_an_engine_runs(
    requests_per_chunk: float, expected: int
) -> None:
    assert replace(POOL, max_num_seqs=16).chunks_in_flight(requests_per_chunk) == expected


def test_chunks_in_flight_have_a_limit() -> None:
    assert replace(POOL, max_num_seqs=4096).chunks_in_flight(8) == 64


class Refuser:
    """Stops with an error of ours, at once or at the first chunk, by itself or in an actor."""

    def __init__(self, sampler: Sampler, *, where: str) -> None:
        self._where = where
        if where == "start":
            raise ModelError("model.path: expected a tokenizer, found none")

    def process(self, rows: list[Prompt]) -> tuple[list[Reply], list[Reject]]:
        """Nothing."""
        if self._where == "actor":
            ray.get(refuse.remote(len(rows)))
        raise ArtifactError(f"expected 3 rows, found {len(rows)}; run it again")


@ray.remote(num_cpus=0)
def refuse(num_rows: int) -> None:
    """As an engine does."""
    raise ChoiceError(f"expected letters for {num_rows} rows; use ranker=contrast")


@pytest.mark.parametrize(
    ("where", "expected", "message"),
    [
        ("start", ModelError, "model.path: expected a tokenizer, found none"),
        ("chunk", ArtifactError, "expected 3 rows, found 3; run it again"),
        ("actor", ChoiceError, "expected letters for 3 rows; use ranker=contrast"),
    ],
)
def test_run_chunks_raises_an_error_of_ours_as_it_is(
    make_job: MakeJob, where: str, expected: type[Exception], message: str
) -> None:
    job = replace(make_job(num_prompts=3), make_processor=partial(Refuser, where=where))
    with pytest.raises(CharacterTrainError) as caught:
        run(job)
    assert type(caught.value) is expected
    assert str(caught.value) == message


def test_run_chunks_with_one_reject_too_many_stops_at_the_end(make_job: MakeJob) -> None:
    with pytest.raises(
        SamplingError,
        match=r"replies: 3 of 10 rows of trait 'warm' were rejected \(unlucky 3\).*0\.29",
    ):
        run(make_job(reject_every=4, share=0.29))


def test_run_chunks_with_too_many_rejects_stops_early_and_keeps_what_is_done(
    make_job: MakeJob,
) -> None:
    one_at_a_time = PoolSettings(num_workers=(1, 1), rows_per_chunk=8, max_num_seqs=1)
    job = make_job(num_prompts=400, reject_every=2, share=0.4)
    with pytest.raises(SamplingError, match=r"rejects/replies\. What is done is kept"):
        run(job, one_at_a_time)
    kept = changed(job.target)
    assert 8 <= len(kept) < 51
    # Somebody finds so many acceptable after all; of odd chunks there is a little more than half.
    produced = run(replace(job, max_reject_share=0.55), one_at_a_time)
    assert (produced.num_rows, produced.rejects) == (200, {"unlucky": 200})
    assert len({row.prompt_id for row in replies(job.target, produced.files)}) == 200
    after = changed(job.target)
    assert all(after[name] == time for name, time in kept.items())
