"""Checkpoints of a DeepSpeed engine, and their conversion for another number of workers."""

import contextlib
import io
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal

from charactertrain.exceptions import TrainingError

_STATE_NAME = "charactertrain.json"
CONVERTED = ".saving-universal-"
"""How the name of a converted checkpoint begins; whatever a kill leaves of it is dropped."""

Layout = dict[str, Any]
"""What a checkpoint's files depend on."""


def write_state(directory: Path, state: dict[str, Any], layout: Layout) -> None:
    """Put the caller's state beside DeepSpeed's files."""
    (directory / _STATE_NAME).write_text(json.dumps({**state, "layout": layout}))


def read_state(directory: Path) -> dict[str, Any]:
    """What `write_state` was given as `state`."""
    state: dict[str, Any] = json.loads((directory / _STATE_NAME).read_text())
    return state


@contextlib.contextmanager
def for_this_layout(checkpoint: Path | None, layout: Layout) -> Iterator[tuple[Path | None, bool]]:
    """A context with the checkpoint as this group can load it, and whether it is a universal one.

    Every rank must enter at the same point. A checkpoint of another number of workers is converted
    to DeepSpeed's universal form, beside itself, once on each node, and dropped afterwards.

    Raises:
        TrainingError: It was written at another ZeRO stage or precision.
    """
    found = layout if checkpoint is None else read_state(checkpoint)["layout"]
    if {**found, "workers": layout["workers"]} != layout:
        raise TrainingError(
            f"the checkpoint was written with {_spelled(found)}, and training goes on with "
            f"{_spelled(layout)}. Give the same deepspeed stage and model.precision as before, or "
            "move the stage's directory away to start it anew."
        )
    # At stage 0 every worker holds everything.
    if checkpoint is None or found == layout or layout["ZeRO stage"] == 0:
        yield checkpoint, False
        return
    converted = checkpoint.with_name(f"{CONVERTED}{checkpoint.name}-{socket.gethostname()}")
    is_first = int(os.environ["LOCAL_RANK"]) == 0
    if is_first:
        _convert(checkpoint, converted)
    dist.barrier()
    yield converted, True
    dist.barrier()
    if is_first:
        shutil.rmtree(converted)


def _convert(checkpoint: Path, converted: Path) -> None:
    shutil.rmtree(converted, ignore_errors=True)
    arguments = SimpleNamespace(
        input_folder=str(checkpoint / "state"),
        output_folder=str(converted / "state"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    # It tells each step, and has no other way to be quiet.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)


def _spelled(layout: Layout) -> str:
    return ", ".join(f"{name} {value}" for name, value in layout.items())
