"""A run's gauges on Ray's Prometheus endpoint, shown from the driver.

Whoever has a value sets it in a dictionary; a thread tells Ray of all of them every few seconds. So
nothing that a stage does waits for Ray, and a value stays to be seen until its stage ends, however
long the next step takes: Ray's agent drops what is not told again.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.metrics import Gauge

from charactertrain.runtime.metric_catalog import (
    READINGS,
    ROWS_DONE,
    ROWS_TOTAL,
    STAGE_CHANGED,
    STAGE_RUNNING,
    STEP,
    STEPS,
    STEPS_TOTAL,
    TASKS,
    Metric,
)
from charactertrain.runtime.metric_lines import Place

_EXPORT_SECONDS = 5.0

Labels = tuple[str, ...]


class MetricBoard:
    """The values of one run as they are now."""

    def __init__(self, run: str) -> None:
        """Label everything with `run`; nothing is started."""
        self._run, self._stage = run, ""
        self._values: dict[tuple[Metric, Labels], float] = {}
        self._lock = threading.Lock()
        self._gauges: dict[str, Gauge] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def values(self) -> dict[tuple[str, Labels], float]:
        """By name and labels."""
        with self._lock:
            return {(metric.name, labels): v for (metric, labels), v in self._values.items()}

    def start(self) -> None:
        """Show the values from now on; Ray must be running."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._show, name="metric-board", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop showing; before Ray is shut down."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def begin(self, stage: str) -> None:
        """A stage begins; what was of another is shown no more."""
        self._stage = stage
        with self._lock:
            self._values = {key: v for key, v in self._values.items() if key[0] is STAGE_RUNNING}
        self._set(STAGE_RUNNING, (), 1.0)
        self._set(STAGE_CHANGED, (), time.time())

    def end(self) -> None:
        """The stage ended, whether or not it made its artifact."""
        self._set(STAGE_RUNNING, (), 0.0)

    def line(self, place: Place, values: Mapping[str, Any]) -> None:
        """Show a line of metrics."""
        match place.counter:
            case None:
                self._set_all(TASKS, (place.phase,), values)
            case "reading":
                self._set_all(READINGS, (), values)
            case _:
                labels = (place.phase,)
                self._set_all(STEPS, labels, values)
                self._set(STEP, labels, float(place.step or 0))
                if place.num_steps is not None:
                    self._set(STEPS_TOTAL, labels, float(place.num_steps))
        if place.counter is not None:
            self._set(STAGE_CHANGED, (), time.time())

    def rows(self, task: str, done: int, total: int) -> None:
        """A task of the stage has done so many rows."""
        self._set(ROWS_DONE, (task,), float(done))
        self._set(ROWS_TOTAL, (task,), float(total))
        self._set(STAGE_CHANGED, (), time.time())

    def _set_all(
        self, metrics: Mapping[str, Metric], labels: Labels, values: Mapping[str, Any]
    ) -> None:
        for key, metric in metrics.items():
            value = values.get(key)
            if isinstance(value, int | float):
                self._set(metric, labels, metric.scale * value)

    def _set(self, metric: Metric, labels: Labels, value: float) -> None:
        with self._lock:
            self._values[metric, (self._run, self._stage, *labels)] = value

    def _show(self) -> None:
        while True:
            is_last = self._stop.wait(_EXPORT_SECONDS)
            with self._lock:
                values = dict(self._values)
            if not ray.is_initialized():
                return
            for (metric, labels), value in values.items():
                gauge = self._gauges.get(metric.name)
                if gauge is None:
                    gauge = Gauge(metric.name, metric.meaning, metric.labels)
                    self._gauges[metric.name] = gauge
                gauge.set(value, dict(zip(metric.labels, labels, strict=True)))
            if is_last:
                return
