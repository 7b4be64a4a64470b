"""The command line: `python -m launch.submit [overrides...]`, and what became of submitted runs."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from charactertrain.__main__ import ROOT
from charactertrain.exceptions import CharacterTrainError, ConfigError
from launch.clusters import Reach
from launch.kuberay.overlays import manifests
from launch.kuberay.target import KubeRayTarget, RayJobSettings
from launch.ray_jobs import JobSettings, JobsTarget
from launch.runs import Run, compose_run
from launch.submission import Target, submit_run
from launch.submitted import (
    COMMANDS,
    DETACHED,
    add_cluster,
    check_cluster,
    follow,
    how_to_reattach,
    look,
)

_JOBS_OPTIONS = ("exclude", "pip", "driver_cpus", "driver_memory_gib")
_RAYJOB_OPTIONS = ("overlay", "image", "job_only", "keep", "render")


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
    check_cluster(options)
    _check_kind(options)
    target = _target(options)
    planned = compose_run(target.overrides(overrides), name=options.name)
    target.prepare()
    if options.render:
        documents = KubeRayTarget(_rayjob_settings(options)).render(planned, 1)
        console.out(manifests(documents), end="")
        return 0
    if planned.is_dry:
        for line in target.plan(planned):
            console.print(line, markup=False)
        console.print("a dry run: nothing was submitted")
        return 0
    return _submit(target, planned, options, console)


def _submit(target: Target, planned: Run, options: argparse.Namespace, console: Console) -> int:
    reach = target.reach
    say = partial(console.print, style="bold", markup=False)
    submission_id, status = asyncio.run(_hand_in(target, planned, again=options.again, say=say))
    if status is not None:
        return status
    if options.detach:
        console.print(how_to_reattach(reach, planned.name), markup=False)
        return 0
    status = follow(reach, submission_id, planned.name, console)
    if status == 0 and options.keep == "nothing":
        deleted = asyncio.run(_delete_finished(reach, planned))
        console.print(f"deleted {', '.join(deleted)}", markup=False)
    return status


async def _hand_in(
    target: Target, planned: Run, *, again: bool, say: Callable[[str], None]
) -> tuple[str, int | None]:
    async with target.connect() as submitter:
        return await submit_run(submitter, planned, again=again, say=say)


async def _delete_finished(reach: Reach, planned: Run) -> list[str]:
    """Delete all attempts at a run that are over; their names."""
    async with reach.connect() as cluster:
        names = [job.submission_id for job in planned.attempts(await cluster.jobs()) if job.is_over]
        for name in names:
            await cluster.stop(name)
        return names


def _target(options: argparse.Namespace) -> Target:
    if options.kuberay:
        return KubeRayTarget(_rayjob_settings(options))
    settings = JobSettings(
        variables=tuple(options.env),
        requirements=options.pip,
        driver_cpus=options.driver_cpus,
        driver_memory_gib=options.driver_memory_gib,
        exclude=tuple(options.exclude),
    )
    return JobsTarget(ROOT, options.address, settings)


def _rayjob_settings(options: argparse.Namespace) -> RayJobSettings:
    return RayJobSettings(
        overlay=options.overlay,
        image=options.image,
        namespace=options.namespace,
        context=options.context,
        variables=tuple(options.env),
        is_alone=options.job_only,
        keeps_cluster=options.keep == "cluster",
    )


def _check_kind(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that would have no effect."""
    names = _JOBS_OPTIONS if options.kuberay else _RAYJOB_OPTIONS
    defaults = _submit_parser().parse_args([])
    given = [name for name in names if getattr(options, name) != getattr(defaults, name)]
    if given:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        other = "without" if options.kuberay else "with"
        raise ConfigError(f"{shown}: has a meaning only {other} --kuberay")


def _submit_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.submit",
        description="Submit a run to a Ray cluster, or to Kubernetes as a RayJob, and follow it. "
        "What is no option is an override in Hydra's syntax, as of python -m charactertrain; "
        "run.dry=true shows what would be sent.",
        epilog=f"About submitted runs: python -m launch.submit {{{','.join(COMMANDS)}}} --help",
        allow_abbrev=False,
    )
    add_cluster(parser)
    parser.add_argument("--name", help="of the run; the last part of run.dir if left out")
    parser.add_argument(
        "--again", action="store_true", help="submit a run that is finished once more"
    )
    parser.add_argument("--detach", action="store_true", help="submit and leave")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME", help="pass this variable to the job"
    )
    jobs = parser.add_argument_group("jobs on a Ray cluster that is there")
    jobs.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="leave out these files"
    )
    jobs.add_argument("--pip", type=Path, metavar="LOCK", help="install this lock for the job")
    jobs.add_argument(
        "--driver-cpus", type=float, default=0.0, help="CPUs that the driver holds; 0: on the head"
    )
    jobs.add_argument("--driver-memory-gib", type=float, default=0.0)
    rayjobs = parser.add_argument_group("RayJobs, with --kuberay")
    rayjobs.add_argument("--overlay", help="a name of kube/overlays, or a directory of one's own")
    rayjobs.add_argument("--image", metavar="NAME:TAG", help="in place of the overlay's")
    rayjobs.add_argument(
        "--job-only", action="store_true", help="what the overlay has beside the RayJob is there"
    )
    rayjobs.add_argument(
        "--keep",
        choices=("record", "cluster", "nothing"),
        default="record",
        help="of a run that is over: the RayJob with its log; the Ray cluster too; or nothing of "
        "one that succeeded and was followed",
    )
    rayjobs.add_argument(
        "--render", action="store_true", help="print the manifests; needs kubectl and no cluster"
    )
    return parser


if __name__ == "__main__":
    main()
