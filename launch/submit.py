"""The command line: `python -m launch.submit [overrides...]`, and what became of submitted runs."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from charactertrain.__main__ import ROOT
from charactertrain.exceptions import CharacterTrainError, ConfigError
from launch.connection import DuplicateError, find_address
from launch.jobs_api import Job, JobsApi
from launch.package import Package, make_package
from launch.runs import Run, compose_run
from launch.submission import JobSettings, next_attempt, runtime_env, submit_attempt
from launch.submitted import COMMANDS, DETACHED, add_address, ending, follow, how_to_reattach, look


def main() -> None:
    """Console entry point."""
    console = Console(soft_wrap=True, highlight=False)
    try:
        sys.exit(run(sys.argv[1:], console))
    except CharacterTrainError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted; nothing that was submitted is stopped by it")
        sys.exit(DETACHED)


def run(arguments: Sequence[str], console: Console) -> int:
    """Do what the arguments ask for; the exit status.

    Raises:
        CharacterTrainError: With a message for people.
    """
    if arguments and arguments[0] in COMMANDS:
        return look(arguments, console)
    options, overrides = _submit_parser().parse_known_args(arguments)
    unknown = [text for text in overrides if text.startswith("-")]
    if unknown:
        raise ConfigError(f"unknown options: {', '.join(unknown)}; see --help")
    settings = JobSettings(
        tuple(options.env), options.pip, options.driver_cpus, options.driver_memory_gib
    )
    planned = compose_run(overrides, name=options.name)
    package = make_package(ROOT, exclude=options.exclude)
    if planned.is_dry:
        _show_plan(planned, package, settings, console)
        return 0
    address = find_address(options.address)
    submitter = _Submitter(planned, package, settings, console)
    submission_id, status = asyncio.run(submitter.submit(address, again=options.again))
    if status is not None:
        return status
    if options.detach:
        console.print(how_to_reattach(planned.name), markup=False)
        return 0
    return follow(address, submission_id, planned.name, console)


def _submit_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.submit",
        description="Submit a run to a Ray cluster and follow it. What is no option is an override "
        "in Hydra's syntax, as of python -m charactertrain; run.dry=true shows what would be sent.",
        epilog=f"About submitted runs: python -m launch.submit {{{','.join(COMMANDS)}}} --help",
        allow_abbrev=False,
    )
    add_address(parser)
    parser.add_argument("--name", help="of the run; the last part of run.dir if left out")
    parser.add_argument(
        "--again", action="store_true", help="submit a run that is finished once more"
    )
    parser.add_argument("--detach", action="store_true", help="submit and leave")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="pass this variable to the job"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave out these files"
    )
    parser.add_argument("--pip", type=Path, metavar="LOCK", help="install this lock for the job")
    parser.add_argument(
        "--driver-cpus", type=float, default=0.0, help="CPUs that the driver holds; 0: on the head"
    )
    parser.add_argument("--driver-memory-gib", type=float, default=0.0)
    return parser


def _show_plan(planned: Run, package: Package, settings: JobSettings, console: Console) -> None:
    environment = runtime_env(settings, package.uri)
    console.print(f"submission id  {planned.base_id}", markup=False)
    console.print(f"command        {planned.entrypoint}", markup=False)
    mib = len(package.data) / 2**20
    console.print(f"working tree   {package.num_files} files, {mib:.1f} MiB packed")
    console.print(f"variables      {', '.join(environment['env_vars']) or 'none'}", markup=False)
    console.print(f"to install     {len(environment.get('pip', {}).get('packages', []))} packages")
    console.print("a dry run: nothing was submitted")


class _Submitter:
    """Submits one run, unless it is there already."""

    def __init__(
        self, planned: Run, package: Package, settings: JobSettings, console: Console
    ) -> None:
        self._run = planned
        self._package = package
        self._settings = settings
        self._console = console

    async def submit(self, address: str, *, again: bool) -> tuple[str, int | None]:
        """The id of the job to follow; or also an exit status, where there is nothing to follow."""
        async with JobsApi.connect(address) as api:
            attempts = self._run.attempts(await api.jobs())
            last = attempts[-1] if attempts else None
            if last is not None and not last.is_over:
                self._say(f"{last.submission_id} is {last.status.lower()} already: following it")
                return last.submission_id, None
            if last is not None and last.status == "SUCCEEDED" and not again:
                self._say(
                    f"{last.submission_id} is finished: nothing to do; --again to run it again"
                )
                return last.submission_id, 0
            return await self._submit(api, last, next_attempt(attempts)), None

    async def _submit(self, api: JobsApi, last: Job | None, attempt: int) -> str:
        if last is not None:
            self._say(f"{last.submission_id} {ending(last)}; this attempt goes on from there")
        submission_id = self._run.submission_id(attempt)
        try:
            await submit_attempt(
                api, self._run, self._settings, attempt=attempt, package=self._package
            )
        except DuplicateError:
            # Someone else submitted the same run a moment ago.
            self._say(f"{submission_id} was submitted by another at the same time: following it")
            return submission_id
        self._say(f"submitted {submission_id}: {self._run.entrypoint}")
        return submission_id

    def _say(self, text: str) -> None:
        self._console.print(text, style="bold", markup=False)


if __name__ == "__main__":
    main()
