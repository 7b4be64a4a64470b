"""From a config to a session: the one place where settings become running things."""

import math
import os

from rich.console import Console

from charactertrain.config import RunConfig
from charactertrain.config.devices import cpus_at_once
from charactertrain.runtime.engine_spec import Latency
from charactertrain.runtime.metrics import MetricLog
from charactertrain.runtime.session import ClusterSettings, EngineSettings, Session
from charactertrain.storage import Directory, without_keys


def open_session(config: RunConfig, directory: Directory, console: Console) -> Session:
    """The session of a run; it starts nothing until a stage asks."""
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
    values = config.model_dump(mode="json")
    values["run"]["dir"] = without_keys(config.run.dir)
    metrics = MetricLog(
        directory,
        console,
        wandb_mode=config.logging.wandb,
        project=config.logging.project,
        config=values,
    )
    cluster = ClusterSettings(config.cluster.address, _num_cpus(config))
    return Session(cluster, engines, console=console, metrics=metrics)


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
