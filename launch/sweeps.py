"""The points of a sweep as jobs: some at a time, each until it is finished or cannot be."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from charactertrain.artifacts import Json
from charactertrain.exceptions import ConfigError
from launch import runs
from launch.clusters import ClusterError, DuplicateError, Job, Log, UnreachableError
from launch.following import Contact
from launch.runs import Run
from launch.submission import STILL_BEING_DELETED, Submitter, next_attempt, settled_jobs

_LOOK_SECONDS = 30.0
_MAX_LINE = 100
"""Characters of a job's last line."""


@dataclass(frozen=True)
class SweepSettings:
    """How the points are run."""

    max_concurrent: int
    """Jobs at a time."""
    max_retries: int
    """Times that a point whose job broke is submitted again; a refusal never is."""
    poll_seconds: float

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that run nothing, or without end."""
        if self.max_concurrent < 1 or self.max_retries < 0 or self.poll_seconds <= 0:
            raise ConfigError(
                "hydra.launcher: expected max_concurrent of at least 1, max_retries of at least 0 "
                f"and poll_seconds above 0, found {self.max_concurrent}, {self.max_retries} and "
                f"{self.poll_seconds}"
            )


@dataclass(eq=False)
class Point:
    """One point of a sweep and what became of it."""

    number: int
    settings: str
    """Its own overrides, for people."""
    run: Run
    state: str = "waiting"
    """waiting, pending, running, finished, failed or stopped."""
    submission_id: str | None = None
    job: Job | None = None
    is_being_sent: bool = False
    """Whether that job may be on the cluster: it was sent, and no answer has come yet."""
    num_retries: int = 0
    attempts: list[Job] = field(default_factory=list)
    """Jobs of this run that the cluster remembered when the sweep began."""
    log: Log | None = None
    """Of its job, from where it was last read."""
    notices: set[str] = field(default_factory=set)
    """What was said of what stands in its way."""
    reason: str = ""
    """Why it failed or was stopped."""
    objective: float | None = None
    effects: list[Json] = field(default_factory=list)
    """What each trait changed, where its report can be read from here."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be done for it."""
        return self.state in ("finished", "failed", "stopped")

    @property
    def is_submitted(self) -> bool:
        """Whether a job of it is on the cluster and not over."""
        return self.state in ("pending", "running")


