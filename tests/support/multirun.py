"""Multiruns of the command line, against what stands in for a cluster."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from jobs_server import command

Server = TypeVar("Server")

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Multirun(Generic[Server]):
    """Starts multiruns in a directory of their own."""

    directory: Path
    server: Server
    arguments: tuple[str, ...]
    """Of all of them: the launcher, and the run."""

    def start(
        self, *overrides: str, python_path: str = ""
    ) -> "AbstractContextManager[subprocess.Popen[str]]":
        """A multirun with these overrides too."""
        arguments = [sys.executable, "-m", "charactertrain", "-m", *self.arguments, *overrides]
        paths = [str(_ROOT), python_path, os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(text for text in paths if text)
        more = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}
        return command(arguments, cwd=self.directory, env={**os.environ, **more})

    def run(self, *overrides: str, python_path: str = "") -> tuple[int, str]:
        """Its exit status and what it printed."""
        with self.start(*overrides, python_path=python_path) as process:
            output, _ = process.communicate(timeout=120)
        return process.returncode, output
