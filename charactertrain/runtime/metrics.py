"""Where a run's metrics go: a file, the console, Ray's Prometheus endpoint, wandb if asked for."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console

from charactertrain.artifacts import Manifest
from charactertrain.runtime.metric_board import MetricBoard
from charactertrain.runtime.metric_lines import Line, lines_of, metric_file, place_of
from charactertrain.runtime.wandb_artifacts import ALIAS_DIGITS, Made
from charactertrain.runtime.wandb_run import WandbRun, WandbSettings
from charactertrain.storage import Directory

Values = Mapping[str, float | int | str | None]


class MetricLog:
    """Takes metrics from the driver; one per run."""

    def __init__(
        self, directory: Directory, console: Console, *, run: str, wandb: WandbSettings | None
    ) -> None:
        """Log to `directory`, and as `run` to Prometheus; nothing is written or started yet."""
        self._console = console
        self._file = metric_file(directory)
        self.run = run
        """The label of the run's metrics."""
        self.board = MetricBoard(run)
        self.wandb_settings = wandb
        self._wandb = None if wandb is None else WandbRun(wandb, directory, self._say)
        self._artifact = ""
        self._next_number: int | None = None
        """Of the line to be written; known once wandb has started, which alone asks."""
        self._manifests: dict[str, tuple[Manifest, Directory]] = {}
        self._unsent: list[Made] = []

    def start(self) -> None:
        """Start wandb if it is asked for, so that it fails before hours of work and not after.

        Raises:
            ConfigError: wandb refuses what it was given.
        """
        if self._wandb is None or self._next_number is not None:
            return
        lines = self._file.read()
        self._wandb.start(lines_of(lines))
        self._next_number = len(lines.splitlines())
        for made in self._unsent:
            self._wandb.made(made)
        self._unsent.clear()

    @contextmanager
    def stage(self, name: str, fingerprint: str) -> Iterator[None]:
        """While a stage runs, lines and gauges are of the artifact that it makes."""
        self._artifact = fingerprint[:ALIAS_DIGITS]
        self.board.begin(name)
        try:
            yield
        finally:
            self.board.end()
            self._artifact = ""

    def made(self, manifest: Manifest, directory: Directory) -> None:
        """An artifact of the run is there, from this attempt or an earlier one."""
        self._manifests[manifest.identity.stage] = (manifest, directory)
        if self._wandb is None:
            return
        inputs = [
            self._manifests[name] for name in manifest.identity.inputs if name in self._manifests
        ]
        made = Made(manifest, directory, tuple(inputs))
        if self._next_number is None:
            self._unsent.append(made)
        else:
            self._wandb.made(made)

    def log(self, stage: str, values: Values) -> None:
        """Record one line of metrics of a stage; the console shows it too."""
        shown = "  ".join(f"{key} {_short(value)}" for key, value in values.items())
        self._say(shown)
        self.record(stage, values)

    def record(self, stage: str, values: Values) -> None:
        """Record one line of metrics, without the console."""
        line: dict[str, object] = {"stage": stage, "time": round(time.time(), 3)}
        if self._artifact:
            line["artifact"] = self._artifact
        line |= values
        self._file.append(f"{json.dumps(line)}\n".encode())
        self.board.line(place_of(stage, values), values)
        if self._wandb is not None and self._next_number is not None:
            self._wandb.log(Line(self._next_number, line))
            self._next_number += 1

    def close(self) -> None:
        """Write what is not written yet, and end the wandb run, if there is one."""
        self._file.flush()
        if self._wandb is not None:
            self._wandb.finish()

    def _say(self, line: str) -> None:
        self._console.print(f"  {line}", markup=False, emoji=False, highlight=False)


def _short(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
