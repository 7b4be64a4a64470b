"""Every metric that a run shows on Ray's Prometheus endpoint: its name, unit, labels and meaning.

Names are `charactertrain_<what>_<unit>` in Prometheus' base units. Ray puts `ray_` before each, so
a query for `charactertrain_step_seconds` asks for `ray_charactertrain_step_seconds`. The dashboard
and the alerts of kube/components/monitoring are held against this file by tests/kube.
"""

from dataclasses import dataclass

RAY_PREFIX = "ray_"
RUN_VARIABLE = "CHARACTERTRAIN_RUN"
"""The environment variable by which an engine's process knows what to label its counts with."""

_OF_STAGE = ("run", "stage")
_OF_TASK = ("run", "stage", "task")
_OF_PHASE = ("run", "stage", "phase")
_OF_ENGINE = ("run", "engine")


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    labels: tuple[str, ...]
    meaning: str
    scale: float = 1.0
    """From the unit of a line of metrics to that of the name."""


def _step(suffix: str, meaning: str, scale: float = 1.0) -> Metric:
    return Metric(f"charactertrain_step_{suffix}", _OF_PHASE, meaning, scale)


def _reading(suffix: str, meaning: str) -> Metric:
    return Metric(f"charactertrain_reading_{suffix}", _OF_STAGE, meaning)


def _task(suffix: str, meaning: str) -> Metric:
    return Metric(f"charactertrain_engines_{suffix}", _OF_TASK, meaning)


def _engine(suffix: str, meaning: str) -> Metric:
    return Metric(f"charactertrain_engine_{suffix}", _OF_ENGINE, meaning)


STEPS = {
    "loss": _step("loss", "Loss of the last step"),
    "held_out_loss": _step("held_out_loss", "Loss on held-out comparisons"),
    "accuracy": _step("accuracy_ratio", "Comparisons of the step that the model decides rightly"),
    "grad_norm": _step("grad_norm", "Norm of the gradient before clipping"),
    "reward": _step("reward", "Mean reward of the step's responses"),
    "reward_std": _step("reward_std", "Standard deviation of the rewards"),
    "kl": _step("kl_nats", "KL to the reference, mean over tokens"),
    "kl_coef": _step("kl_coef", "Weight of the KL"),
    "sampler_kl": _step("sampler_kl_nats", "KL of the sampler to the trainer, mean over tokens"),
    "entropy": _step("entropy_nats", "Entropy of the policy, mean over tokens"),
    "length_tokens": _step("length_tokens", "Mean length of the step's responses"),
    "clip_fraction": _step("clip_ratio", "Tokens whose ratio was clipped"),
    "zero_variance_fraction": _step("zero_variance_ratio", "Groups whose rewards are all equal"),
    "staleness": _step("staleness_versions", "Weight updates since responses were sampled, mean"),
    "max_staleness": _step("max_staleness_versions", "Weight updates since the oldest response"),
    "refills": _step("refills", "Groups sampled again for the step"),
    "groups_waiting": _step("groups_waiting", "Groups that wait to be trained on"),
    "sync_difference": _step("sync_difference_nats", "Trainer's and engines' log-probabilities"),
    "seconds": _step("seconds", "Duration of the step"),
    "sample_seconds": _step("sample_seconds", "Waiting for responses"),
    "train_seconds": _step("train_seconds", "Forward, backward and optimizer"),
    "sync_seconds": _step("sync_seconds", "Sending the weights to the engines"),
    "probe_seconds": _step("probe_seconds", "Checking the weights that were sent"),
    "gpu_memory_gib": _step("gpu_memory_bytes", "Peak allocated by training worker 0", 2.0**30),
}
"""By the key of a training step's line."""

STEP = _step("number", "Steps taken")
STEPS_TOTAL = _step("last_number", "Steps of the phase")

READINGS = {
    "reward": _reading("reward", "Mean reward of responses to held-out prompts"),
    "gold": _reading("gold", "The same by the preference model that no training sees"),
    "kl": _reading("kl_nats", "KL to the reference on held-out prompts, mean over tokens"),
    "entropy": _reading("entropy_nats", "Entropy on held-out prompts, mean over tokens"),
    "length_tokens": _reading("length_tokens", "Mean length of responses to held-out prompts"),
    "distinct_2": _reading("distinct_bigrams_ratio", "Bigrams that are distinct"),
}
"""By the key of a reading's line."""

TASKS = {
    "generated_tokens_per_second": _task("generated_tokens_per_second", "Tokens written"),
    "prompt_tokens_per_second": _task("prompt_tokens_per_second", "Tokens read"),
    "cache_hit_share": _task("cache_hit_ratio", "Prompt tokens found in the prefix cache"),
    "mean_running": _task("mean_running_sequences", "Sequences at a time, mean over steps"),
    "running": _task("running_sequences", "Sequences that run"),
    "waiting": _task("waiting_requests", "Requests that wait in the engines"),
    "reject_share": _task("reject_ratio", "Results of the task so far that were rejected"),
}
"""By the key of a data stage's line, of all engines together."""

STAGE_RUNNING = Metric("charactertrain_stage_running", _OF_STAGE, "1 while the stage runs, else 0")
STAGE_CHANGED = Metric(
    "charactertrain_stage_last_progress_timestamp_seconds",
    _OF_STAGE,
    "When a row was finished or a step taken, Unix time",
)
ROWS_DONE = Metric("charactertrain_task_done_rows", _OF_TASK, "Source rows that are done")
ROWS_TOTAL = Metric("charactertrain_task_rows", _OF_TASK, "Source rows of the task")

ENGINE_TOTALS = {
    "prompt_tokens": _engine("prompt_tokens_total", "Prompt tokens, computed or cached"),
    "cached_tokens": _engine("cached_tokens_total", "Prompt tokens found in the prefix cache"),
    "generated_tokens": _engine("generated_tokens_total", "Tokens written"),
    "requests": _engine("requests_total", "Requests finished"),
    "steps": _engine("steps_total", "Iterations of the engine"),
    "running_sequences": _engine("step_sequences_total", "Sequences, summed over iterations"),
}
"""By the field of `EngineCounts`; counters."""

ENGINE_LEVELS = {
    "running": _engine("running_sequences", "Sequences that run"),
    "waiting": _engine("waiting_requests", "Requests that wait"),
}
"""By the field of `EngineCounts`; gauges."""

ENGINE_LOSSES = Metric(
    "charactertrain_engine_losses_total", ("run",), "Engines that ran and were lost"
)

ALL = (
    *STEPS.values(),
    STEP,
    STEPS_TOTAL,
    *READINGS.values(),
    *TASKS.values(),
    STAGE_RUNNING,
    STAGE_CHANGED,
    ROWS_DONE,
    ROWS_TOTAL,
    *ENGINE_TOTALS.values(),
    *ENGINE_LEVELS.values(),
    ENGINE_LOSSES,
)
