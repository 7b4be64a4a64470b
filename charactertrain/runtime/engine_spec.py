"""What an engine is started with, and what it counts."""

from dataclasses import asdict, dataclass, fields

from charactertrain.runtime.metric_catalog import RUN_VARIABLE


@dataclass(frozen=True)
class Latency:
    """How long a simulated engine takes."""

    prefill_tokens_per_second: float
    """Prompt tokens that the engine reads in a second, whichever requests they are of."""
    seconds_per_step: float
    """One decoding step of a single sequence."""
    seconds_per_sequence: float
    """What every further sequence adds to a step."""


@dataclass(frozen=True)
class Device:
    """An accelerator of a training worker's, which an engine can be put on beside it."""

    node_id: str
    visible: str
    """What CUDA_VISIBLE_DEVICES calls it on that node."""


@dataclass(frozen=True)
class EngineSpec:
    """What decides whether a running engine can serve: all but its weights."""

    kind: str
    """`generate`, `reward` for a preference model, or `fake` for a simulation."""
    architecture: str
    """The local directory or hub id whose config and tokenizer the engine was started from."""
    precision: str
    context_tokens: int
    tensor_parallel_size: int
    max_num_seqs: int
    memory_fraction: float
    kv_cache_gib: float
    eager: bool
    num_cpus: float
    num_gpus: float
    node_group: str | None
    """Nodes that it may run on; None for any."""
    threads: int
    """OpenMP threads of an engine that runs on CPU."""
    latency: Latency | None
    """Of a simulation; None answers at once."""
    run: str
    """Label of what it counts."""
    beside: Device | None = None
    """The device that it shares with a training worker; None for devices of its own."""
    sleeps: bool = False
    """Whether it can give its memory back for a while."""

    def environment(self) -> dict[str, str]:
        """Environment variables that must be set before the actor's process starts."""
        variables = {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1"}
        variables["VLLM_LOGGING_LEVEL"] = "ERROR"
        variables[RUN_VARIABLE] = self.run
        if self.num_gpus == 0:
            # Ray hides no GPU from an actor that asked for none.
            variables["CUDA_VISIBLE_DEVICES"] = ""
            # Ray sets OMP_NUM_THREADS to the actor's logical CPUs, and vLLM's own binding takes
            # one core of two away (scoring: 195 against 380 tokens/s, 2026-11).
            variables["OMP_NUM_THREADS"] = str(self.threads)
            variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            # With it, vLLM puts a CPU engine's model into one more process, which binds threads.
            variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if self.beside is not None:
            variables["CUDA_VISIBLE_DEVICES"] = self.beside.visible
        return variables


@dataclass(frozen=True)
class EngineCounts:
    """What engines did since they were started; sums over engines and differences make sense."""

    prompt_tokens: int = 0
    """Tokens of prompts, computed or found in the prefix cache."""
    cached_tokens: int = 0
    """Of them, found in the prefix cache."""
    generated_tokens: int = 0
    requests: int = 0
    """Finished."""
    steps: int = 0
    """Iterations of the engine."""
    running_sequences: int = 0
    """Sum over steps of the sequences that ran in each."""
    running: int = 0
    """Sequences that run now."""
    waiting: int = 0
    """Requests that wait now."""

    def __add__(self, other: "EngineCounts") -> "EngineCounts":
        mine, theirs = asdict(self), asdict(other)
        return EngineCounts(**{f.name: mine[f.name] + theirs[f.name] for f in fields(self)})

    def since(self, earlier: "EngineCounts") -> "EngineCounts":
        """What was done after `earlier`; `running` and `waiting` are as they are now."""
        mine, theirs = asdict(self), asdict(earlier)
        momentary = {"running", "waiting"}
        return EngineCounts(
            **{
                # An engine that was replaced takes its counts with it.
                key: value if key in momentary else max(0, value - theirs[key])
                for key, value in mine.items()
            }
        )

    def rates(self, seconds: float) -> dict[str, float | int]:
        """For a line of metrics: tokens a second, sequences at a time, share found in the cache."""
        return {
            "generated_tokens_per_second": self.generated_tokens / max(seconds, 1e-9),
            "prompt_tokens_per_second": self.prompt_tokens / max(seconds, 1e-9),
            "cache_hit_share": self.cached_tokens / max(1, self.prompt_tokens),
            "mean_running": self.running_sequences / max(1, self.steps),
            "requests": self.requests,
            "running": self.running,
            "waiting": self.waiting,
        }
