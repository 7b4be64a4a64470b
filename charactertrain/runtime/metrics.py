"""Metrics of a run: JSON lines in the run directory, a line on the console, wandb if asked for."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console

from charactertrain.exceptions import ConfigError
from charactertrain.storage import Directory

METRICS_NAME = "metrics.jsonl"

_REWRITE_SECONDS = 30.0
"""An object store's files cannot grow: the whole is written anew, at most this often."""


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
        """Log to `directory`; nothing is written and wandb is not started."""
        self._directory, self._console = directory, console
        self._lines = _LocalLines(directory) if directory.is_local else _StoredLines(directory)
        self._wandb_mode, self._project, self._config = wandb_mode, project, dict(config)
        self._wandb: Any = None

    def start(self) -> None:
        """Start wandb if it is asked for, so that it fails before hours of work and not after.

        Raises:
            ConfigError: wandb does not start.
        """
        if self._wandb_mode != "off":
            self._start_wandb(self._wandb_mode)

    def log(self, stage: str, values: Mapping[str, float | int | str]) -> None:
        """Record one line of metrics of a stage; the console shows it too."""
        shown = "  ".join(f"{key} {_short(value)}" for key, value in values.items())
        self._console.print(f"  {shown}", markup=False, emoji=False, highlight=False)
        self.record(stage, values)

    def record(self, stage: str, values: Mapping[str, float | int | str]) -> None:
        """Record one line of metrics, without the console."""
        line = {"stage": stage, "time": round(time.time(), 3), **values}
        self._lines.append(f"{json.dumps(line)}\n".encode())
        if self._wandb_mode != "off":
            self._start_wandb(self._wandb_mode).log(
                {f"{stage}/{key}": value for key, value in values.items()}
            )

    def _start_wandb(self, mode: Literal["offline", "online"]) -> Any:
        if self._wandb is None:
            import wandb

            local = self._directory.local_path if self._directory.is_local else None
            if local is not None:
                local.mkdir(parents=True, exist_ok=True)
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
        """Write what is not written yet, and end the wandb run, if there is one."""
        self._lines.flush()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


class _LocalLines:
    """The file of metrics on a local disk."""

    def __init__(self, directory: Directory) -> None:
        self._path = directory.local_path

    def append(self, line: bytes) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        with (self._path / METRICS_NAME).open("ab") as file:
            file.write(line)

    def flush(self) -> None:
        """Every line is written as it comes."""


class _StoredLines:
    """The file of metrics in an object store: kept here, and written as a whole now and then."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._text: bytes | None = None
        self._is_written = True
        self._written_at = -math.inf

    def append(self, line: bytes) -> None:
        if self._text is None:
            is_there = self._directory.exists(METRICS_NAME)
            self._text = self._directory.read_bytes(METRICS_NAME) if is_there else b""
        self._text += line
        self._is_written = False
        if time.monotonic() - self._written_at >= _REWRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._text is None or self._is_written:
            return
        self._directory.write_bytes(METRICS_NAME, self._text)
        self._is_written, self._written_at = True, time.monotonic()


def _short(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
