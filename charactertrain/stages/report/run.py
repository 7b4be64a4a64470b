"""The run's part of the report's view: what it was made of and by, and what it took."""

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from charactertrain.artifacts import Json, Manifest
from charactertrain.config import RunConfig
from charactertrain.config.devices import gpus_in_policy
from charactertrain.pipeline import Work
from charactertrain.report.run_view import CostView, RunView
from charactertrain.stages.report.method import method
from charactertrain.storage import without_keys

_TRAINING = ("preference_model", "policy")
_WITHOUT_ENGINES = ("traits", "pairs")


def provenance(work: Work, config: RunConfig) -> RunView:
    """What was trained, on what, by which code, and how to do it again."""
    manifests = {name: manifest for name, (_, manifest) in work.inputs.items()}
    constitution = manifests["traits"].summary
    versions = dict.fromkeys(manifest.code_version for manifest in manifests.values())
    return RunView(
        name=PurePosixPath(work.directory.root).parent.name,
        model_name=config.model.name,
        model_path=config.model.path,
        constitution_name=constitution["name"],
        constitution_description=constitution["description"],
        method=method(config),
        # Not the clock: the same artifacts give the same page.
        created=manifests["evaluation"].created_at,
        code_version=", ".join(versions),
        hardware=_hardware(),
        command=without_keys(shlex.join(["python", "-m", "charactertrain", *sys.argv[1:]])),
    )


def _hardware() -> str:
    """Processor, cores and memory of the machine that makes the page."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"driver: {processor}, {num_cores()} cores, {memory_gib:.1f} GiB memory"


def num_cores() -> int | None:
    """Cores of this machine that this process may use."""
    # Only Linux knows which these are.
    limited = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if limited else os.cpu_count()


def cost(work: Work, config: RunConfig, num_cores: int | None) -> CostView:
    """Of all stages that the report has read.

    Args:
        work: With every earlier artifact.
        config: The run's, for the GPUs that stages may hold.
        num_cores: Of the machine, where all of it is one; None where it is not.
    """
    manifests = {name: manifest for name, (_, manifest) in work.inputs.items()}
    seconds = sum(manifest.wall_seconds for manifest in manifests.values())
    gpu_seconds = sum(
        gpus_held(name, config) * manifest.wall_seconds for name, manifest in manifests.items()
    )
    has_gpus = gpu_seconds > 0
    is_local = config.cluster.address == "local" and num_cores is not None
    counted = (
        "GPU-hours are the GPUs that a stage may hold by this run's settings times its wall time"
        if has_gpus
        else "Core-hours are the cores of the machine that made this page times the wall time"
    )
    return CostView(
        wall_seconds=seconds,
        core_hours=seconds * num_cores / 3600 if num_cores and is_local and not has_gpus else None,
        gpu_hours=gpu_seconds / 3600 if has_gpus else None,
        tokens=_tokens(work, manifests),
        note=f"{counted}: what was held, used or not. A stage that was resumed counts its last "
        "attempt alone, and one that was skipped the attempt that made it. Tokens written are of "
        "ranked responses, the policy's rollouts and the evaluation's replies; writing prompts, "
        "checks and the supervised phase are not counted.",
    )


def gpus_held(stage: str, config: RunConfig) -> float:
    """Most GPUs that a stage may hold."""
    if stage in _WITHOUT_ENGINES:
        return 0.0
    engines = config.sampler.resources
    if stage not in _TRAINING:
        return engines.num_engines[1] * engines.gpus_per_engine
    if stage == "policy":
        return gpus_in_policy(config)
    workers = config.cluster.num_workers
    return (workers if isinstance(workers, int) else workers[1]) * config.cluster.gpus_per_worker


def _tokens(work: Work, manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """By what was done with them; what the manifests do not say is left out."""
    found = {
        "written": _in_responses(work)
        + _in_rollouts(manifests["policy"])
        + sum(_column(work, "evaluation", "samples", "num_tokens")),
        "read by the ranker": _read_by_ranker(manifests["rankings"].summary),
        "the preference models trained on": _trained_on(manifests["preference_model"].summary),
    }
    return {what: tokens for what, tokens in found.items() if tokens}


def _in_responses(work: Work) -> int:
    lengths: list[list[int]] = _column(work, "rankings", "rankings", "num_tokens")
    return sum(sum(tokens) for tokens in lengths)


def _column(work: Work, stage: str, table: str, name: str) -> list[Any]:
    directory, manifest = work.inputs[stage]
    return [
        value
        for entry in manifest.table(table)
        for value in directory.read_table(entry.name, [name])[name].to_pylist()
    ]


def _in_rollouts(policy: Manifest) -> int:
    section = policy.resolved_config.get("policy", {})
    per_step = section.get("prompts_per_step", 0) * section.get("group_size", 0)
    lengths = [row["length_tokens"] for row in policy.summary["history"] if "length_tokens" in row]
    return int(per_step * sum(lengths))


def _read_by_ranker(summary: Json) -> int:
    cost = summary.get("cost")
    return round(cost["num_comparisons"] * cost["prompt_tokens_per_comparison"]) if cost else 0


def _trained_on(summary: Json) -> int:
    members = summary["training"].values()
    return int(sum(row["tokens"] for member in members for row in member["history"]))
