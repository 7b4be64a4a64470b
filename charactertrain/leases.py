"""Leases: of several processes that would make the same artifact, one does and the others wait.

A lease is a numbered file that is created exclusively, which of several processes one achieves, and
that its holder writes anew every few seconds. The highest number holds. Who finds that file
unchanged for as long as a lease lasts, by its own clock, creates the next number: clocks of
different machines are never compared, and neither is anything deleted, so that no one can take a
number that was taken before. A holder that was overtaken stops.
"""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from uuid import uuid4

from charactertrain.exceptions import ArtifactError, UnavailableError
from charactertrain.storage import Directory

LEASE_SECONDS = 120.0
"""Longer than an NFS client may show a directory as it was, which is a minute."""
_FOLDER = "leases"
_NAME = re.compile(rf"{_FOLDER}/(?P<number>\d+)\.json", re.ASCII)
_BEATS = 6
"""Renewals while a lease lasts."""


class Lease:
    """A lease that this process holds, until it is released or overtaken."""

    def __init__(self, directory: Directory, number: int, *, seconds: float) -> None:
        """`hold` makes it: the file of that number was created by this process."""
        self._directory = directory
        self._number = number
        self._seconds = seconds
        self._num_beats = 0
        self._released = threading.Event()
        self._why_lost: str | None = None
        self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._keeper.start()

    def check(self) -> None:
        """Raise UnavailableError if another process has overtaken this one."""
        if self._why_lost is None:
            newest = _newest(self._directory)
            if newest > self._number:
                self._why_lost = f"{_holder(_read(self._directory, newest))} took over"
        if self._why_lost is not None:
            raise UnavailableError(
                f"{self._directory.uri}: the lease to work here was lost: {self._why_lost}. This "
                "process was held up, or the storage was, for longer than a lease lasts "
                f"({self._seconds:g} s). Run the same command again: it waits for the other."
            )

    @property
    def is_lost(self) -> bool:
        """Whether another has overtaken this one, as far as is known."""
        return self._why_lost is not None

    def release(self) -> None:
        """Let the next one in at once; nothing happens where the lease is lost."""
        self._released.set()
        self._keeper.join()
        if not self.is_lost and _newest(self._directory) == self._number:
            self._write(released=True)

    def _keep(self) -> None:
        renewed_at = time.monotonic()
        while not self._released.wait(self._seconds / _BEATS):
            try:
                self.check()
                self._write(released=False)
                renewed_at = time.monotonic()
            except ArtifactError as error:
                # Storage may be away for a moment; others wait as long as the lease lasts.
                if not self.is_lost and time.monotonic() - renewed_at < self._seconds / 2:
                    continue
                self._why_lost = self._why_lost or f"it could not be renewed ({error})"
                # A signal, since nothing else reaches a thread that waits in a system call.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _write(self, *, released: bool) -> None:
        self._num_beats += 1
        record = _record(beat=self._num_beats, released=released)
        self._directory.write_bytes(_name(self._number), record)


@contextmanager
def hold(
    directory: Directory, *, say: Callable[[str], None], seconds: float = LEASE_SECONDS
) -> Iterator[Lease]:
    """Hold the lease of `directory`, after waiting for it where another holds it.

    In the main thread, which is interrupted when the lease is lost: that a process was stopped for
    longer than a lease lasts is found a moment later, so what two may not do at the same time,
    such as committing an artifact, comes after `Lease.check`.

    Args:
        directory: On a local or shared disk; an object store has no exclusive create here.
        say: Shows a line to the one who waits.
        seconds: How long a lease lasts without being renewed.

    Raises:
        UnavailableError: The lease was lost to another process.
    """
    lease = Lease(directory, _acquire(directory, say, seconds), seconds=seconds)
    try:
        with _stopping_when_lost(lease):
            yield lease
    finally:
        lease.release()


@contextmanager
def _stopping_when_lost(lease: Lease) -> Iterator[None]:
    """Make the interrupt that the keeper sends an UnavailableError; others stay what they are."""
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: FrameType | None) -> None:
        if lease.is_lost:
            # All that Ray lets out of a call that waits; another error it would lose.
            raise KeyboardInterrupt
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    except KeyboardInterrupt:
        lease.check()
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _acquire(directory: Directory, say: Callable[[str], None], seconds: float) -> int:
    """The number that this process created."""
    seen: tuple[int, bytes] | None = None
    seen_at = time.monotonic()
    while True:
        number = _newest(directory)
        content = _read(directory, number)
        now = time.monotonic()
        if (number, content) != seen:
            if (seen is None or seen[0] != number) and not _is_free(number, content):
                say(f"{_holder(content)} is at work in {directory.uri}: waiting for it")
            seen, seen_at = (number, content), now
        if _is_free(number, content) or now - seen_at >= seconds:
            if directory.create(_name(number + 1), _record(beat=0, released=False)):
                return number + 1
            continue
        time.sleep(seconds / _BEATS / 4)


def _is_free(number: int, content: bytes) -> bool:
    return number == 0 or bool(_values(content).get("released"))


def _newest(directory: Directory) -> int:
    """The highest number there; 0 where there is none. What others have put there is left alone."""
    matches = [_NAME.fullmatch(name) for name in directory.files(_FOLDER)]
    return max((int(match["number"]) for match in matches if match), default=0)


def _name(number: int) -> str:
    return f"{_FOLDER}/{number:06d}.json"


def _read(directory: Directory, number: int) -> bytes:
    return directory.read_bytes(_name(number)) if number else b""


def _record(*, beat: int, released: bool) -> bytes:
    values = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "beat": beat,
        "released": released,
        # A process may have the number of one that died, on a machine of the same name.
        "nonce": uuid4().hex,
    }
    return json.dumps(values).encode()


def _values(content: bytes) -> dict[str, Any]:
    """What a record says; nothing where its writer has not written it, or not all of it."""
    try:
        values: dict[str, Any] = json.loads(content)
    except ValueError:
        return {}
    return values


def _holder(content: bytes) -> str:
    values = _values(content)
    return f"process {values['pid']} on {values['host']}" if values else "a process"
