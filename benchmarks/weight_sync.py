"""How fast do the trainer's weights reach an engine?

Ours: a whole update as the policy stage sends it, to a vLLM engine that runs: requests paused,
weights written to shared memory, verified, loaded and repacked, requests resumed. Beside it the
transport alone: the same sender, to a process that verifies and copies what comes and has no model.
Peers, each with the same bytes: `raw`, the same shared memory with nothing but a copy into it and
one out of it; `gloo`, torch.distributed's broadcast; `disk`, what one would do without weight
transfer, `save_pretrained` and vLLM's reload. All in turn, medians. Prints one JSON line; `ratio`:
our bytes a second by those of the raw copy, `transport_ratio` the transport's.

python benchmarks/weight_sync.py [--models embedded:smollm2_135m random:1.0] [--runs 5]

`random:G` is a Llama of random weights of about G GiB in fp32. CPU alone.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import ray
import torch
import vllm
from torch import nn
from torch.distributed import FileStore  # type: ignore[attr-defined]  # it is there
from transformers import AutoConfig, LlamaForCausalLM
from vllm.distributed.weight_transfer.base import ParamMeta

from charactertrain.models import loading, sources
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engine_spec import EngineSpec
from charactertrain.runtime.engines import EngineSource, LeasedSampler
from charactertrain.runtime.weight_sync.sender import WeightSender
from charactertrain.runtime.weight_sync.shared_memory import (
    Segment,
    SharedMemoryInitInfo,
    SharedMemoryTrainerEngine,
    SharedMemoryTrainerInitInfo,
    SharedMemoryUpdateInfo,
)
from charactertrain.runtime.weight_sync.source import ZeroWeightSource
from charactertrain.runtime.weights import own_weights
from charactertrain.runtime.worker import process_group_of_one

BROKER = "benchmark-engines"
PART_BYTES = 64 * 2**20
Send = Callable[[], None]


def main() -> None:
    """Measure all models and print the line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["embedded:smollm2_135m", "random:1.0"])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    by_model = {}
    with process_group_of_one(), tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models:
            directory = _directory(name, Path(scratch))
            by_model[name] = _measure(directory, Path(scratch) / "saved", arguments.runs)
    ray.shutdown()
    first = by_model[arguments.models[0]]
    line = {
        "name": "weight_sync",
        "ours": first["gb_per_second"]["ours"],
        "peer": first["gb_per_second"]["raw"],
        "peer_name": "a copy through the same shared memory",
        "unit": "GB per second",
        "ratio": first["ratio"],
        "transport_ratio": first["transport_ratio"],
        "by_model": by_model,
        "device": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "vllm": vllm.__version__},
    }
    print(json.dumps(line))


def _directory(name: str, scratch: Path) -> Path:
    kind, _, size = name.partition(":")
    if kind != "random":
        return sources.resolve(name)
    tiny = sources.resolve(sources.TINY_RANDOM)
    config = AutoConfig.from_pretrained(tiny)
    config.hidden_size, config.intermediate_size, config.head_dim = 2048, 8192, 128
    config.num_attention_heads, config.num_key_value_heads = 16, 4
    config.num_hidden_layers = 1
    layer = sum(p.numel() for p in LlamaForCausalLM(config).model.layers.parameters())
    config.num_hidden_layers = max(1, round(float(size) * 2**30 / 4 / layer))
    directory = scratch / name.replace(":", "-")
    LlamaForCausalLM(config).save_pretrained(directory)
    loading.load_tokenizer(tiny).save_pretrained(directory)
    return directory


def _measure(directory: Path, saved: Path, runs: int) -> dict[str, Any]:
    model = loading.load_causal_lm(directory, torch.float32)
    num_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    seconds: dict[str, list[float]] = {}
    with (
        _engine(directory) as sampler,
        _transport(model) as transport,
        _raw(model) as raw,
        _gloo(model) as gloo,
    ):
        handle = sampler.handle
        sender = WeightSender(
            own_weights(model), [handle], sampler.spec, rank=0, dtype=torch.float32
        )

        def reload() -> None:
            model.save_pretrained(saved)
            ray.get(handle.load.remote(str(saved), "saved"))

        sides: dict[str, Send] = {
            "ours": lambda: sender.send("benchmark"),
            "transport": transport,
            "raw": raw,
            "gloo": gloo,
            "disk": reload,
        }
        for turn in range(runs + 1):
            for name, send in sides.items() if turn % 2 else reversed(sides.items()):
                started = time.perf_counter()
                send()
                # The first touches every page for the first time.
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
        sender.close()
    rates = {name: num_bytes / statistics.median(found) / 1e9 for name, found in seconds.items()}
    return {
        "bytes": num_bytes,
        "seconds": {name: round(statistics.median(found), 3) for name, found in seconds.items()},
        "gb_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["raw"], 3),
        "transport_ratio": round(rates["transport"] / rates["raw"], 3),
        "gloo_ratio": round(rates["ours"] / rates["gloo"], 3),
        "disk_ratio": round(rates["ours"] / rates["disk"], 3),
    }


