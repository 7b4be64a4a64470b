"""What a person sees while a stage runs: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Progress on the console."""

    def __init__(self, console: Console, on_rows: Callable[[str, int, int], None]) -> None:
        """Show progress on `console`, and tell `on_rows` of a task, its rows done, and all."""
        self.console, self._on_rows = console, on_rows

    @contextmanager
    def task(self, name: str, *, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """A piece of work of `total` rows, `done` of them finished before; yields `advance`."""
        with self._shown(name, total, done) as show:
            finished = done
            self._on_rows(name, finished, total)

            def advance(count: int) -> None:
                nonlocal finished
                finished += count
                self._on_rows(name, finished, total)
                show(count)

            yield advance

    @contextmanager
    def _shown(self, name: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
        if self.console.is_terminal:
            columns = (
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            with RichProgress(*columns, console=self.console, transient=True) as bar:
                task_id = bar.add_task(name, total=total, completed=done)
                yield lambda count: bar.advance(task_id, count)
            return
        yield self._lines(name, total, done)

    def _lines(self, name: str, total: int, done: int) -> Callable[[int], None]:
        started = last = time.monotonic()
        initially = done

        def advance(count: int) -> None:
            nonlocal last, done
            done += count
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                rate = (done - initially) / (now - started)
                self.console.print(f"  {name}: {done}/{total} rows, {rate:.1f} rows/s")

        return advance