class Sweep:
    """Runs the points; finished ones, also those of an earlier invocation, are not run again."""

    def __init__(
        self,
        submitter: Submitter,
        points: Sequence[Point],
        *,
        settings: SweepSettings,
        say: Callable[[Point, str], None],
    ) -> None:
        """`say` shows a line about a point."""
        self._submitter = submitter
        self._cluster = submitter.cluster
        self._points = points
        self._settings = settings
        self._say = say
        self._contact = Contact(lambda line: say(points[0], line))
        self._seconds_since_look = 0.0

    async def run(self) -> None:
        """Return when every point is over.

        Raises:
            ClusterError: The cluster is gone, or takes no jobs.
        """
        await self._find()
        while not all(point.is_over for point in self._points):
            try:
                await self._submit_waiting()
                await asyncio.sleep(self._settings.poll_seconds)
                await self._update()
                self._contact.found()
            except UnreachableError as error:
                await self._contact.lost(error)

    async def cancel(self) -> None:
        """Ask the cluster to stop the jobs of all points; one that it cannot stop is named."""
        for point in self._points:
            # One that waits for its retry has the job that failed, and the only log of why.
            if point.submission_id is None or not (point.is_submitted or point.is_being_sent):
                continue
            try:
                await self._cluster.stop(point.submission_id)
            except ClusterError as error:
                self._say(point, f"{point.submission_id} could not be stopped: {error}")
            else:
                self._end(point, "stopped", "on request")

    async def _find(self) -> None:
        """Take up what an earlier invocation left: finished points, and jobs that go on."""
        jobs = await settled_jobs(
            self._cluster,
            [point.run for point in self._points],
            lambda line: self._say(self._points[0], line),
        )
        for point in self._points:
            point.attempts = point.run.attempts(jobs)
            last = point.attempts[-1] if point.attempts else None
            if point.run.finished_manifest() is not None:
                await self._finish(point, "is finished already")
            elif last is None or last.status in ("FAILED", "STOPPED"):
                continue
            elif last.is_being_deleted:
                # Another job beside it would write into the same directory.
                self._end(point, "failed", f"{last.submission_id} {STILL_BEING_DELETED}")
            elif last.status == "SUCCEEDED":
                point.submission_id, point.job = last.submission_id, last
                await self._finish(point, "was finished by an earlier job")
            else:
                point.submission_id = last.submission_id
                point.log = self._cluster.log(last.submission_id)
                self._enter(point, last.status.lower(), "is on the cluster already: following it")

    async def _submit_waiting(self) -> None:
        free = self._settings.max_concurrent - sum(point.is_submitted for point in self._points)
        waiting = [point for point in self._points if point.state == "waiting"]
        for point in waiting[: max(0, free)]:
            attempt = next_attempt(point.attempts) + point.num_retries
            # Before it is sent: an interrupt in between is to find it.
            point.submission_id = self._submitter.submission_id(point.run, attempt)
            point.is_being_sent = True
            point.log = self._cluster.log(point.submission_id)
            # A duplicate was sent before, when the answer was lost, or by another sweep.
            with suppress(DuplicateError):
                await self._submitter.submit(point.run, attempt)
            point.is_being_sent = False
            self._enter(point, "pending", f"submitted as {point.submission_id}")

    async def _update(self) -> None:
        jobs = {job.submission_id: job for job in await self._cluster.jobs()}
        self._seconds_since_look += self._settings.poll_seconds
        looks_closely = self._seconds_since_look >= _LOOK_SECONDS
        for point in self._points:
            if not point.is_submitted or point.submission_id is None:
                continue
            job = jobs.get(point.submission_id)
            if job is None:
                self._retry(point, "the cluster does not remember its job")
                continue
            point.job = job
            await self._take_in(point, job)
            if looks_closely and point.is_submitted:
                await self._show_progress(point)
        if looks_closely:
            self._seconds_since_look = 0.0

    async def _take_in(self, point: Point, job: Job) -> None:
        if job.status == "SUCCEEDED":
            await self._finish(point, "")
        elif job.status == "STOPPED":
            self._end(point, "stopped", job.message)
        elif job.status == "FAILED":
            reason = f"exit status {job.exit_status}: {job.message}"
            if job.is_retryable:
                self._retry(point, reason)
            else:
                self._end(point, "failed", reason)
        elif (job.status.lower(), job.message) != (point.state, point.reason):
            point.reason = job.message
            self._enter(point, job.status.lower(), job.message)

    async def _show_progress(self, point: Point) -> None:
        assert point.submission_id is not None
        job = await self._cluster.job(point.submission_id)
        for notice in job.notices:
            if notice not in point.notices:
                point.notices.add(notice)
                self._say(point, notice)
        if point.state == "running" and point.log is not None:
            lines = (await point.log.rest()).split("\n")
            last = next((text.strip() for text in reversed(lines) if text.strip()), "")
            if last:
                self._say(point, last[:_MAX_LINE])

    async def _finish(self, point: Point, why: str) -> None:
        logs = ""
        if point.submission_id is not None and point.run.finished_manifest() is None:
            logs = await self._cluster.log(point.submission_id).rest()
        point.objective = runs.objective(point.run, logs)
        point.effects = runs.effects(point.run)
        shown = "" if point.objective is None else f"objective {point.objective:.4f}"
        point.reason = ""
        self._enter(point, "finished", ", ".join(text for text in (why, shown) if text))

    def _retry(self, point: Point, reason: str) -> None:
        if point.num_retries >= self._settings.max_retries:
            self._end(point, "failed", f"{reason} (after {point.num_retries} retries)")
            return
        point.num_retries += 1
        self._enter(point, "waiting", f"{reason}; goes on in another job")

    def _end(self, point: Point, state: str, reason: str) -> None:
        point.reason = reason
        self._enter(point, state, reason)

    def _enter(self, point: Point, state: str, line: str) -> None:
        point.state = state
        self._say(point, f"{state}: {line}" if line else state)
