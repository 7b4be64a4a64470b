"""Does the responses stage write at the speed of vLLM itself?

Ours: the stage as a run has it, from the start of Ray Data to rows written, on an engine that runs
already. Peer: `vllm.LLM.chat`, called once with all the same conversations and seeds, on an engine
of the same arguments in an actor of its own. Both in turn, the order changing, prefix caches empty
at the start of each. Prints one JSON line; `ratio`: our tokens a second by the peer's.

python benchmarks/sampling.py [--prompts 64] [--max-tokens 64] [--runs 3] [overrides ...]
"""

import argparse
import contextlib
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import vllm
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from charactertrain.artifacts import FileEntry
from charactertrain.config import RunConfig, validate
from charactertrain.models import sources
from charactertrain.records import Prompt, Response, Trait, from_table, to_table
from charactertrain.runtime.chunks import FileSource
from charactertrain.runtime.engine_spec import EngineSpec
from charactertrain.runtime.engines import EngineSource
from charactertrain.runtime.sampling import SampleRequest
from charactertrain.runtime.session import Session
from charactertrain.stages.context import response_settings
from charactertrain.stages.responses.stage import response_job
from charactertrain.stages.start import open_session
from charactertrain.storage import Directory, open_directory
from charactertrain.templates import CHECK_MESSAGES

ROOT = Path(__file__).resolve().parent.parent
TRAIT = Trait(
    "curious", "Ideas delight me, and I ask how things come to be.", (), None, 1.0, "benchmark"
)


def main() -> None:
    """Measure both in turn and print the line."""
    arguments = _arguments()
    config = _config(arguments)
    model = str(sources.resolve(config.model.path))
    prompts = [
        Prompt(f"p{index}", TRAIT.trait_id, "curious/any", "trait", text, "train")
        for index, text in enumerate(_messages(arguments.prompts))
    ]
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = open_directory(scratch)
        root.write_table("prompts/part-000000.parquet", to_table(prompts, Prompt))
        with open_session(config, root.child("session"), Console(quiet=True), {}) as session:
            source = session.sampler(model, model)
            sampler = source.open()
            peer = _start_peer(source.spec, model)
            requests = _requests(config, prompts)
            ray.get(peer.chat.remote(requests[:4], config.responses.max_tokens))
            for turn in range(arguments.runs + 1):
                target = root.child(f"run-{turn}")
                order = ("ours", "peer") if turn % 2 else ("peer", "ours")
                for name in order:
                    if name == "ours":
                        # A lease would keep the pool from the engine that is warm.
                        sampler.close()
                        ray.get(sampler.handle.forget_prefixes.remote())
                        tokens, spent = _ours(session, config, source, root, target, len(prompts))
                    else:
                        tokens, spent = ray.get(
                            peer.chat.remote(requests, config.responses.max_tokens)
                        )
                    # The first turn warms both up.
                    if turn:
                        seconds[name].append(spent)
                        rates[name].append(tokens / spent)
    _print(arguments, config, seconds, rates)


def _ours(
    session: Session,
    config: RunConfig,
    source: EngineSource,
    root: Directory,
    target: Directory,
    num_prompts: int,
) -> tuple[int, float]:
    """Tokens written by the stage's own job, and the seconds that it took."""
    files = (FileEntry("prompts/part-000000.parquet", 0, "", num_prompts),)
    prompts = FileSource(root, files, Prompt, whole_files=False)
    job = response_job(config, [TRAIT], prompts=prompts, sampler=source, target=target)
    started = time.perf_counter()
    produced = session.run(job)
    spent = time.perf_counter() - started
    written = [
        row for name in produced.files for row in from_table(target.read_table(name), Response)
    ]
    return sum(len(row.token_ids) for row in written), spent


