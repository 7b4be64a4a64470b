"""The Hydra launchers `ray_jobs` and `rayjob`: each point of a multirun is a job on a cluster.

Hydra imports every module of the namespace `hydra_plugins`, whenever it starts, to find plugins:
this one imports what it needs when it launches.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweepLauncher(Launcher):
    """Submits the points, follows them, and returns what they came to; see launch.hydra_points."""

    def __init__(self, **settings: Any) -> None:
        """`settings` are those of conf/hydra/launcher/ray_jobs.yaml or rayjob.yaml."""
        self._settings = settings
        self._launch: Any = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Remember the sweep; the task function runs in the jobs and not here."""
        from launch.hydra_points import PointLauncher

        self._launch = PointLauncher(self._settings, hydra_context.config_loader, config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of points; the numbers count from `initial_job_idx`."""
        returns: Sequence[JobReturn] = self._launch(job_overrides, initial_job_idx)
        return returns