@contextmanager
def _engine(directory: Path) -> Iterator[LeasedSampler]:
    """An engine with the model."""
    broker: Any = ray.remote(EngineBroker).options(name=BROKER, num_cpus=0, max_concurrency=9)
    broker = broker.remote(1)
    spec = EngineSpec(
        kind="generate",
        architecture=str(directory),
        precision="fp32",
        context_tokens=128,
        tensor_parallel_size=1,
        max_num_seqs=8,
        memory_fraction=0.2,
        kv_cache_gib=0.25,
        eager=True,
        num_cpus=1.0,
        num_gpus=0.0,
        node_group=None,
        threads=os.cpu_count() or 1,
        latency=None,
        run="benchmark",
    )
    yield EngineSource(BROKER, spec, str(directory)).open_for_training()
    ray.get(broker.shutdown.remote())
    ray.kill(broker)


# What is at the other end of a pipe: a process that does what it is told


def _metadata(names: list[str], dtypes: list[str], shapes: list[list[int]]) -> list[ParamMeta]:
    return [
        ParamMeta(name, getattr(torch, dtype), tuple(shape))
        for name, dtype, shape in zip(names, dtypes, shapes, strict=True)
    ]


def _receive(pipe: Any) -> None:
    """Verify and copy each part that is announced."""
    info = SharedMemoryInitInfo(**pipe.recv())
    segment = Segment(info.path, _metadata(info.names, info.dtypes, info.shapes))
    own = [torch.empty_like(tensor) for tensor in segment.tensors]
    pipe.send("mapped")
    while (values := pipe.recv()) is not None:
        part = SharedMemoryUpdateInfo(**values)
        if part.checksum:
            assert segment.checksum(part.first, part.last) == part.checksum
        for place in range(part.first, part.last):
            own[place].copy_(segment.tensors[place])
        pipe.send("copied")


def _broadcast(pipe: Any, rank: int, path: str, sizes: list[int]) -> None:
    """Take part in broadcasts of buffers of so many bytes."""
    store = FileStore(path, 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    own = [torch.zeros(size, dtype=torch.uint8) for size in sizes]
    while pipe.recv() is not None:
        for buffer in own:
            torch.distributed.broadcast(buffer, src=0)
        pipe.send("done")


@contextmanager
def _child(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """The pipe to a process that runs `target`."""
    context = multiprocessing.get_context("spawn")
    pipe, far = context.Pipe()
    process = context.Process(target=target, args=(far, *arguments), daemon=True)
    process.start()
    yield pipe
    pipe.send(None)
    process.join()


@dataclass
class PipeClient:
    """vLLM's client of the four phases, for a process that only copies."""

    pipe: Any

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Rendezvous."""
        self.pipe.send(init_info)
        self.pipe.recv()

    def start_weight_update(self) -> None:
        """Nothing runs that would have to pause."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Verify and copy."""
        self.pipe.send(update_info)
        self.pipe.recv()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing has to be repacked."""


@contextmanager
def _transport(model: nn.Module) -> Iterator[Send]:
    with _child(_receive) as pipe:
        engine = SharedMemoryTrainerEngine.trainer_init(
            SharedMemoryTrainerInitInfo(rank=0),
            client=PipeClient(pipe),
            source=ZeroWeightSource(own_weights(model), torch.float32),
        )
        yield engine.send_weights


@contextmanager
def _raw(model: nn.Module) -> Iterator[Send]:
    """Copies into and out of shared memory, part by part, both at a time."""
    metadata = ZeroWeightSource(own_weights(model), torch.float32).metadata()
    weights = [parameter.detach() for parameter in model.parameters()]
    with _child(_receive) as pipe, tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(sum(4 * weight.numel() + PART_BYTES // len(weights) for weight in weights))
        segment = Segment(file.name, metadata)
        pipe.send(
            {
                "path": file.name,
                "memory": "",
                "names": [meta.name for meta in metadata],
                "dtypes": ["float32"] * len(metadata),
                "shapes": [list(meta.shape) for meta in metadata],
            }
        )
        pipe.recv()

        def send() -> None:
            num_sent = 0
            for first, last in segment.parts(PART_BYTES):
                for place in range(first, last):
                    segment.tensors[place].copy_(weights[place])
                pipe.send({"first": first, "last": last, "checksum": ""})
                num_sent += 1
            for _ in range(num_sent):
                pipe.recv()

        yield send


@contextmanager
def _gloo(model: nn.Module) -> Iterator[Send]:
    """A broadcast from one process to another, which both hold as many bytes as the model."""
    num_bytes = sum(
        parameter.numel() * parameter.element_size() for parameter in model.parameters()
    )
    sizes = [min(PART_BYTES, num_bytes - start) for start in range(0, num_bytes, PART_BYTES)]
    with tempfile.TemporaryDirectory() as scratch:
        path = f"{scratch}/store"
        with (
            _child(_broadcast, 0, path, sizes) as source,
            _child(_broadcast, 1, path, sizes) as end,
        ):

            def send() -> None:
                for pipe in (source, end):
                    pipe.send("begin")
                for pipe in (source, end):
                    pipe.recv()

            yield send


if __name__ == "__main__":
    main()
