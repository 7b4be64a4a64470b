"""Handing a run to a cluster: its package, its environment, its attempt."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charactertrain.exceptions import ConfigError
from launch.jobs_api import Job, JobRequest, JobsApi
from launch.package import Package
from launch.runs import Run, attempt_number


@dataclass(frozen=True)
class JobSettings:
    """How the jobs of this invocation are started."""

    variables: tuple[str, ...]
    """Names of environment variables of this process that the job gets; no others are passed."""
    requirements: Path | None
    """A lock that the cluster installs for the job; None: what its image has."""
    driver_cpus: float
    """Logical CPUs that the driver holds; 0: it runs on the head and holds none."""
    driver_memory_gib: float


def runtime_env(settings: JobSettings, package_uri: str) -> dict[str, Any]:
    """What the job runs in; raises ConfigError for what is not here."""
    missing = [name for name in settings.variables if name not in os.environ]
    if missing:
        raise ConfigError(f"variables to be passed to the job are not set: {', '.join(missing)}")
    environment: dict[str, Any] = {
        "working_dir": package_uri,
        "env_vars": {name: os.environ[name] for name in settings.variables},
    }
    if settings.requirements is not None:
        environment["pip"] = {
            "packages": _locked(settings.requirements),
            # The locks are complete, and pip would add what must not be there.
            "pip_install_options": ["--no-deps", "--disable-pip-version-check"],
            "pip_check": False,
        }
    return environment


def _locked(path: Path) -> list[str]:
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise ConfigError(f"the lock {path} cannot be read: {error}") from error
    packages = [line for line in lines if line]
    loose = [line for line in packages if "==" not in line]
    if loose or not packages:
        raise ConfigError(
            f"the lock {path}: expected lines of the form name==version, found "
            f"{', '.join(loose[:5]) or 'none'}"
        )
    return packages


async def submit_attempt(
    api: JobsApi, run: Run, settings: JobSettings, *, attempt: int, package: Package
) -> None:
    """Submit an attempt at a run, and the package with it where the cluster has it not.

    Asked for every job: a head that was started anew has forgotten packages, and one that no job
    refers to is deleted after a while.
    """
    if not await api.has_package(package.name):
        await api.upload_package(package.name, package.data)
    request = JobRequest(
        submission_id=run.submission_id(attempt),
        entrypoint=run.entrypoint,
        runtime_env=runtime_env(settings, package.uri),
        metadata=run.metadata(attempt),
        num_cpus=settings.driver_cpus,
        memory_bytes=round(settings.driver_memory_gib * 2**30),
    )
    await api.submit(request)


def next_attempt(attempts: Sequence[Job]) -> int:
    """The number of the attempt after these."""
    return max((attempt_number(job) for job in attempts), default=0) + 1
