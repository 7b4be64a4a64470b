"""A run as it is to be submitted: composed and validated here, before anything is sent."""

import getpass
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from charactertrain import artifacts, pipeline
from charactertrain.__main__ import CONSTITUTIONS, ROOT, code_version
from charactertrain.artifacts import Json, Manifest
from charactertrain.config import RunConfig, validate
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.models.sources import model_identity
from charactertrain.stages.definitions import define
from charactertrain.storage import open_directory, without_keys
from charactertrain.trait_file import load_constitution
from launch.clusters import Job

_ID_DIGITS = 12
_MAX_NAME = 160
"""Characters; the cluster names files after it."""
_OBJECTIVE = re.compile(r"^objective: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """One run, known by its name and by the fingerprint of the last stage that it makes."""

    name: str
    fingerprint: str
    last_stage: str
    directory: str
    """run.dir, as the job will see it."""
    overrides: tuple[str, ...]
    is_dry: bool

    @property
    def entrypoint(self) -> str:
        """The job's command, to be read by a shell."""
        return shlex.join(["python", "-m", "charactertrain", *self.overrides])

    @property
    def base_id(self) -> str:
        """The submission id of the first attempt; of later ones the beginning."""
        return f"{self.name}-{self.fingerprint[:_ID_DIGITS]}"

    def submission_id(self, attempt: int) -> str:
        """The submission id of an attempt, 1 being the first: a cluster takes each id once."""
        return self.base_id if attempt == 1 else f"{self.base_id}-{attempt}"

    def metadata(self, attempt: int) -> dict[str, str]:
        """What the cluster keeps beside the job."""
        return {
            "run_name": self.name,
            "run_dir": without_keys(self.directory),
            "fingerprint": self.fingerprint,
            "code_version": code_version(),
            "user": getpass.getuser(),
            "attempt": str(attempt),
        }

    def attempts(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are attempts at this run, in order.

        Raises:
            ConfigError: One of them writes into another run directory.
        """
        found = [
            job
            for job in jobs
            if job.metadata.get("fingerprint") == self.fingerprint
            and job.metadata.get("run_name") == self.name
        ]
        for job in found:
            there = job.metadata.get("run_dir")
            if there != without_keys(self.directory):
                raise ConfigError(
                    f"{job.submission_id} is the same run in another directory: {there}, and this "
                    f"is to be in {without_keys(self.directory)}. Give this one a name of its own "
                    "(--name), or submit it with the other run.dir."
                )
        return sorted(found, key=attempt_number)

    def finished_manifest(self) -> Manifest | None:
        """The manifest of the last stage, where it is finished and can be read from here."""
        try:
            directory = open_directory(self.directory).child(self.last_stage)
            manifest = artifacts.read_manifest(directory)
        except (ArtifactError, ConfigError):
            return None  # storage of the cluster's, for which there are no keys here
        is_ours = manifest is not None and manifest.fingerprint == self.fingerprint
        return manifest if is_ours else None


def attempt_number(job: Job) -> int:
    """Which attempt at its run a job is, as its metadata says; 1 is the first."""
    number = job.metadata.get("attempt", "1")
    return int(number) if number.isdigit() else 1


def compose_run(overrides: Sequence[str], *, name: str | None) -> Run:
    """The run of these overrides, composed as the command line does, and validated.

    Raises:
        CharacterTrainError: What the run itself would be refused for.
    """
    try:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            composed = compose("config", overrides=list(overrides))
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the overrides do not compose: {error}") from error
    return make_run(values, overrides, name=name)


def make_run(values: Mapping[str, Any], overrides: Sequence[str], *, name: str | None) -> Run:
    """The run of a composed config; `overrides` are what the job's command is given.

    Raises:
        CharacterTrainError: The config is not valid, or is not one for a cluster.
    """
    config = validate(values)
    if config.cluster.address == "local":
        raise ConfigError(
            "cluster.address is local: the job would start a Ray of its own beside the cluster's; "
            "add cluster=ray"
        )
    constitution = load_constitution(config.constitution, shipped_dir=CONSTITUTIONS)
    stages = define(config, constitution, _identify)
    selected = pipeline.select(stages, only=config.run.only, until=config.run.until)
    return Run(
        name=_run_name(config, name),
        fingerprint=pipeline.identities(stages)[selected[-1]].fingerprint,
        last_stage=selected[-1],
        directory=config.run.dir,
        overrides=tuple(overrides),
        is_dry=config.run.dry,
    )


def _identify(path: str) -> Mapping[str, str]:
    """The model by its contents or, where only the cluster has it, by its path.

    The fingerprint then differs from the artifact's, and tells runs apart as well.
    """
    if path.startswith("/") and not Path(path).is_dir():
        return {"path": path}
    return model_identity(path)


def _run_name(config: RunConfig, given: str | None) -> str:
    name = given or PurePosixPath(config.run.dir.split("?", 1)[0]).name
    # It becomes part of a URL, of an actor's name and of a file's.
    return re.sub(r"[^A-Za-z0-9_.=-]", "_", name)[:_MAX_NAME]


def objective(run: Run, logs: str) -> float | None:
    """What the run came to, for a sweeper: of its report, or as its log says; None without one."""
    manifest = run.finished_manifest()
    if manifest is not None:
        value: float | None = manifest.summary.get("objective")
        return value
    found = _OBJECTIVE.findall(logs)
    return float(found[-1]) if found and found[-1] != "None" else None


def effects(run: Run) -> list[Json]:
    """What the policy changed, by trait and measure, where the report can be read from here."""
    manifest = run.finished_manifest()
    rows: list[Json] = [] if manifest is None else manifest.summary.get("effects", [])
    return [row for row in rows if row["arm"] == "policy"]
