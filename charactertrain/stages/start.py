"""From a config to a session: the one place where settings become running things."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import PurePosixPath

import xxhash
from rich.console import Console

from charactertrain.config import RunConfig
from charactertrain.config.devices import cpus_at_once
from charactertrain.runtime.engine_spec import Latency
from charactertrain.runtime.metrics import MetricLog
from charactertrain.runtime.session import ClusterSettings, EngineSettings, Session
from charactertrain.runtime.wandb_artifacts import ALIAS_DIGITS
from charactertrain.runtime.wandb_run import WandbSettings
from charactertrain.storage import Directory, without_keys

_WANDB_SECONDS = 60.0
"""Longest to wait for wandb at a run's start, and at its end for what is not sent yet."""


def open_session(
    config: RunConfig, directory: Directory, console: Console, fingerprints: Mapping[str, str]
) -> Session:
    """The session of a run; it starts nothing until a stage asks.

    Args:
        config: Of the run.
        directory: Of the run.
        console: What a person sees.
        fingerprints: Of all its stages' artifacts, by stage, in order.
    """
    resources = config.sampler.resources
    engines = EngineSettings(
        fake=config.sampler.kind == "fake",
        latency=_latency(config),
        precision=config.model.precision,
        context_tokens=config.model.context_tokens,
        num_engines=resources.num_engines,
        tensor_parallel_size=resources.tensor_parallel_size,
        max_num_seqs=resources.max_num_seqs,
        memory_fraction=resources.memory_fraction,
        kv_cache_gib=resources.kv_cache_gib,
        eager=resources.eager,
        cpus_per_engine=resources.cpus_per_engine,
        gpus_per_engine=resources.gpus_per_engine,
        node_group=resources.node_group,
        rows_per_chunk=resources.rows_per_chunk,
    )
    metrics = MetricLog(
        directory,
        console,
        run=_label(config, directory),
        wandb=_wandb_settings(config, directory, fingerprints),
    )
    cluster = ClusterSettings(config.cluster.address, _num_cpus(config))
    return Session(cluster, engines, console=console, metrics=metrics)


def _label(config: RunConfig, directory: Directory) -> str:
    """What the run is called on Prometheus, where points of two sweeps may be namesakes."""
    name = directory.root.rpartition("/")[2]
    return name if config.logging.group is None else f"{config.logging.group}/{name}"


def _wandb_settings(
    config: RunConfig, directory: Directory, fingerprints: Mapping[str, str]
) -> WandbSettings | None:
    logging = config.logging
    if logging.wandb == "off":
        return None
    values = json.loads(without_keys(config.model_dump_json()))
    *_, last = fingerprints.values()
    return WandbSettings(
        mode=logging.wandb,
        project=logging.project,
        group=logging.group or f"{PurePosixPath(config.constitution).stem}-{config.model.name}",
        job_type=config.control or "traits",
        # Two runs of the same settings in two directories are two.
        run_id=xxhash.xxh3_64_hexdigest(f"{last} {directory.uri}".encode()),
        artifacts=frozenset(digits[:ALIAS_DIGITS] for digits in fingerprints.values()),
        upload=logging.upload,
        timeout_seconds=_WANDB_SECONDS,
        config=values,
    )


def _num_cpus(config: RunConfig) -> int:
    """Logical CPUs of a local cluster: they schedule, and threads compute.

    Ray Data's own tasks need slots beside an engine or a trainer that keeps all cores busy.
    """
    workers = config.cluster.num_workers
    most = workers if isinstance(workers, int) else workers[1]
    needed = math.ceil(cpus_at_once(config, most))
    return config.cluster.num_cpus or max(4, os.cpu_count() or 1, needed)


def _latency(config: RunConfig) -> Latency | None:
    section = config.sampler.latency
    if section is None:
        return None
    return Latency(
        section.prefill_tokens_per_second,
        section.seconds_per_step,
        section.seconds_per_sequence,
    )
