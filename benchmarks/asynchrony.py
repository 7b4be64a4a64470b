"""What does writing ahead bring, and what does it cost, on a run's own workload?

Takes a finished run's artifacts up to the preference model and trains its policy twice in turn:
synchronously (`policy.max_staleness=0`), and with engines that write ahead while a step is trained.
Steps, prompts and seeds are the same, so both see equally many samples. Prints one JSON line;
`ratio`: seconds a step of the synchronous run by those of the other. `reward`: what the held-out
reward of the last reading is above the first, and the difference of the two runs with its interval
over prompts, by which equal rewards at equal samples can be told.

python benchmarks/asynchrony.py RUN [--staleness 1] [--overrides experiment=demo]

`--overrides` are those of the run, but for run.dir. Where trainer and engine share their cores, as
on a CPU, there is nothing to be gained.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from charactertrain.stages.definitions import NAMES
from charactertrain.statistics.bootstrap import cluster_bootstrap_difference

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 1
"""Steps left out: engines and workers start beside the first."""


def main() -> None:
    """Train both and print the line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--overrides", nargs="*", default=["experiment=demo"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="asynchrony-") as temporary:
        sides = {
            name: _trained(arguments, Path(temporary) / name, staleness)
            for name, staleness in (("synchronous", 0), ("ahead", arguments.staleness))
        }
    found = {name: _measured(trained) for name, trained in sides.items()}
    print(json.dumps(_line(arguments, found)))


def _trained(arguments: argparse.Namespace, directory: Path, staleness: int) -> dict[str, Any]:
    """Optimisation steps and readings of a policy that is trained anew."""
    for stage in NAMES[: NAMES.index("policy")]:
        shutil.copytree(arguments.run / stage, directory / stage)
    settings = [f"run.dir={directory}", "run.only=policy", f"policy.max_staleness={staleness}"]
    subprocess.run(
        [sys.executable, "-m", "charactertrain", *arguments.overrides, *settings],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=sys.stderr,
        check=True,
    )
    return {
        name: json.loads((directory / "policy" / f"{name}.json").read_text())
        for name in ("optimise", "watch")
    }


def _measured(trained: dict[str, Any]) -> dict[str, Any]:
    steps = [row for row in trained["optimise"] if row["step"] > WARM_UP]
    first, last = trained["watch"]["readings"][0], trained["watch"]["readings"][-1]
    return {
        "seconds": statistics.median(row["seconds"] for row in steps),
        "phases": {
            phase: round(statistics.median(row[f"{phase}_seconds"] for row in steps), 3)
            for phase in ("sample", "train", "sync", "probe")
        },
        "max_staleness": max(row["max_staleness"] for row in steps),
        "steps": len(steps),
        "rise": last["reward"] - first["reward"],
        "rewards_by_prompt": last["rewards_by_prompt"],
    }


def _line(arguments: argparse.Namespace, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    synchronous, ahead = found["synchronous"], found["ahead"]
    rewards = (
        {prompt: [reward] for prompt, reward in side["rewards_by_prompt"].items()}
        for side in (synchronous, ahead)
    )
    difference = cluster_bootstrap_difference(*rewards, num_resamples=2000, seed=0)
    return {
        "name": "asynchrony",
        "ours": round(ahead["seconds"], 3),
        "peer": round(synchronous["seconds"], 3),
        "peer_name": "the same loop, synchronous",
        "unit": "seconds a step",
        "ratio": round(synchronous["seconds"] / ahead["seconds"], 3),
        "phases": {name: side["phases"] for name, side in found.items()},
        "steps": ahead["steps"],
        "max_staleness": ahead["max_staleness"],
        "reward": {
            "rise_synchronous": round(synchronous["rise"], 4),
            "rise_ahead": round(ahead["rise"], 4),
            "difference": round(difference.difference, 4),
            "interval": [round(difference.ci_low, 4), round(difference.ci_high, 4)],
            "prompts": difference.num_clusters,
        },
        "overrides": arguments.overrides,
        "device": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("ray", "torch", "deepspeed")},
    }


if __name__ == "__main__":
    main()
