"""Staying with a job until it is over: why it waits, what it prints, how it ended."""

import asyncio
import time
from collections.abc import Callable

from launch.clusters import Cluster, Job, UnreachableError

_POLL_SECONDS = 2.0
_MAX_BACKOFF_SECONDS = 30.0
PATIENCE_SECONDS = 600.0
"""For a head that does not answer: as long as one takes to start anew."""


class Contact:
    """How long the cluster has not answered, and when to give up."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` shows a line about it."""
        self._say = say
        self._lost_since: float | None = None
        self._backoff_seconds = _POLL_SECONDS

    def found(self) -> None:
        """The cluster answered."""
        if self._lost_since is not None:
            self._say("the cluster answers again")
        self._lost_since, self._backoff_seconds = None, _POLL_SECONDS

    async def lost(self, error: UnreachableError) -> None:
        """Wait before the next try; raises `error` when it has not answered for too long."""
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
            self._say(f"{error} Trying again.")
        if now - self._lost_since >= PATIENCE_SECONDS:
            raise error
        await asyncio.sleep(self._backoff_seconds)
        self._backoff_seconds = min(2 * self._backoff_seconds, _MAX_BACKOFF_SECONDS)


class Follower:
    """Follows one job; what it has shown it does not show again."""

    def __init__(
        self,
        cluster: Cluster,
        submission_id: str,
        *,
        write: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """`write` takes pieces of the log as they are, `say` lines about the job."""
        self._cluster = cluster
        self._submission_id = submission_id
        self._log = cluster.log(submission_id)
        self._write = write
        self._say = say
        self._contact = Contact(say)
        self._reason = ""
        self._notices: set[str] = set()

    async def follow(self) -> Job:
        """The job, when it is over."""
        while True:
            try:
                job = await self._cluster.job(self._submission_id)
                self._show_notices(job)
                if job.is_over:
                    self._write(await self._log.rest())
                    return job
                if job.status == "PENDING":
                    self._contact.found()
                    self._show_reason(job)
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    await self._read()
                    # Not before: jobs may answer where a proxy lets no socket through.
                    self._contact.found()
            except UnreachableError as error:
                await self._contact.lost(error)

    def _show_reason(self, job: Job) -> None:
        if job.message != self._reason:
            self._say(f"pending: {job.message}")
            self._reason = job.message

    def _show_notices(self, job: Job) -> None:
        for notice in job.notices:
            if notice not in self._notices:
                self._notices.add(notice)
                self._say(notice)

    async def _read(self) -> None:
        async for text in self._log.read():
            self._write(text)
        # The log ends a moment before the job is said to be over.
        await asyncio.sleep(_POLL_SECONDS / 4)
