"""A process that works under a lease; started by tests, which kill or stop it.

Arguments: the directory, seconds of a lease, how often to work, seconds of each piece of work.
Prints `held` when it begins each piece and `done` when it ends, and leaves what it found in a log.
"""

import os
import sys
import time
from pathlib import Path

from charactertrain.exceptions import ArtifactError
from charactertrain.leases import hold
from charactertrain.storage import open_directory


def work(location: str, seconds: float, repeats: int, work_seconds: float) -> None:
    """Work, and fail where another is at work at the same time."""
    mark = Path(location) / "at-work"
    for _ in range(repeats):
        with hold(open_directory(location), say=print, seconds=seconds) as lease:
            mark.open("x").close()
            print("held", flush=True)
            time.sleep(work_seconds)
            lease.check()
            mark.unlink()
            with (Path(location) / "log").open("a") as log:
                log.write(f"{os.getpid()}\n")
        print("done", flush=True)


if __name__ == "__main__":
    try:
        work(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    except ArtifactError as error:
        print(f"lost: {error}", flush=True)
        sys.exit(2)
