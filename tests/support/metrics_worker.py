"""A process that logs steps of a policy to a run directory, and may be killed as it does.

Arguments: the run directory, the first step, the one after the last, and what happens then: `kill`,
`finish`, or before them `lose-wandb`, whose processes are killed.
"""

import os
import signal
import sys
from pathlib import Path

import psutil
from metric_logs import open_log
from rich.console import Console


def main() -> None:
    """Log the steps."""
    directory, first, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    log = open_log(directory, Console(width=500), wandb_mode="offline")
    log.start()
    if sys.argv[4] == "lose-wandb":
        for child in psutil.Process().children(recursive=True):
            child.kill()
            child.wait()
    with log.stage("policy", "f" * 32):
        for step in range(first, end):
            values = {"step": f"{step}/9", "loss": 1.0 / step, "attempt": os.getpid()}
            log.record("policy", values)
    if sys.argv[4] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    log.close()


if __name__ == "__main__":
    main()
