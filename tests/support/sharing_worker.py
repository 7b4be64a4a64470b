"""A run of two small stages that shares its artifacts; started by tests, which kill it.

Arguments: the run directory, the share, the stage at whose second chunk to stay, or `none`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from charactertrain import pipeline
from charactertrain.artifacts import Outcome
from charactertrain.pipeline import Share, Stage, Work
from charactertrain.storage import open_directory

STAGES = (
    Stage("prompts", (), {"seed": 1}, {}, "3 chunks"),
    Stage("responses", ("prompts",), {"seed": 1}, {}, "3 chunks"),
)
CHUNKS = ("0.txt", "1.txt", "2.txt")


def writer(stays_at: str) -> Callable[[Work], Outcome]:
    """A stage's implementation that writes chunks, and skips those that are there."""

    def write(work: Work) -> Outcome:
        for index, name in enumerate(CHUNKS):
            if work.directory.exists(name):
                continue
            if index == 1 and work.stage.name == stays_at:
                print("staying", flush=True)
                time.sleep(600)
            with (Path(sys.argv[2]) / "made").open("a") as log:
                log.write(f"{work.stage.name}/{name}\n")
            work.directory.write_bytes(name, name.encode())
        return Outcome(CHUNKS)

    return write


def main() -> None:
    """Run both stages."""
    directory = open_directory(sys.argv[1])
    share = Share(open_directory(sys.argv[2]), print, lease_seconds=2)
    for step in pipeline.make_plan(STAGES, directory, only=None, until=None):
        pipeline.execute(step, directory, writer(sys.argv[3]), code_version="1", share=share)


if __name__ == "__main__":
    main()