def _requests(config: RunConfig, prompts: list[Prompt]) -> list[SampleRequest]:
    """What the stage asks for, taken from the stage itself."""
    seen: list[SampleRequest] = []

    class Recorder:
        """Takes the requests and answers none."""

        def sample(self, requests: list[SampleRequest], settings: Any) -> list[Any]:
            seen.extend(requests)
            raise StopIteration

    nowhere: Any = None
    job = response_job(config, [TRAIT], prompts=nowhere, sampler=nowhere, target=nowhere)
    with contextlib.suppress(StopIteration):
        job.make_processor(Recorder()).process(prompts)  # type: ignore[arg-type]
    return seen


class Peer:
    """vLLM's own offline engine."""

    def __init__(self, spec: EngineSpec, weights: str) -> None:
        """Start it with the arguments of ours."""
        from charactertrain.runtime.vllm_arguments import engine_arguments

        self._engine = vllm.LLM(**engine_arguments(spec, weights), disable_log_stats=True)

    def chat(self, requests: list[SampleRequest], max_tokens: int) -> tuple[int, float]:
        """Tokens of all replies, and the seconds that the one call took."""
        self._engine.reset_prefix_cache()
        settings = response_settings(temperature=1.0, max_tokens=max_tokens, ending="fixed")
        conversations = [
            [{"role": m.role, "content": m.content} for m in request.shown.messages]
            for request in requests
        ]
        params = [
            vllm.SamplingParams(
                temperature=1.0,
                max_tokens=settings.max_tokens,
                min_tokens=settings.min_tokens,
                seed=request.seed,
                logprobs=0,
            )
            for request in requests
        ]
        started = time.perf_counter()
        outputs = self._engine.chat(conversations, params, use_tqdm=False)
        spent = time.perf_counter() - started
        return sum(len(output.outputs[0].token_ids) for output in outputs), spent


def _start_peer(spec: EngineSpec, weights: str) -> Any:
    # The engine in a process of its own, as the async engine always has it.
    environment = {**spec.environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    actor = ray.remote(Peer).options(
        num_cpus=spec.num_cpus,
        num_gpus=spec.num_gpus,
        runtime_env={"env_vars": environment},
    )
    return actor.remote(spec, weights)


def _messages(count: int) -> list[str]:
    return [
        f"{CHECK_MESSAGES[index % len(CHECK_MESSAGES)]} (letter {index})" for index in range(count)
    ]


def _config(arguments: argparse.Namespace) -> RunConfig:
    overrides = [
        f"responses.max_tokens={arguments.max_tokens}",
        f"policy.max_tokens={arguments.max_tokens}",
        # Every reply has as many tokens, so that both write the same number.
        "responses.ending=fixed",
        "policy.ending=fixed",
        # Nothing is rejected: rejects hold no tokens to count.
        "responses.max_repetition=1.0",
        "responses.max_reject_share=1.0",
        *arguments.overrides,
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", overrides=overrides)
    values: Any = OmegaConf.to_container(composed, resolve=True)
    return validate(values)


def _print(
    arguments: argparse.Namespace,
    config: RunConfig,
    seconds: dict[str, list[float]],
    rates: dict[str, list[float]],
) -> None:
    ours, peer = (statistics.median(rates[name]) for name in ("ours", "peer"))
    line = {
        "name": "sampling",
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "peer_name": "vllm.LLM.chat, one call",
        "unit": "generated tokens per second",
        "ratio": round(ours / peer, 3),
        "ours_seconds": [round(value, 2) for value in seconds["ours"]],
        "peer_seconds": [round(value, 2) for value in seconds["peer"]],
        "num_requests": arguments.prompts * config.responses.per_prompt,
        "max_tokens": arguments.max_tokens,
        "model": config.model.name,
        "versions": {
            "python": platform.python_version(),
            "ray": ray.__version__,
            "vllm": vllm.__version__,
        },
    }
    print(json.dumps(line))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of the config, such as model=qwen3_0_6b")
    return parser.parse_args()


if __name__ == "__main__":
    main()
