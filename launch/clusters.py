"""What a cluster is to those who submit to it: jobs, their logs, and what can go wrong."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from charactertrain.exceptions import CharacterTrainError

_FINAL_EXIT_STATUSES = (2, 130)
"""Refused or stopped with a message, interrupted: the same command would end likewise."""
_FINAL_ERRORS = (
    # Of the Jobs API.
    "RUNTIME_ENV_SETUP_FAILURE",
    "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    # Of KubeRay: deadlines are what the overlay asks for.
    "DeadlineExceeded",
    "PreRunningDeadlineExceeded",
    "ValidationFailed",
)
_MAX_SHOWN = 400
"""Characters of an answer in a message."""


class ClusterError(CharacterTrainError, RuntimeError):
    """A cluster refuses, or a job on it failed: the message says what helps."""


class UnreachableError(ClusterError):
    """The cluster does not answer: it may again in a while."""


class DuplicateError(ClusterError):
    """A job of this submission id is there already: follow that one."""


class ForbiddenError(ClusterError):
    """The cluster knows who asks, and does not allow it."""


@dataclass(frozen=True)
class Job:
    """What the cluster says of one submitted job."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    """Why it is in that state: one line."""
    error_type: str | None
    """Which part failed; None where none did."""
    exit_code: int | None
    """Of the driver; None while it runs, or where it never did."""
    metadata: Mapping[str, str]
    start_time: int | None
    """Unix time in milliseconds, as is the next."""
    end_time: int | None
    notices: tuple[str, ...] = ()
    """What stands in its way, by the cluster's reports: a line each."""
    is_being_deleted: bool = False
    """Whether it runs only until it is gone, and then is stopped."""

    @property
    def is_over(self) -> bool:
        """Whether its status will not change any more."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def exit_status(self) -> int:
        """What a shell would say of it: 0, 130 stopped, the driver's own, or 1."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 130
        code = self.exit_code or 1
        # A driver that a signal ended has its negative number.
        return 128 - code if code < 0 else code

    @property
    def ending(self) -> str:
        """How it stands, in words."""
        if self.status == "SUCCEEDED":
            return "finished"
        if self.status != "FAILED":
            return f"is {self.status.lower()}: {self.message}"
        kind = f" ({self.error_type})" if self.error_type else ""
        code = "" if self.exit_code is None else f" with exit status {self.exit_code}"
        return f"failed{code}{kind}: {self.message}"

    @property
    def is_retryable(self) -> bool:
        """Of one that failed: whether it may do better when it is submitted again.

        Nodes die and memory runs out; what the run itself refuses, it refuses again.
        """
        if self.error_type in _FINAL_ERRORS:
            return False
        return self.exit_code not in _FINAL_EXIT_STATUSES


class Log(Protocol):
    """What a job prints; each piece of it is given once."""

    def read(self) -> AsyncIterator[str]:
        """What is new, as it comes; ends with the job, or after a while."""
        ...

    async def rest(self) -> str:
        """What is new, of a job that is over."""
        ...


class Cluster(Protocol):
    """Where jobs are. Each call may raise ClusterError."""

    @property
    def address(self) -> str:
        """For messages."""
        ...

    async def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster remembers, the oldest first; without notices."""
        ...

    async def job(self, submission_id: str) -> Job:
        """One job; raises ClusterError where there is none of that id."""
        ...

    def log(self, submission_id: str) -> Log:
        """What the job's driver prints, from its first line on."""
        ...

    async def stop(self, submission_id: str) -> None:
        """Ask the cluster to stop a job."""
        ...

    def about_stopping(self, job: Job) -> str:
        """What will come of asking it to stop this one; empty where that goes without saying."""
        ...


def reason_of(message: str) -> str:
    """Of what Ray says of a job the first line; of one that failed, it goes on with the log."""
    lines = message.partition(", last available logs")[0].strip().splitlines()
    return shortened(lines[0]) if lines else ""


def shortened(text: str) -> str:
    """A text that fits a message."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


@dataclass(frozen=True)
class Reach:
    """How to get at a cluster, here and by a later command."""

    connect: Callable[[], AbstractAsyncContextManager[Cluster]]
    options: str
    """Of `launch.submit`, to name it; with a blank in front, or empty."""

    def command(self, words: str) -> str:
        """A command line about what was submitted to it."""
        return f"python -m launch.submit {words}{self.options}"
