"""Metrics of a run: JSON lines in the run directory, a line on the console, wandb if asked for."""

import json
import time
from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console

from charactertrain.exceptions import ConfigError
from charactertrain.storage import Directory

METRICS_NAME = "metrics.jsonl"


class MetricLog:
    """Takes metrics from the driver; one per run."""

    def __init__(
        self,
        directory: Directory,
        console: Console,
        *,
        wandb_mode: Literal["off", "offline", "online"],
        project: str,
        config: Mapping[str, Any],
    ) -> None:
        """Log to `directory`; wandb is started at the first metric."""
        self._directory, self._console = directory, console
        self._wandb_mode, self._project, self._config = wandb_mode, project, dict(config)
        self._wandb: Any = None

    def log(self, stage: str, values: Mapping[str, float | int | str]) -> None:
        """Record one line of metrics of a stage; the console shows it too."""
        shown = "  ".join(f"{key} {_short(value)}" for key, value in values.items())
        self._console.print(f"  {shown}", highlight=False)
        self.record(stage, values)

    def record(self, stage: str, values: Mapping[str, float | int | str]) -> None:
        """Record one line of metrics, without the console."""
        line = {"stage": stage, "time": round(time.time(), 3), **values}
        if self._directory.is_local:
            path = self._directory.local_path
            path.mkdir(parents=True, exist_ok=True)
            with (path / METRICS_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self._wandb_mode != "off":
            self._start_wandb(self._wandb_mode).log(
                {f"{stage}/{key}": value for key, value in values.items()}
            )

    def _start_wandb(self, mode: Literal["offline", "online"]) -> Any:
        if self._wandb is None:
            import wandb

            local = self._directory.local_path if self._directory.is_local else None
            try:
                self._wandb = wandb.init(
                    project=self._project,
                    mode=mode,
                    dir=local,
                    config=self._config,
                    name=self._directory.root.rpartition("/")[2],
                )
            except wandb.Error as error:
                raise ConfigError(
                    f"logging.wandb={mode}: wandb did not start: {error}. "
                    "Log in, or use logging.wandb=offline."
                ) from error
        return self._wandb

    def close(self) -> None:
        """Flush and end the wandb run, if there is one."""
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
