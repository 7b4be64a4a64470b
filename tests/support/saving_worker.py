"""A worker that keeps its checkpoints, and dies when a test wants it to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from charactertrain.runtime.worker import LocalWorker, Save


class KilledError(Exception):
    """A kill."""


class SavingWorker(LocalWorker):
    """A group of one whose checkpoints are kept; killed after so many of them."""

    def __init__(self, directory: Path, *, kill_after: int = -1) -> None:
        super().__init__(lambda _: None)
        self._directory, self._kill_after = directory, kill_after
        self.num_saved = 0

    @contextmanager
    def last_checkpoint(self) -> Iterator[Path | None]:
        found = sorted(self._directory.glob("checkpoint-*"))
        yield found[-1] if found else None

    def report_checkpoint(self, save: Save, metrics: Mapping[str, Any]) -> None:
        path = self._directory / f"checkpoint-{len(list(self._directory.glob('c*'))):06d}"
        path.mkdir()
        save(path)
        self.num_saved += 1
        if self.num_saved == self._kill_after:
            raise KilledError
