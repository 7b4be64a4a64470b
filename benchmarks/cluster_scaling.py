"""How does the whole loop scale with nodes, and what gives way first?

Simulated nodes: each is a fake engine that takes as long as one of the given rates would, and its
share of a trainer that sleeps as long as a step of the given rate would; with them grow prompts
and prompts in a step (weak scaling). All of it is on this machine, under one raylet: measured is
what driver, Ray Data, broker, rollout buffer and ledger, leases and calls do beside engines and
trainers, and neither networks nor Ray between nodes. Everything but engines and trainer is what a
run has: the stages responses, rankings and pairs by the pipeline, on prompts of a file, since no
filter takes the fake sampler's for messages; then policy steps by the rollout buffer with
`RolloutEngines`, as rank 0 has them.

Efficiency is the time at the fewest nodes by that at the most, where ideally they are equal: of the
data stages by their wall time after engines have started, of the policy by the mean step. The
preference model has one engine in a run however many nodes there are; `--scored` simulates it at
the engines' rate, and otherwise rewards take no time. Prints one JSON line; `ratio`: the lower of
the two efficiencies. `first_bottleneck`: the part whose time has grown by the most seconds.

python benchmarks/cluster_scaling.py [--nodes 1 4 16] [--parts data policy] [--scored]
"""

import argparse
import importlib
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import ray
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from charactertrain import pipeline
from charactertrain.config import RunConfig, validate
from charactertrain.models import sources
from charactertrain.models.sources import model_identity
from charactertrain.records import Prompt
from charactertrain.runtime.fake_sampler import FakeSource
from charactertrain.runtime.placement import beside_the_driver
from charactertrain.runtime.sampling import SamplerSource, SamplingSettings
from charactertrain.runtime.session import Session
from charactertrain.stages.context import Context
from charactertrain.stages.definitions import define
from charactertrain.stages.policy.ledger import LedgerSettings
from charactertrain.stages.policy.rollout_buffer import BufferSettings, RolloutBuffer, Taken
from charactertrain.stages.policy.rollout_engines import RolloutEngines
from charactertrain.stages.policy.rollouts import RolloutSettings
from charactertrain.stages.preference_model.ensemble import EnsembleReward
from charactertrain.stages.prompts.stream import PromptStream
from charactertrain.stages.start import open_session
from charactertrain.storage import Directory, open_directory
from charactertrain.trait_file import load_constitution

ROOT = Path(__file__).resolve().parent.parent
MODEL = "tiny_random"
"""Of its tokenizer alone."""
DATA_STAGES = ("responses", "rankings", "pairs")
TRAITS = ("enthusiastic", "uncertain", "scientific")
"""Of the constitution `demo`."""
HELD_OUT = {0: "test", 1: "validation"}
"""Splits of the first two of eight prompts; the others are trained on."""
GROUP_SIZE = 4
AHEAD = 1
_TIMES = {"data": "data_seconds", "policy": "step_seconds"}
"""What efficiency is of, by part."""
WARM_UP = 1
"""Policy steps that are left out."""
TRAINED_TOKENS_PER_SECOND = 2000.0
"""Of a node's share of the trainer."""
UPDATE_SECONDS = 0.5
"""Of weights on their way, whatever the number of engines."""


def main() -> None:
    """Measure each number of nodes and print the line."""
    arguments = _arguments()
    measured = {}
    for nodes in arguments.nodes:
        with tempfile.TemporaryDirectory() as scratch:
            measured[nodes] = _measure(nodes, arguments, open_directory(scratch))
    fewest, most = measured[min(measured)], measured[max(measured)]
    efficiency = {part: fewest[_TIMES[part]] / most[_TIMES[part]] for part in arguments.parts}
    worst = min(efficiency, key=efficiency.__getitem__)
    line = {
        "name": "cluster_scaling",
        "ours": round(efficiency[worst], 3),
        "peer": 1.0,
        "peer_name": f"linear from {min(measured)} to {max(measured)} simulated nodes",
        "unit": f"efficiency of the {worst} part",
        "ratio": round(efficiency[worst], 3),
        "efficiency": {part: round(value, 3) for part, value in efficiency.items()},
        "first_bottleneck": _grown_most(fewest["seconds"], most["seconds"]),
        "by_nodes": measured,
        "rewards": "one engine" if arguments.scored else "no time",
        "device": f"{platform.processor() or platform.machine()}, one machine",
        "versions": {"python": platform.python_version(), "ray": ray.__version__},
    }
    print(json.dumps(line))


