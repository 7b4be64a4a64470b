"""Runs as jobs of a Ray cluster that is there: the package, the environment, the request."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from charactertrain.exceptions import ConfigError
from launch.clusters import Reach
from launch.connection import find_address
from launch.jobs_api import JobRequest, JobsApi
from launch.package import Package, make_package
from launch.runs import Run
from launch.submission import passed_variables


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
    exclude: tuple[str, ...]
    """Patterns of files of the working tree that are left out."""


def reach(given: str | None) -> Reach:
    """The Jobs API at an address, or where RAY_ADDRESS says; raises ConfigError without one."""
    return Reach(partial(JobsApi.connect, find_address(given)), "")


class JobsTarget:
    """A Ray cluster, and how runs are jobs on it."""

    def __init__(self, root: Path, address: str | None, settings: JobSettings) -> None:
        """`root` is the checkout whose working tree goes along."""
        self._root = root
        self._address = address
        self._settings = settings

    @property
    def reach(self) -> Reach:
        """The cluster, for those who only look."""
        return reach(self._address)

    @cached_property
    def _package(self) -> Package:
        # Once: all runs of an invocation have the same code, whatever is edited meanwhile.
        return make_package(self._root, exclude=self._settings.exclude)

    def overrides(self, given: Sequence[str]) -> list[str]:
        """Those that are asked for and no others."""
        return list(given)

    def prepare(self) -> None:
        """Pack the working tree, and look for the variables and the lock."""
        runtime_env(self._settings, self._package.uri)

    def plan(self, run: Run) -> list[str]:
        """What would be sent for a run."""
        environment = runtime_env(self._settings, self._package.uri)
        mib = len(self._package.data) / 2**20
        return [
            f"submission id  {run.base_id}",
            f"command        {run.entrypoint}",
            f"working tree   {self._package.num_files} files, {mib:.1f} MiB packed",
            f"variables      {', '.join(environment['env_vars']) or 'none'}",
            f"to install     {len(environment.get('pip', {}).get('packages', []))} packages",
        ]

    @asynccontextmanager
    async def connect(self) -> "AsyncIterator[JobsSubmitter]":
        """The cluster, to submit to."""
        async with JobsApi.connect(find_address(self._address)) as api:
            yield JobsSubmitter(api, self._settings, self._package)


class JobsSubmitter:
    """Submits runs over the Jobs API."""

    def __init__(self, api: JobsApi, settings: JobSettings, package: Package) -> None:
        """`package` is what the jobs find as their working directory."""
        self.cluster = api
        self._settings = settings
        self._package = package

    def submission_id(self, run: Run, attempt: int) -> str:
        """The run's own."""
        return run.submission_id(attempt)

    async def submit(self, run: Run, attempt: int) -> None:
        """Submit an attempt at a run, and the package with it where the cluster has it not.

        Asked for every job: a head that was started anew has forgotten packages, and one that no
        job refers to is deleted after a while.
        """
        if not await self.cluster.has_package(self._package.name):
            await self.cluster.upload_package(self._package.name, self._package.data)
        request = JobRequest(
            submission_id=self.submission_id(run, attempt),
            entrypoint=run.entrypoint,
            runtime_env=runtime_env(self._settings, self._package.uri),
            metadata=run.metadata(attempt),
            num_cpus=self._settings.driver_cpus,
            memory_bytes=round(self._settings.driver_memory_gib * 2**30),
        )
        await self.cluster.submit(request)


def runtime_env(settings: JobSettings, package_uri: str) -> dict[str, Any]:
    """What the job runs in; raises ConfigError for what is not here."""
    environment: dict[str, Any] = {
        "working_dir": package_uri,
        "env_vars": passed_variables(settings.variables),
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
