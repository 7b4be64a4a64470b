"""Where reviews are kept: append-only events in SQLite, safe against kills and other writers."""

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from charactertrain import reviews
from charactertrain.exceptions import CharacterTrainError
from charactertrain.records import ReviewEvent
from charactertrain.storage import Directory, open_directory

BUSY_SECONDS = 20.0
"""How long a write waits for those of other processes."""
_RETRY_SECONDS = 0.05

# What is added stays as it is, whoever opens the file: SQLite itself refuses to change a row.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    {", ".join(f"{name} TEXT NOT NULL" for name in reviews.COLUMNS)},
    UNIQUE (event_id)
);
CREATE TRIGGER IF NOT EXISTS events_are_not_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'reviews are only added to'); END;
CREATE TRIGGER IF NOT EXISTS events_are_not_removed BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'reviews are only added to'); END;
"""
_INSERT = (
    f"INSERT INTO events ({', '.join(reviews.COLUMNS)}) "
    f"VALUES ({', '.join('?' * len(reviews.COLUMNS))}) ON CONFLICT (event_id) DO NOTHING"
)
_SELECT = f"SELECT sequence, {', '.join(reviews.COLUMNS)} FROM events WHERE sequence > ?"

Result = TypeVar("Result")


class StoreError(CharacterTrainError, RuntimeError):
    """Nothing was written: try again, or see to the disk."""


class ReviewStore:
    """The events of one run's reviews. Threads may share it, processes may each have one."""

    def __init__(self, run_directory: Path) -> None:
        """Open the database of a run directory, making it where there is none."""
        self.path = run_directory / reviews.DIRECTORY_NAME / reviews.DATABASE_NAME
        self.directory: Directory = open_directory(str(self.path.parent))
        self._lock = threading.Lock()
        self._events: list[ReviewEvent] = []
        self._last = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
        )
        self._patiently(self._prepare)

    def _prepare(self) -> None:
        # A commit is on the disk before it returns; WAL, so that readers and a writer do not wait
        # for one another.
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")

    def append(self, event: ReviewEvent) -> None:
        """Add an event; it is on the disk when this returns. One that is there already stays.

        Raises:
            StoreError: The disk or another process did not let it.
        """
        values = tuple(getattr(event, name) for name in reviews.COLUMNS)
        with self._lock:
            self._patiently(lambda: self._connection.execute(_INSERT, values))

    def events(self) -> list[ReviewEvent]:
        """All events in the order in which they came, those of other processes too."""
        with self._lock:
            rows = self._patiently(
                lambda: self._connection.execute(_SELECT, (self._last,)).fetchall()
            )
            for sequence, *values in rows:
                self._events.append(ReviewEvent(*values))
                self._last = sequence
            return list(self._events)

    def export(self) -> list[ReviewEvent]:
        """Write all events as parquet beside the database, and return them."""
        events = self.events()
        self.directory.write_table(reviews.EXPORT_NAME, reviews.export_table(events))
        return events

    def close(self) -> None:
        """Close the database; nothing is lost without it."""
        with self._lock:
            self._connection.close()

    def _patiently(self, act: Callable[[], Result]) -> Result:
        """What `act` returns, tried again while another process holds the database.

        SQLite's own patience ends at once where it sees a deadlock, as when two processes turn a
        new database to WAL.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:
                if self._connection.in_transaction:
                    self._connection.rollback()
                is_busy = error.sqlite_errorcode & 0xFF in (
                    sqlite3.SQLITE_BUSY,
                    sqlite3.SQLITE_LOCKED,
                )
                if not is_busy or time.monotonic() > deadline:
                    raise StoreError(
                        f"{self.path}: {error}. Nothing was written. Try again; if it stays so, "
                        "check the disk and who else has the file open."
                    ) from error
                time.sleep(_RETRY_SECONDS)
