"""Logs of metrics as tests open them."""

import io
from pathlib import Path

from rich.console import Console

from charactertrain.runtime.metrics import MetricLog
from charactertrain.runtime.wandb_run import Mode, WandbSettings
from charactertrain.storage import Directory, open_directory

RUN_ID = "0123456789abcdef"


def wandb_settings(mode: Mode, upload: tuple[str, ...] = ()) -> WandbSettings:
    """A run whose artifacts' fingerprints are of one repeated digit."""
    return WandbSettings(
        mode=mode,
        project="tests",
        group="a-sweep",
        job_type="placebo",
        run_id=RUN_ID,
        artifacts=frozenset(digit * 12 for digit in "abcdef"),
        upload=upload,
        timeout_seconds=5.0,
        config={"seed": 1},
    )


def open_log(
    directory: Path | Directory,
    output: io.StringIO | Console | None = None,
    *,
    wandb_mode: Mode | None = None,
    upload: tuple[str, ...] = (),
) -> MetricLog:
    """The log of a run called `run`, and a console that may be looked at."""
    shown = (
        output if isinstance(output, Console) else Console(file=output or io.StringIO(), width=100)
    )
    return MetricLog(
        directory if isinstance(directory, Directory) else open_directory(str(directory)),
        shown,
        run="run",
        wandb=None if wandb_mode is None else wandb_settings(wandb_mode, upload),
    )
