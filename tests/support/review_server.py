"""The review page's server as its command starts it, in a process of its own."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

from charactertrain.storage import Directory


def started(run: Directory, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "charactertrain.review", run.uri, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def links(output: IO[str] | None, count: int) -> Iterator[str]:
    assert output is not None
    while count:
        line = output.readline()
        assert line, "the server ended before it printed its links"
        if found := re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line):
            count -= 1
            yield found[0]
