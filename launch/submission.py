"""Handing a run to a cluster, unless it is there already."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from charactertrain.exceptions import ConfigError
from launch.clusters import Cluster, ClusterError, DuplicateError, Job, Reach
from launch.runs import Run, attempt_number

_POLL_SECONDS = 2.0
_DELETION_SECONDS = 300.0
"""For KubeRay to ask a driver to stop, and for its pods to end."""


STILL_BEING_DELETED = (
    f"is still being deleted after {_DELETION_SECONDS:.0f} s; kubectl describe says what keeps it"
)


class Submitter(Protocol):
    """Submits runs to one cluster."""

    @property
    def cluster(self) -> Cluster:
        """Where the jobs are."""
        ...

    def submission_id(self, run: Run, attempt: int) -> str:
        """The submission id of an attempt, 1 being the first: a cluster takes each id once."""
        ...

    async def submit(self, run: Run, attempt: int) -> None:
        """Submit an attempt; raises DuplicateError where it is there already."""
        ...


class Target(Protocol):
    """Where runs are to be jobs, and how they are started there."""

    @property
    def reach(self) -> Reach:
        """The cluster, for those who only look."""
        ...

    def overrides(self, given: Sequence[str]) -> list[str]:
        """What a job's command is given where these are asked for."""
        ...

    def prepare(self) -> None:
        """Find what is missing here before anything is sent; raises ConfigError."""
        ...

    def plan(self, run: Run) -> list[str]:
        """What would be sent for a run, in lines."""
        ...

    def connect(self) -> AbstractAsyncContextManager[Submitter]:
        """The cluster, to submit to."""
        ...


async def submit_run(
    submitter: Submitter, run: Run, *, again: bool, say: Callable[[str], None]
) -> tuple[str, int | None]:
    """The id of the job to follow; or also an exit status, where there is nothing to follow."""
    attempts = run.attempts(await settled_jobs(submitter.cluster, [run], say))
    last = attempts[-1] if attempts else None
    if last is not None and last.is_being_deleted:
        raise ClusterError(
            f"{last.submission_id} {STILL_BEING_DELETED}. An attempt beside it would write into "
            "its directory."
        )
    if last is not None and not last.is_over:
        say(f"{last.submission_id} is {last.status.lower()} already: following it")
        return last.submission_id, None
    if last is not None and last.status == "SUCCEEDED" and not again:
        say(f"{last.submission_id} is finished: nothing to do; --again to run it again")
        return last.submission_id, 0
    if last is not None:
        say(f"{last.submission_id} {last.ending}; this attempt goes on from there")
    attempt = next_attempt(attempts)
    submission_id = submitter.submission_id(run, attempt)
    try:
        await submitter.submit(run, attempt)
    except DuplicateError:
        # Someone else submitted the same run a moment ago.
        say(f"{submission_id} was submitted by another at the same time: following it")
    else:
        say(f"submitted {submission_id}: {run.entrypoint}")
    return submission_id, None


async def settled_jobs(
    cluster: Cluster, runs: Sequence[Run], say: Callable[[str], None]
) -> list[Job]:
    """All jobs, when no attempt at one of the runs is being deleted any more, or after a while."""
    end = time.monotonic() + _DELETION_SECONDS
    said = False
    while True:
        jobs = await cluster.jobs()
        deleted = [
            job.submission_id for run in runs for job in run.attempts(jobs) if job.is_being_deleted
        ]
        if not deleted or time.monotonic() >= end:
            return jobs
        if not said:
            say(f"waiting until what is being deleted is gone: {', '.join(deleted)}")
            said = True
        await asyncio.sleep(_POLL_SECONDS)


def next_attempt(attempts: Sequence[Job]) -> int:
    """The number of the attempt after these."""
    return max((attempt_number(job) for job in attempts), default=0) + 1


def passed_variables(names: Sequence[str]) -> dict[str, str]:
    """Variables of this process by name; raises ConfigError for what is not set."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(f"variables to be passed to the job are not set: {', '.join(missing)}")
    return {name: os.environ[name] for name in names}
