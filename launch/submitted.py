"""Looking at submitted runs: following them, their state, their logs, stopping them."""

import argparse
import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from charactertrain.exceptions import ConfigError
from launch import ray_jobs
from launch.clusters import Job, Reach
from launch.following import Follower
from launch.kuberay import cluster as kuberay
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


def follow(reach: Reach, submission_id: str, name: str, console: Console) -> int:
    """Show a job's log until it is over; its exit status, or DETACHED after an interrupt."""
    try:
        job = asyncio.run(_follow(reach, submission_id, console))
    except KeyboardInterrupt:
        return _detach(reach, submission_id, name, console)
    console.print(f"{submission_id} {job.ending}", style="bold", markup=False)
    return job.exit_status


async def _follow(reach: Reach, submission_id: str, console: Console) -> Job:
    async with reach.connect() as cluster:
        follower = Follower(
            cluster,
            submission_id,
            write=lambda text: console.out(text, end=""),
            say=lambda line: console.print(line, style="dim", markup=False),
        )
        return await follower.follow()


def _detach(reach: Reach, submission_id: str, name: str, console: Console) -> int:
    console.print(
        f"\ndetached; {submission_id} goes on. {how_to_reattach(reach, name)}", markup=False
    )
    try:
        console.print(f"Interrupt again within {_SECONDS_TO_STOP:.0f} s to stop it.")
        time.sleep(_SECONDS_TO_STOP)
    except KeyboardInterrupt:
        asyncio.run(stop(reach, submission_id))
        console.print(f"asked the cluster to stop {submission_id}", markup=False)
    return DETACHED


async def stop(reach: Reach, submission_id: str) -> str:
    """Ask the cluster to stop a job; what will come of it."""
    async with reach.connect() as cluster:
        job = await cluster.job(submission_id)
        await cluster.stop(submission_id)
        return cluster.about_stopping(job)


def how_to_reattach(reach: Reach, name: str) -> str:
    """The command that follows a run of that name."""
    return f"To follow it: {reach.command(f'logs {name} --follow')}"


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """The options that name the cluster."""
    parser.add_argument("--address", help="the head's dashboard, http(s)://host:8265; RAY_ADDRESS")
    parser.add_argument("--kuberay", action="store_true", help="RayJobs on Kubernetes")
    parser.add_argument("--context", help="with --kuberay: of the kubeconfig; the current one")
    parser.add_argument(
        "--namespace", help=f"with --kuberay: in place of the overlay's; {kuberay.NAMESPACE}"
    )


def check_cluster(options: argparse.Namespace) -> None:
    """Raise ConfigError for options of the other kind of cluster."""
    idle = ["address"] if options.kuberay else ["context", "namespace"]
    named = [f"--{name}" for name in idle if getattr(options, name) is not None]
    if named:
        other = "without" if options.kuberay else "with"
        raise ConfigError(f"{', '.join(named)}: has a meaning only {other} --kuberay")


def _reach(options: argparse.Namespace) -> Reach:
    check_cluster(options)
    if options.kuberay:
        return kuberay.reach(options.context, options.namespace or kuberay.NAMESPACE)
    return ray_jobs.reach(options.address)


def look(arguments: Sequence[str], console: Console) -> int:
    """Do one of COMMANDS; the exit status. Raises CharacterTrainError with a message."""
    options = _parser().parse_args(arguments)
    reach = _reach(options)
    jobs, address = asyncio.run(_jobs(reach))
    if options.command == "list":
        _show_jobs(jobs, console)
        return 0
    job = _find(jobs, options.run, address)
    if options.command == "stop":
        about = asyncio.run(stop(reach, job.submission_id))
        console.print(f"asked the cluster to stop {job.submission_id}", markup=False)
        if about:
            console.print(about, markup=False)
        return 0
    if options.command == "logs" and options.follow:
        return follow(reach, job.submission_id, options.run, console)
    if options.command == "logs":
        console.out(asyncio.run(_log(reach, job.submission_id)), end="")
        return 0
    return _show_status(reach, job, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.submit", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        add_cluster(command)
        if name != "list":
            command.add_argument("run", help="name of the run, or submission id")
        if name == "logs":
            command.add_argument("--follow", action="store_true", help="until it is over")
    return parser


async def _jobs(reach: Reach) -> tuple[list[Job], str]:
    async with reach.connect() as cluster:
        return await cluster.jobs(), cluster.address


async def _log(reach: Reach, submission_id: str) -> str:
    async with reach.connect() as cluster:
        return await cluster.log(submission_id).rest()


async def _job(reach: Reach, submission_id: str) -> Job:
    async with reach.connect() as cluster:
        return await cluster.job(submission_id)


def _show_status(reach: Reach, job: Job, console: Console) -> int:
    # Once more and alone, for the notices.
    job = asyncio.run(_job(reach, job.submission_id))
    _show_jobs([job], console)
    for line in (job.message, *job.notices):
        console.print(line, markup=False)
    return job.exit_status if job.is_over else NOT_OVER


def _find(jobs: Sequence[Job], name: str, address: str) -> Job:
    """The last attempt at the run of that name, or the job of that submission id."""
    found = [job for job in jobs if name in (job.submission_id, job.metadata.get("run_name"))]
    if not found:
        names = dict.fromkeys(job.metadata.get("run_name", job.submission_id) for job in jobs)
        raise ConfigError(
            f"no run {name!r} on {address}; it remembers {', '.join(names) or 'none at all'}"
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
