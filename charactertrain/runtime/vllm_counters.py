"""What a vLLM engine counts for us. Imported in the engine's actor alone."""

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from charactertrain.runtime.engine_meter import EngineMeter
from charactertrain.runtime.engine_spec import EngineCounts


class CountingLogger(StatLoggerBase):
    """Adds up what vLLM reports of each step, and shows it on Ray's Prometheus endpoint.

    vLLM's own logger for Ray needs Ray Serve.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        """Start at zero; vLLM makes one per engine."""
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self._requests = self._steps = self._running_sequences = 0
        self._running = self._waiting = 0
        self._meter = EngineMeter()

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Called after every step; either kind of statistics may be missing."""
        if scheduler_stats is not None:
            self._steps += 1
            self._running = scheduler_stats.num_running_reqs
            self._waiting = scheduler_stats.num_waiting_reqs
            self._running_sequences += self._running
        if iteration_stats is not None:
            # Those that finished in this step ran in it, and are not among the running any more.
            self._running_sequences += len(iteration_stats.finished_requests)
            self._prompt_tokens += iteration_stats.prompt_token_stats.total
            self._cached_tokens += iteration_stats.prompt_token_stats.cached_tokens
            self._generated_tokens += iteration_stats.num_generation_tokens
            self._requests += len(iteration_stats.finished_requests)
        is_idle = self._running == self._waiting == 0
        if is_idle or self._meter.is_due():
            self._meter.show(self.counts)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    @property
    def counts(self) -> EngineCounts:
        """Since the engine was started."""
        return EngineCounts(
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            requests=self._requests,
            steps=self._steps,
            running_sequences=self._running_sequences,
            running=self._running,
            waiting=self._waiting,
        )
