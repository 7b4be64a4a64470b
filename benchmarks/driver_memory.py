"""How much memory does the driver take for a million rows, and how fast do they pass?

The responses stage as a run has it, with samplers that draw words inside the workers in place of
engines: Ray Data, filters, parquet, counts. A row is a response. Prints one JSON line; `ratio`: the
driver's peak memory by the 2 GiB that it must stay under. `growth_kib_per_chunk` is what a finished
chunk leaves in it, from which follows the peak for any number of rows.

python benchmarks/driver_memory.py [--rows 1000000] [--rows-per-chunk 256] [--workers 2]
"""

import argparse
import json
import platform
import tempfile
import time
from dataclasses import dataclass

import psutil
import ray
from data_scaling import TRAIT, Prompts, simulated_config
from rich.console import Console

from charactertrain.config import RunConfig
from charactertrain.runtime.chunks import ComputedSource
from charactertrain.runtime.dataflow import PoolSettings, run_chunks
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.progress import Progress
from charactertrain.stages.responses.stage import response_job
from charactertrain.stages.start import open_session
from charactertrain.storage import Directory, open_directory

LIMIT_GIB = 2.0


@dataclass(frozen=True)
class DrawnSource:
    """A sampler in the worker's own process."""

    def open(self) -> "DrawnSampler":
        """A new one."""
        return DrawnSampler()


class DrawnSampler(FakeSampler):
    """Holds nothing, so nothing is to be closed."""

    def close(self) -> None:
        """Nothing."""


def main() -> None:
    """Run the stage and print the line."""
    arguments = _arguments()
    config = simulated_config(
        arguments.workers,
        # The fewest to a prompt, and all of one length.
        "responses={per_prompt: 2, variants: {none: 0, mild: 0, strong: 1}}",
        "responses.ending=fixed",
        "policy.ending=fixed",
        max_tokens=24,
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = open_directory(scratch)
        with open_session(config, directory.child("session"), Console(quiet=True), {}) as session:
            session.connect()
            memory: list[int] = []
            seconds, num_rows = _run(arguments, config, directory, session.progress, memory)
    # Not ru_maxrss, which begins with that of the process that started this one.
    peak = max(memory) / 2**30
    # Without the first fifth, in which the driver still imports and starts what it needs.
    settled = memory[len(memory) // 5 :]
    growth = (max(settled[-8:]) - min(settled[:8])) / len(settled)
    line = {
        "name": "driver_memory",
        "ours": round(peak, 3),
        "peer": LIMIT_GIB,
        "peer_name": "the limit",
        "unit": "GiB of the driver at its peak",
        "ratio": round(peak / LIMIT_GIB, 3),
        "rows": num_rows,
        "rows_per_second": round(num_rows / seconds),
        "chunks_per_second": round(len(memory) / seconds, 1),
        "growth_kib_per_chunk": round(growth / 2**10, 2),
        "workers": arguments.workers,
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
    }
    print(json.dumps(line))


def _run(
    arguments: argparse.Namespace,
    config: RunConfig,
    directory: Directory,
    progress: Progress,
    memory: list[int],
) -> tuple[float, int]:
    """Seconds, and the rows that were written or rejected; bytes of memory after each chunk."""
    job = response_job(
        config,
        [TRAIT],
        prompts=ComputedSource(Prompts(arguments.rows // 2)),  # type: ignore[arg-type]
        sampler=DrawnSource(),
        target=directory,
    )
    pool = PoolSettings(
        (arguments.workers, arguments.workers), arguments.rows_per_chunk // 2, max_num_seqs=256
    )
    driver = psutil.Process()
    started = time.perf_counter()
    produced = run_chunks(job, pool, progress, lambda *_: memory.append(driver.memory_info().rss))
    return time.perf_counter() - started, produced.num_rows + sum(produced.rejects.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-per-chunk", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
