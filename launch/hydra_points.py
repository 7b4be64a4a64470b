"""Between Hydra and a sweep: overrides become points, and points what sweepers read."""

import asyncio
import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console

from charactertrain.__main__ import ROOT, point_values
from charactertrain.exceptions import CharacterTrainError, ConfigError
from charactertrain.points import point_name
from launch.clusters import ClusterError
from launch.kuberay.target import KubeRayTarget, RayJobSettings
from launch.ray_jobs import JobSettings, JobsTarget
from launch.runs import Run, make_run
from launch.submission import Target
from launch.sweep_page import console_table, write_page
from launch.sweeps import Point, Sweep, SweepSettings


class PointLauncher:
    """Launches the points of one sweep, in one batch or, for sweepers that optimise, in many."""

    def __init__(
        self, settings: Mapping[str, Any], loader: ConfigLoader, config: DictConfig
    ) -> None:
        """`settings` as in conf/hydra/launcher/; `config` is the sweep's."""
        self._settings = dict(settings)
        self._target = _target(self._settings)
        self._loader = loader
        self._config = config
        self._console = Console(soft_wrap=True, highlight=False)
        self._points: list[Point] = []
        self._page = Path(str(config.hydra.sweep.dir)) / "sweep.html"

    def __call__(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run a batch of points, numbered from `first`; one return for each, in order."""
        setup_globals()
        try:
            return self._launch(job_overrides, first)
        except CharacterTrainError as error:
            self._console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
            self._console.print(str(error), markup=False)
            sys.exit(2)

    def _launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        settings = _sweep_settings(self._settings)
        given = [self._target.overrides(own) for own in job_overrides]
        configs = [self._compose(text, number) for number, text in enumerate(given, start=first)]
        asked = [
            _point(own, overrides, config)
            for own, overrides, config in zip(job_overrides, given, configs, strict=True)
        ]
        points = self._merge(asked)
        unique = list(dict.fromkeys(points))
        self._target.prepare()
        self._points += unique
        try:
            self._run([point for point in unique if not point.run.is_dry], settings)
        finally:
            self._console.print(console_table(self._points))
            self._write_page()
            self._console.print(f"sweep: {self._page}", markup=False)
        return [self._return(point, config) for point, config in zip(points, configs, strict=True)]

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        config = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        return config

    def _merge(self, points: Sequence[Point]) -> list[Point]:
        """The points, those that are one run as one: sweepers that draw may draw one twice."""
        by_directory: dict[str, Point] = {}
        merged = []
        for point in points:
            first = by_directory.setdefault(point.run.directory, point)
            if first is not point:
                _check_same(first.run, point.run)
                self._say(point, f"differs in nothing that decides a result from [{first.number}]")
            merged.append(first)
        return merged

    def _run(self, points: Sequence[Point], settings: SweepSettings) -> None:
        if not points:
            self._console.print("dry points: nothing was submitted")
            return
        try:
            asyncio.run(self._sweep(points, settings))
        except KeyboardInterrupt:
            self._console.print(
                "\ninterrupted: the cluster was asked to stop the sweep's jobs"
                if self._settings["cancel_on_interrupt"]
                else "\ninterrupted: jobs that were submitted go on, and the same command follows "
                "them; one is stopped with " + self._target.reach.command("stop")
            )
            sys.exit(130)

    async def _sweep(self, points: Sequence[Point], settings: SweepSettings) -> None:
        async with self._target.connect() as submitter:
            sweep = Sweep(submitter, points, settings=settings, say=self._say)
            try:
                await sweep.run()
            except asyncio.CancelledError:
                if self._settings["cancel_on_interrupt"]:
                    await sweep.cancel()
                raise

    def _return(self, point: Point, config: DictConfig) -> JobReturn:
        """What Hydra's sweepers read: the objective, or an error in its place."""
        result = JobReturn(
            overrides=list(config.hydra.overrides.task),
            cfg=_task(config),
            hydra_cfg=OmegaConf.create({"hydra": config.hydra}),
            working_dir=point.run.directory,
            task_name=config.hydra.job.name,
        )
        if point.state == "finished" or point.run.is_dry:
            result.status, result.return_value = JobStatus.COMPLETED, point.objective
        else:
            result.status = JobStatus.FAILED
            log = self._target.reach.command(f"logs {point.submission_id}")
            result.return_value = ClusterError(
                f"point {point.number} ({point.settings}) {point.state}: {point.reason}. Its log: "
                f"{log}. The same command runs what is not finished."
            )
        return result

    def _say(self, point: Point, line: str) -> None:
        self._console.print(f"[{point.number}] {point.settings}: {line}", markup=False)
        self._write_page()

    def _write_page(self) -> None:
        write_page(self._points, self._page)


def _sweep_settings(settings: Mapping[str, Any]) -> SweepSettings:
    return SweepSettings(
        settings["max_concurrent"], settings["max_retries"], settings["poll_seconds"]
    )


def _target(settings: Mapping[str, Any]) -> Target:
    """The cluster that the settings name."""
    if settings["cluster"] == "kuberay":
        return KubeRayTarget(
            RayJobSettings(
                overlay=settings["overlay"],
                image=settings["image"],
                namespace=settings["namespace"],
                context=settings["context"],
                variables=tuple(settings["env"]),
                is_alone=settings["job_only"],
            )
        )
    return JobsTarget(
        ROOT,
        settings["address"],
        JobSettings(
            variables=tuple(settings["env"]),
            requirements=None if settings["pip"] is None else Path(settings["pip"]),
            driver_cpus=settings["driver_cpus"],
            driver_memory_gib=settings["driver_memory_gib"],
            exclude=tuple(settings["exclude"]),
        ),
    )


def _point(own: Sequence[str], overrides: Sequence[str], config: DictConfig) -> Point:
    """A point by its own overrides, which name it, and by all that its job is given."""
    # Interpolations may name Hydra's own values, such as the number of the job.
    HydraConfig.instance().set_config(config)
    values: Any = OmegaConf.to_container(_task(config), resolve=True, throw_on_missing=True)
    values = point_values(values, own)
    directory, group = values["run"]["dir"], values["logging"]["group"]
    # A job is a run of its own and no multirun, so it is told its directory and what it belongs to.
    # Last, to prevail.
    given = [text for text in overrides if not text.startswith(("run.dir=", "logging.group="))]
    told = [f"run.dir={_quoted(directory)}"]
    if group is not None:
        told.append(f"logging.group={_quoted(group)}")
    name = f"{Path(directory).parent.name}-{Path(directory).name}"
    run = make_run(values, [*given, *told], name=name)
    return Point(number=config.hydra.job.num, settings=point_name(own), run=run)


def _quoted(text: str) -> str:
    """A value as Hydra reads it, whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _task(config: DictConfig) -> DictConfig:
    """The config of the run, without Hydra's own."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def _check_same(first: Run, second: Run) -> None:
    """Raise ConfigError where two runs that are not the same would write into one directory."""
    if first.fingerprint != second.fingerprint:
        raise ConfigError(
            f"two points of the sweep that are not the same run have the run directory "
            f"{first.directory}: they differ in a setting that does not name a point, such as one "
            "of run.; sweep over another"
        )
