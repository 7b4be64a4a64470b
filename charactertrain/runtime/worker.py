"""What a training loop knows of the group of processes that it is part of.

Free of Ray: the same loop runs on a Ray Train worker and, alone, in any process.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]  # it is there

Save = Callable[[Path], None]
"""Writes a checkpoint into a directory."""


class Worker(Protocol):
    """This process's place in the worker group."""

    @property
    def rank(self) -> int:
        """0 to `num_workers` - 1."""

    @property
    def num_workers(self) -> int:
        """Processes in the group."""

    def send(self, values: dict[str, Any]) -> None:
        """Metrics of one step, from rank 0 alone."""

    @contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        """The last reported checkpoint as a local directory, or None at a fresh start."""

    def report_checkpoint(self, save: Save, metrics: Mapping[str, Any]) -> None:
        """Save and report a checkpoint; every rank must call at the same step."""

    def is_told_to_leave(self) -> bool:
        """Whether more nodes of the group are about to be taken away than when last asked.

        The same on every rank; every rank must ask at the same step.
        """


def checkpoint_is_due(worker: Worker, step: int, *, every: int, num_steps: int) -> bool:
    """Whether the group is to save after `step` of `num_steps`; every rank must ask at each step.

    Every so many steps, and when a node is about to be taken away, as spot machines are. Not after
    the last step, which is followed by the model itself.
    """
    is_leaving = worker.is_told_to_leave()
    return step < num_steps and (is_leaving or step % every == 0)


def agreed(worker: Worker, value: bool) -> bool:
    """Rank 0's value, on every rank: a file that one node sees, another may not see yet."""
    box = [value if worker.rank == 0 else None]
    torch.distributed.broadcast_object_list(box, src=0)
    return bool(box[0])


class LocalWorker:
    """A group of one process, without checkpoints; for benchmarks and tests."""

    rank = 0
    num_workers = 1

    def __init__(self, on_metrics: Callable[[dict[str, Any]], None]) -> None:
        """Metrics go to `on_metrics`."""
        self.send = on_metrics

    @contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        """None: there is none."""
        yield None

    def report_checkpoint(self, save: Save, metrics: Mapping[str, Any]) -> None:
        """Nothing is saved."""

    def is_told_to_leave(self) -> bool:
        """Never."""
        return False


@contextmanager
def process_group_of_one() -> Iterator[None]:
    """A context with the process group that collectives of one process need."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    before = {name: os.environ.get(name) for name in alone}
    os.environ |= alone
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
