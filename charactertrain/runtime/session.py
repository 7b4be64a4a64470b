"""What one run holds while it lasts: the Ray connection, the engines, the console, the metrics."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import ray
import ray.data
from rich.console import Console

from charactertrain.exceptions import ConfigError
from charactertrain.runtime.dataflow import ChunkJob, PoolSettings, Produced, run_chunks
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engine_spec import EngineCounts, EngineSpec, Latency
from charactertrain.runtime.engines import EngineSource, start_all, stop_idle
from charactertrain.runtime.metrics import MetricLog
from charactertrain.runtime.placement import beside_the_driver
from charactertrain.runtime.progress import Progress

_SECONDS_BETWEEN_RECORDS = 15.0


@dataclass(frozen=True)
class EngineSettings:
    """How this run's engines are started."""

    fake: bool
    latency: Latency | None
    precision: str
    context_tokens: int
    num_engines: tuple[int, int]
    tensor_parallel_size: int
    max_num_seqs: int
    memory_fraction: float
    kv_cache_gib: float
    eager: bool
    cpus_per_engine: float
    gpus_per_engine: float
    node_group: str | None
    rows_per_chunk: int


@dataclass(frozen=True)
class ClusterSettings:
    """Which Ray cluster to use."""

    address: str
    """`local` or `auto`."""
    num_cpus: int
    """Logical CPUs of a local cluster."""


class Session:
    """Everything that must be started once and stopped at the end. A context manager.

    Nothing is started before a stage asks for it, so a run whose stages are all skipped is over
    in an instant.
    """

    def __init__(
        self,
        cluster: ClusterSettings,
        engines: EngineSettings,
        *,
        console: Console,
        metrics: MetricLog,
    ) -> None:
        """Remember the settings; start nothing."""
        self._cluster = cluster
        self._engines = engines
        self._broker: Any = None
        self.console = console
        self.metrics = metrics
        self.progress = Progress(console, metrics.board.rows)

    def __enter__(self) -> Self:
        """Enter the run."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop what was started, also after an error."""
        # Whatever fails, the rest is stopped too; in the opposite order.
        with ExitStack() as stack:
            stack.callback(self.metrics.close)
            if ray.is_initialized():
                stack.callback(ray.shutdown)
            stack.callback(self.metrics.board.close)
            if self._broker is not None:
                broker, self._broker = self._broker, None
                stack.callback(ray.kill, broker)
                ray.get(broker.shutdown.remote())

    @property
    def pool(self) -> PoolSettings:
        """The Ray Data pool that keeps the engines busy."""
        settings = self._engines
        return PoolSettings(settings.num_engines, settings.rows_per_chunk, settings.max_num_seqs)

    def run(self, job: ChunkJob) -> Produced:
        """Run a data job on the pool, and record what the engines did for it."""
        watch = _EngineWatch(job.name, self._counts, self.metrics)
        produced = run_chunks(job, self.pool, self.progress, watch.tick)
        rates = watch.finish(produced)
        # Workers that were killed gave no lease back, and those that are ending may be late.
        self.end_leases()
        return replace(produced, engines=rates)

    def _counts(self) -> EngineCounts:
        if self._broker is None:
            return EngineCounts()
        counts: EngineCounts = ray.get(self._broker.counts.remote())
        return counts

    def connect(self) -> None:
        """Start or join the Ray cluster, once."""
        if ray.is_initialized():
            return
        self.metrics.start()
        self.console.print("  starting Ray", style="dim")
        _quiet_ray()
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._cluster.address == "local":
            options |= {
                "num_cpus": self._cluster.num_cpus,
                "include_dashboard": False,
                "address": "local",
            }
        else:
            options["address"] = "auto"
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise ConfigError(
                f"cluster=ray: no Ray cluster to join: {error}. Start the run with `ray job submit`"
                " or on a node of the cluster, or use cluster=local."
            ) from error
        self.metrics.board.start()

    def sampler(self, architecture: str, weights: str, *, kind: str = "generate") -> EngineSource:
        """Where workers get a sampler for `weights`, which has the config of `architecture`."""
        self.connect()
        settings = self._engines
        spec = EngineSpec(
            kind="fake" if settings.fake else kind,
            architecture=architecture,
            precision=settings.precision,
            context_tokens=settings.context_tokens,
            tensor_parallel_size=settings.tensor_parallel_size,
            max_num_seqs=settings.max_num_seqs,
            memory_fraction=settings.memory_fraction,
            kv_cache_gib=settings.kv_cache_gib,
            eager=settings.eager,
            num_cpus=settings.cpus_per_engine,
            num_gpus=settings.gpus_per_engine,
            node_group=settings.node_group,
            threads=os.cpu_count() or 1,
            latency=settings.latency,
            run=self.metrics.run,
        )
        return EngineSource(self._broker_name(), spec, weights)

    def end_leases(self) -> None:
        """When no worker is left, no lease can be."""
        if self._broker is not None:
            ray.get(self._broker.release_all.remote())

    def make_room(self) -> None:
        """Before training: idle engines give their GPUs back; on a CPU they hold none."""
        if self._broker is not None and self._engines.gpus_per_engine > 0:
            stop_idle(self._broker)

    def start_engines(self, sources: Sequence[EngineSource]) -> None:
        """Have engines ready for training to lease: as many of a source as it is named."""
        start_all(sources)

    def _broker_name(self) -> str:
        name = f"charactertrain-engines-{ray.get_runtime_context().get_job_id()}"
        if self._broker is None:
            actor = ray.remote(EngineBroker).options(
                name=name,
                num_cpus=0,
                max_concurrency=100,
                scheduling_strategy=beside_the_driver(),
            )
            self._broker = actor.remote(self._engines.num_engines[1])
        return name


class _EngineWatch:
    """Records what the engines do while a job runs, now and then and at its end."""

    def __init__(self, name: str, counts: Callable[[], EngineCounts], metrics: MetricLog) -> None:
        self._name, self._counts, self._metrics = name, counts, metrics
        self._first = self._last = counts()
        self._started = self._recorded = time.monotonic()

    def tick(self, num_rows: int, num_rejects: int) -> None:
        now = time.monotonic()
        if now - self._recorded < _SECONDS_BETWEEN_RECORDS:
            return
        counts = self._counts()
        rates = counts.since(self._last).rates(now - self._recorded)
        share = _reject_share(num_rows, num_rejects)
        self._metrics.record("engines", {"job": self._name, **rates, "reject_share": share})
        self._last, self._recorded = counts, now

    def finish(self, produced: Produced) -> dict[str, float | int]:
        """Rates over the whole job."""
        seconds = time.monotonic() - self._started
        rates = self._counts().since(self._first).rates(seconds)
        share = _reject_share(produced.num_rows, sum(produced.rejects.values()))
        self._metrics.record(
            "engines", {"job": self._name, "seconds": seconds, **rates, "reject_share": share}
        )
        return {"seconds": round(seconds, 3), **rates}


def _reject_share(num_rows: int, num_rejects: int) -> float:
    return num_rejects / max(1, num_rows + num_rejects)


def _quiet_ray() -> None:
    # Ray's C++ core writes advice about its own internals to the console.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
