"""The review page's server as its command starts it, in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from charactertrain.storage import Directory


@contextmanager
def started(run: Directory, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The server of a run; it is killed at the end, also of a test that failed."""
    command = [sys.executable, "-m", "charactertrain.review", run.uri, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            yield server
        finally:
            server.kill()


def links(output: IO[str] | None, count: int) -> Iterator[str]:
    assert output is not None
    while count:
        line = output.readline()
        assert line, "the server ended before it printed its links"
        if found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line):
            count -= 1
            yield found[0]
