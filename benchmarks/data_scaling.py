"""How does the responses stage scale with the number of engines, on one machine?

Simulated engines (`FakeEngine`) with the rates of a 70B model on a few GPUs, as many rows for each;
everything else is the stage as a run has it: Ray Data, leases, remote calls, filters, parquet.
Efficiency is rows a second at the most engines by those at one times their number, over the part of
the run in which all workers are at work. Prints one JSON line; `ratio`: efficiency.

python benchmarks/data_scaling.py [--engines 1 8 64] [--rows-per-engine 160]
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from charactertrain.config import RunConfig, validate
from charactertrain.records import Prompt, Trait
from charactertrain.runtime.chunks import ComputedSource
from charactertrain.runtime.dataflow import run_chunks
from charactertrain.stages.responses.stage import response_job
from charactertrain.stages.start import open_session
from charactertrain.storage import Directory, open_directory

ROOT = Path(__file__).resolve().parent.parent
TRAIT = Trait("curious", "Ideas delight me, and I ask.", (), None, 1.0, "benchmark")
WINDOW = (0.3, 0.9)
"""Of the rows: before, workers are starting; after, engines run empty."""


class Prompts:
    """So many prompts, computed."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Prompt:
        text = f"What should I know about number {index} before I decide?"
        return Prompt(f"p{index}", TRAIT.trait_id, "curious/any", "trait", text, "train")


def main() -> None:
    """Measure each number of engines and print the line."""
    arguments = _arguments()
    measured = {}
    for num_engines in arguments.engines:
        config = simulated_config(num_engines, max_tokens=600)
        with tempfile.TemporaryDirectory() as scratch:
            measured[num_engines] = _measure(
                config,
                num_engines,
                arguments.rows_per_engine * num_engines,
                open_directory(scratch),
            )
    fewest, most = min(measured), max(measured)
    efficiency = measured[most]["rows_per_second"] / measured[fewest]["rows_per_second"]
    line = {
        "name": "data_scaling",
        "ours": measured[most]["rows_per_second"],
        "peer": measured[fewest]["rows_per_second"],
        "peer_name": f"{fewest} engine, scaled to {most}",
        "unit": "responses per second",
        "ratio": round(efficiency * fewest / most, 3),
        "by_engines": measured,
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
    }
    print(json.dumps(line))


def _measure(
    config: RunConfig, num_engines: int, num_prompts: int, directory: Directory
) -> dict[str, float]:
    moments: list[float] = []
    with open_session(config, directory, Console(quiet=True), {}) as session:
        source = session.sampler("fake", "fake")
        # Engines start first: a run's engines serve several stages.
        samplers = [source.open() for _ in range(num_engines)]
        session.end_leases()
        job = response_job(
            config,
            [TRAIT],
            prompts=ComputedSource(Prompts(num_prompts)),  # type: ignore[arg-type]
            sampler=source,
            target=directory,
        )
        started = time.perf_counter()
        run_chunks(
            job, session.pool, session.progress, lambda *_: moments.append(time.perf_counter())
        )
        seconds = time.perf_counter() - started
        del samplers
    low, high = (int(share * (len(moments) - 1)) for share in WINDOW)
    rows = (high - low) * config.sampler.resources.rows_per_chunk * config.responses.per_prompt
    return {
        "rows_per_second": round(rows / (moments[high] - moments[low]), 2),
        "seconds": round(seconds, 1),
        "seconds_to_first": round(moments[0] - started, 1),
        "driver_gib": round(psutil.Process().memory_info().rss / 2**30, 2),
    }


def simulated_config(num_engines: int, *more: str, max_tokens: int) -> RunConfig:
    """A run on simulated engines, whose responses have 1 to `max_tokens` tokens."""
    overrides = [
        "sampler=fake",
        "run.until=responses",
        f"cluster.num_cpus={num_engines + 4}",
        f"sampler.resources.num_engines=[{num_engines},{num_engines}]",
        "sampler.resources.max_num_seqs=64",
        "sampler.resources.rows_per_chunk=4",
        f"responses.max_tokens={max_tokens}",
        f"policy.max_tokens={max_tokens}",
        "responses.max_repetition=1.0",
        "responses.max_reject_share=1.0",
        # 64 sequences at 53 ms a step: 1,200 tokens/s. Faster engines, and two cores could not draw
        # and filter what 64 of them write.
        "+sampler.latency={prefill_tokens_per_second: 10000, seconds_per_step: 0.04, "
        "seconds_per_sequence: 0.0002}",
        *more,
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", overrides=overrides)
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return validate(values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rows-per-engine", type=int, default=160)
    return parser.parse_args()


if __name__ == "__main__":
    main()