def _grown_most(fewest: Mapping[str, float], most: Mapping[str, float]) -> str:
    """The stage, or phase of a step, that takes the most seconds more."""
    more: dict[str, float] = {name: most[name] - fewest[name] for name in fewest}
    return max(more, key=more.__getitem__)


def _measure(nodes: int, arguments: argparse.Namespace, directory: Directory) -> dict[str, Any]:
    config = _config(nodes, arguments, directory)
    with open_session(config, directory, Console(quiet=True), {}) as session:
        model = str(sources.resolve(MODEL))
        source = session.sampler(model, model)
        started = time.perf_counter()
        samplers = [source.open() for _ in range(nodes)]
        session.end_leases()
        start_seconds = time.perf_counter() - started
        found: dict[str, Any] = {"start_seconds": round(start_seconds, 1), "seconds": {}}
        if "data" in arguments.parts:
            stages = _data_stages(config, session, directory)
            found |= {_TIMES["data"]: round(sum(stages.values()), 2)}
            found["seconds"] |= stages
        del samplers
        if "policy" in arguments.parts:
            phases, values = _policy_steps(nodes, arguments, session, model)
            found |= values
            found["seconds"] |= phases
    return found


def _data_stages(config: RunConfig, session: Session, directory: Directory) -> dict[str, float]:
    """Wall seconds of each, as their manifests have them."""
    constitution = load_constitution(config.constitution, shipped_dir=ROOT / "constitutions")
    context = Context(config, constitution, session)
    steps = pipeline.make_plan(
        define(config, constitution, model_identity), directory, only=None, until="pairs"
    )
    seconds = {}
    for step in steps:
        stage = importlib.import_module(f"charactertrain.stages.{step.stage.name}.stage")
        implementation = partial(stage.run, context=context)
        manifest = pipeline.execute(step, directory, implementation, code_version="benchmark")
        session.end_leases()
        if step.stage.name in DATA_STAGES:
            seconds[step.stage.name] = round(manifest.wall_seconds, 2)
    return seconds


