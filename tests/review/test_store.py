"""The store: only added to, by several processes at once, and whole after a kill."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from charactertrain.records import ReviewEvent
from charactertrain.review.store import ReviewStore, StoreError

Make = Callable[..., ReviewEvent]

# Adds events for ever, and says each that is acknowledged.
_WRITER = """
import sys
from pathlib import Path
from charactertrain.records import ReviewEvent
from charactertrain.review.store import ReviewStore
store, name = ReviewStore(Path(sys.argv[1])), sys.argv[2]
blank = dict.fromkeys(ReviewEvent.__dataclass_fields__, "")
for number in range(int(sys.argv[3])):
    store.append(ReviewEvent(**{**blank, "event_id": f"{name}-{number}", "reviewer": name}))
    print(f"{name}-{number}", flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_events_come_back_in_their_order(tmp_path: Path, verdict: Make) -> None:
    store = ReviewStore(tmp_path)
    events = [verdict(str(number), note="Ünïcode \U0001f642\n\u202e") for number in (2, 1, 3)]
    for event in events:
        store.append(event)
    assert store.events() == events
    assert ReviewStore(tmp_path).events() == events
    store.close()


def test_the_same_event_is_kept_once(tmp_path: Path, verdict: Make) -> None:
    store = ReviewStore(tmp_path)
    for answer in ("first", "second"):
        store.append(verdict("1", answer=answer))
    assert [event.answer for event in store.events()] == ["first"]
    store.close()


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET answer = 'tie'", "DELETE FROM events WHERE sequence = 1"]
)
def test_what_was_added_cannot_be_changed(tmp_path: Path, verdict: Make, statement: str) -> None:
    store = ReviewStore(tmp_path)
    store.append(verdict("1", answer="first"))
    other = sqlite3.connect(store.path)
    with pytest.raises(sqlite3.IntegrityError, match="reviews are only added to"):
        other.execute(statement)
    other.close()
    assert ReviewStore(tmp_path).events() == store.events()
    store.close()


def test_a_commit_is_on_the_disk(tmp_path: Path) -> None:
    store = ReviewStore(tmp_path)
    asked = store._connection.execute
    assert asked("PRAGMA journal_mode").fetchone() == ("wal",)
    # 2 is FULL.
    assert asked("PRAGMA synchronous").fetchone() == (2,)
    store.close()


def test_processes_write_at_once_and_each_sees_all(tmp_path: Path) -> None:
    names = ("Ada", "Ben", "Cleo")
    running = [writer(tmp_path, name, 40) for name in names]
    for process in running:
        process.communicate()
        assert process.returncode == 0
    store = ReviewStore(tmp_path)
    found = [event.event_id for event in store.events()]
    assert len(found) == len(set(found)) == 120
    for name in names:
        mine = [each for each in found if each.startswith(name)]
        assert mine == [f"{name}-{number}" for number in range(40)]
    store.close()


def test_nothing_acknowledged_is_lost_when_a_writer_is_killed(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for attempt in range(3):
        with writer(tmp_path, f"try{attempt}", 100_000) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(20 + attempt)]
            process.send_signal(signal.SIGKILL)
            lines += [line.strip() for line in process.stdout]
        acknowledged += lines
    store = ReviewStore(tmp_path)
    found = [event.event_id for event in store.events()]
    # At most one of each was written and could not be said.
    assert set(acknowledged) <= set(found)
    assert len(found) <= len(acknowledged) + 3
    store.close()


def test_a_database_that_stays_locked_says_that_nothing_was_written(
    tmp_path: Path, verdict: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charactertrain.review.store.BUSY_SECONDS", 0.1)
    store = ReviewStore(tmp_path)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="Nothing was written"):
        store.append(verdict("1"))
    other.execute("ROLLBACK")
    store.append(verdict("2"))
    assert [event.event_id for event in store.events()] == ["2"]
    other.close()
    store.close()
