"""Looking at submitted runs: following them, their state, their logs, stopping them."""

import argparse
import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from charactertrain.exceptions import ConfigError
from charactertrain.storage import without_keys
from launch.connection import find_address
from launch.following import Follower
from launch.jobs_api import Job, JobsApi
from launch.runs import attempt_number

COMMANDS = {
    "status": "how a run stands; the exit status is its own, 3 while it is not over",
    "logs": "what a run has printed",
    "stop": "ask the cluster to stop a run",
    "list": "all runs that the cluster remembers",
}
DETACHED = 130
"""Exit status of a client that left its job running."""
NOT_OVER = 3
_SECONDS_TO_STOP = 5.0


def follow(address: str, submission_id: str, name: str, console: Console) -> int:
    """Show a job's log until it is over; its exit status, or DETACHED after an interrupt."""
    try:
        job = asyncio.run(_follow(address, submission_id, console))
    except KeyboardInterrupt:
        return _detach(address, submission_id, name, console)
    console.print(f"{submission_id} {ending(job)}", style="bold", markup=False)
    return job.exit_status


async def _follow(address: str, submission_id: str, console: Console) -> Job:
    async with JobsApi.connect(address) as api:
        follower = Follower(
            api,
            submission_id,
            write=lambda text: console.out(text, end=""),
            say=lambda line: console.print(line, style="dim", markup=False),
        )
        return await follower.follow()


def _detach(address: str, submission_id: str, name: str, console: Console) -> int:
    console.print(f"\ndetached; {submission_id} goes on. {how_to_reattach(name)}", markup=False)
    try:
        console.print(f"Interrupt again within {_SECONDS_TO_STOP:.0f} s to stop it.")
        time.sleep(_SECONDS_TO_STOP)
    except KeyboardInterrupt:
        asyncio.run(_stop(address, submission_id))
        console.print(f"asked the cluster to stop {submission_id}", markup=False)
    return DETACHED


async def _stop(address: str, submission_id: str) -> None:
    async with JobsApi.connect(address) as api:
        await api.stop(submission_id)


def how_to_reattach(name: str) -> str:
    """The command that follows a run of that name."""
    return f"To follow it: python -m launch.submit logs {name} --follow"


def ending(job: Job) -> str:
    """How a job stands, in words."""
    if job.status == "SUCCEEDED":
        return "finished"
    if job.status != "FAILED":
        return f"is {job.status.lower()}: {job.message}"
    kind = f" ({job.error_type})" if job.error_type else ""
    return f"failed with exit status {job.exit_status}{kind}: {job.message}"


def add_address(parser: argparse.ArgumentParser) -> None:
    """The option that names the cluster."""
    parser.add_argument("--address", help="the head's dashboard, http(s)://host:8265; RAY_ADDRESS")


def look(arguments: Sequence[str], console: Console) -> int:
    """Do one of COMMANDS; the exit status. Raises CharacterTrainError with a message."""
    parser = argparse.ArgumentParser(prog="python -m launch.submit", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_address(command)
        if name != "list":
            command.add_argument("run", help="name of the run, or submission id")
        if name == "logs":
            command.add_argument("--follow", action="store_true", help="until it is over")
    options = parser.parse_args(arguments)
    address = find_address(options.address)
    if options.command == "list":
        _show_jobs(asyncio.run(_jobs(address)), console)
        return 0
    job = _find(asyncio.run(_jobs(address)), options.run, address)
    if options.command == "stop":
        asyncio.run(_stop(address, job.submission_id))
        console.print(f"asked the cluster to stop {job.submission_id}", markup=False)
        if job.status == "PENDING":
            console.print(
                "It has not started, and Ray stops a job when it starts, or gives it up after a "
                "while: 15 minutes, unless the head's RAY_JOB_START_TIMEOUT_SECONDS says otherwise."
            )
        return 0
    if options.command == "logs" and options.follow:
        return follow(address, job.submission_id, options.run, console)
    if options.command == "logs":
        console.out(asyncio.run(_logs(address, job.submission_id)), end="")
        return 0
    _show_jobs([job], console)
    console.print(job.message, markup=False)
    return job.exit_status if job.is_over else NOT_OVER


async def _jobs(address: str) -> list[Job]:
    async with JobsApi.connect(address) as api:
        return await api.jobs()


async def _logs(address: str, submission_id: str) -> str:
    async with JobsApi.connect(address) as api:
        return await api.logs(submission_id)


def _find(jobs: Sequence[Job], name: str, address: str) -> Job:
    """The last attempt at the run of that name, or the job of that submission id."""
    found = [job for job in jobs if name in (job.submission_id, job.metadata.get("run_name"))]
    if not found:
        names = dict.fromkeys(job.metadata.get("run_name", job.submission_id) for job in jobs)
        raise ConfigError(
            f"no run {name!r} on {without_keys(address)}; it remembers "
            f"{', '.join(names) or 'none at all'}"
        )
    if len({job.metadata.get("fingerprint") for job in found}) > 1:
        ids = ", ".join(job.submission_id for job in found)
        raise ConfigError(f"several runs are named {name!r}: give one of the ids {ids}")
    return max(found, key=attempt_number)


def _show_jobs(jobs: Sequence[Job], console: Console) -> None:
    table = Table()
    for column in ("run", "submission id", "status", "started", "hours", "by", "run.dir"):
        table.add_column(column)
    for job in jobs:
        metadata = job.metadata
        table.add_row(
            metadata.get("run_name", ""),
            job.submission_id,
            job.status.lower(),
            _when(job.start_time),
            _hours(job),
            metadata.get("user", ""),
            metadata.get("run_dir", ""),
        )
    console.print(table)


def _when(milliseconds: int | None) -> str:
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _hours(job: Job) -> str:
    if job.start_time is None:
        return ""
    end = job.end_time if job.end_time is not None else int(time.time() * 1000)
    return f"{(end - job.start_time) / 3_600_000:.2f}"
