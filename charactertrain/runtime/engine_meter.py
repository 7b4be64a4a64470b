"""What engines and their broker show on Ray's Prometheus endpoint, from their own processes."""

import os
import time
from collections.abc import Mapping
from dataclasses import asdict

import ray
from ray.util.metrics import Counter, Gauge

from charactertrain.runtime.engine_spec import EngineCounts
from charactertrain.runtime.metric_catalog import (
    ENGINE_LEVELS,
    ENGINE_LOSSES,
    ENGINE_TOTALS,
    RUN_VARIABLE,
    Metric,
)

_EXPORT_SECONDS = 5.0


class EngineMeter:
    """Shows an engine's counts, every few seconds however often it is asked."""

    def __init__(self) -> None:
        """Start at zero; called in the engine's actor."""
        self._totals = {name: _counter(metric) for name, metric in ENGINE_TOTALS.items()}
        self._levels = {
            name: Gauge(metric.name, metric.meaning, metric.labels)
            for name, metric in ENGINE_LEVELS.items()
        }
        self._tags = {
            "run": os.environ.get(RUN_VARIABLE, ""),
            "engine": ray.get_runtime_context().get_actor_id() or "",
        }
        self._shown: Mapping[str, int] = asdict(EngineCounts())
        self._exported = 0.0

    def is_due(self) -> bool:
        """Whether counts are to be shown again; asked at every step, so it costs nothing."""
        return time.monotonic() - self._exported >= _EXPORT_SECONDS

    def show(self, counts: EngineCounts) -> None:
        """Show the counts as they are now."""
        self._exported = time.monotonic()
        values = asdict(counts)
        for name, counter in self._totals.items():
            added = values[name] - self._shown[name]
            if added > 0:
                counter.inc(added, self._tags)
        for name, gauge in self._levels.items():
            gauge.set(values[name], self._tags)
        self._shown = values


class LossMeter:
    """Counts lost engines, in the broker's actor."""

    def __init__(self) -> None:
        """Show nothing before the first loss."""
        self._counter: Counter | None = None

    def add(self, run: str) -> None:
        """An engine of the run was lost."""
        if not ray.is_initialized():
            return
        if self._counter is None:
            self._counter = _counter(ENGINE_LOSSES)
        self._counter.inc(1, {"run": run})


def _counter(metric: Metric) -> Counter:
    # The endpoint adds the suffix.
    return Counter(metric.name.removesuffix("_total"), metric.meaning, metric.labels)