def _policy_steps(
    nodes: int, arguments: argparse.Namespace, session: Session, model: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Means over the steps, of what rank 0 waits for and of the whole.

    Not medians: with groups a step ahead, steps that wait and steps that do not come in turn.
    """
    rewards: SamplerSource = FakeSource()
    if arguments.scored:
        rewards = session.sampler("preference model", "preference model")
    settings = _buffer_settings(nodes, arguments, rewards)
    buffer: Any = ray.remote(RolloutBuffer)
    buffer = buffer.options(num_cpus=0, scheduling_strategy=beside_the_driver())
    buffer = buffer.remote(settings, model)
    engines = RolloutEngines([session.sampler(model, model)] * nodes, buffer, None)
    engines.load(Path(model), 0)
    engines.serve(0)
    steps = []
    for step in range(arguments.steps + WARM_UP):
        started = time.perf_counter()
        taken = engines.take()
        waited = time.perf_counter()
        time.sleep(_tokens(taken) / (nodes * TRAINED_TOKENS_PER_SECOND))
        trained = time.perf_counter()
        time.sleep(UPDATE_SECONDS)
        engines.load(Path(model), step + 1)
        engines.serve(step + 1)
        ended = time.perf_counter()
        phases = {"sample": waited - started, "train": trained - waited, "sync": ended - trained}
        steps.append({"seconds": ended - started, "tokens": _tokens(taken), **phases})
    engines.close()
    ray.kill(buffer)
    found = {name: fmean(step[name] for step in steps[WARM_UP:]) for name in steps[0]}
    phases = {name: round(found[name], 2) for name in ("sample", "train", "sync")}
    return phases, {
        _TIMES["policy"]: round(found["seconds"], 2),
        "responses_per_second": round(nodes * arguments.prompts * GROUP_SIZE / found["seconds"], 2),
        "tokens_per_step": round(found["tokens"]),
    }


def _tokens(taken: Taken) -> int:
    if taken.batch is None:
        raise SystemExit(f"no rollouts: {taken.error or 'engines were lost'}")
    return sum(
        len(rollout.prompt_token_ids) + len(rollout.token_ids)
        for group in taken.batch.groups
        for rollout in group
    )


def _buffer_settings(
    nodes: int, arguments: argparse.Namespace, rewards: SamplerSource
) -> BufferSettings:
    per_step = nodes * arguments.prompts
    prompts = [
        Prompt(f"p{i}", "curious", f"curious/{i}", "trait", f"What about number {i}?", "train")
        for i in range(per_step)
    ]
    num_steps = arguments.steps + WARM_UP
    sampling = SamplingSettings(1.0, 1.0, arguments.tokens, 1, ())
    return BufferSettings(
        ledger=LedgerSettings(num_steps, per_step, AHEAD, AHEAD, 0),
        rollouts=RolloutSettings(sampling, GROUP_SIZE, seed=1),
        prompts=PromptStream(prompts, [], general_share=0.0, seed=1),
        reward=EnsembleReward((0.0,), (0.0,), 0.0, "mean", 0.0, None),
        rewards=(rewards,),
        gold=None,
        groups_per_engine=2 * arguments.prompts,
    )


def _config(nodes: int, arguments: argparse.Namespace, directory: Directory) -> RunConfig:
    overrides = [
        "experiment=smoke",
        "sampler=fake",
        "ranker=contrast",
        "rankings.second_opinions=[]",
        f"run.dir={directory.root}",
        "run.until=pairs",
        f"prompts.file={_prompt_file(nodes * arguments.rows, directory)}",
        "prompts.file_use=replace",
        f"responses.max_tokens={arguments.tokens}",
        "responses.ending=natural",
        "policy.ending=natural",
        "policy.general_share=0",
        "prompts.kinds.general=0",
        "prompts.max_similarity=1.0",
        f"cluster.num_cpus={nodes + 6}",
        f"sampler.resources.num_engines=[{nodes},{nodes}]",
        "sampler.resources.max_num_seqs=64",
        "sampler.resources.rows_per_chunk=4",
        # As in data_scaling: 64 sequences at 53 ms a step. Two cores can draw and filter as much.
        "+sampler.latency={prefill_tokens_per_second: 10000, seconds_per_step: 0.04, "
        "seconds_per_sequence: 0.0002}",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", overrides=overrides)
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return validate(values)


def _prompt_file(count: int, directory: Directory) -> str:
    """So many prompts, of each trait in turn."""
    rows = [
        {
            "text": f"Matter {number}: what would you do about it, and why?",
            "trait_id": TRAITS[number % len(TRAITS)],
            "split": HELD_OUT.get(number // len(TRAITS) % 8, "train"),
        }
        for number in range(count)
    ]
    directory.write_bytes("own.jsonl", "\n".join(map(json.dumps, rows)).encode())
    return str(directory.local_path / "own.jsonl")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--parts", nargs="+", choices=_TIMES, default=list(_TIMES))
    parser.add_argument("--rows", type=int, default=48, help="prompts of a node")
    parser.add_argument("--prompts", type=int, default=8, help="of a policy step and node")
    parser.add_argument("--tokens", type=int, default=200, help="most of a response")
    parser.add_argument(
        "--steps", type=int, default=4, help="of the policy, that are measured; an even number"
    )
    parser.add_argument("--scored", action="store_true", help="simulate the preference model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
