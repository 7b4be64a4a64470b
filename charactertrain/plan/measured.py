"""Rates that were measured: of a finished run's metrics, or of a file."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from statistics import quantiles
from typing import Any

import yaml

from charactertrain.config.plan import RatesFile, validate_rates
from charactertrain.exceptions import ConfigError
from charactertrain.models.configs import read_config
from charactertrain.sizing.architecture import from_config
from charactertrain.sizing.roofline import training_passes
from charactertrain.storage import open_directory

_FILES = (".json", ".yaml", ".yml")
_SHORTEST_SECONDS = 5.0
"""Jobs that are over sooner say more of their start than of a rate."""
_FEWEST_STEPS = 4


def read_rates(location: str) -> RatesFile:
    """What `plan.rates` names.

    Raises:
        ConfigError: It holds no rates, or not as they are expected.
    """
    if PurePosixPath(location).suffix in _FILES:
        parent, name = location.rpartition("/")[::2]
        directory = open_directory(parent or ".")
        if not directory.exists(name):
            raise ConfigError(f"plan.rates: there is no file {location}")
        try:
            values = yaml.safe_load(directory.read_bytes(name))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"plan.rates: {location} is neither YAML nor JSON: {error}"
            ) from error
        return validate_rates(values, location)
    return _of_run(location)


def _of_run(location: str) -> RatesFile:
    """Per engine and per training worker, the least and the most of a run's jobs and steps."""
    directory = open_directory(location)
    for name in ("config.yaml", "metrics.jsonl"):
        if not directory.exists(name):
            raise ConfigError(
                f"plan.rates: expected a finished run or a file of rates, and {location} has no "
                f"{name}; give a run directory, or a file that ends in {', '.join(_FILES)}"
            )
    config = yaml.safe_load(directory.read_bytes("config.yaml"))
    lines = [json.loads(line) for line in directory.read_bytes("metrics.jsonl").splitlines()]
    architecture = from_config(read_config(config["model"]["path"]), config["model"]["path"])
    write, read = _engine_rates(lines, config["sampler"]["resources"]["num_engines"][1])
    return RatesFile(
        parameters=architecture.parameters,
        write_tokens_per_second=write,
        read_tokens_per_second=read,
        train_tokens_per_second=_training_rate(lines, config),
    )


Rate = tuple[float, float] | None


def _engine_rates(lines: Sequence[dict[str, Any]], num_engines: int) -> tuple[Rate, Rate]:
    """Tokens a second that an engine writes, and that it computes of what it reads.

    A job that only reads gives the second. Of one that writes, the seconds that its reading takes
    at the mean of those are taken off first.
    """
    jobs = [
        line
        for line in lines
        if line.get("stage") == "engines" and line.get("seconds", 0.0) >= _SHORTEST_SECONDS
    ]
    writes: list[dict[str, Any]] = []
    reads: list[dict[str, Any]] = []
    for job in jobs:
        written = job["generated_tokens_per_second"] * job["seconds"]
        # One token is written of each text that is scored or judged, and none of a reward.
        is_reading = written <= 1.01 * job["requests"]
        (reads if is_reading else writes).append(job)
    read_rates = [_computed(job) for job in reads]
    if not read_rates:
        return _spread([job["generated_tokens_per_second"] for job in writes], num_engines), None
    mean = sum(read_rates) / len(read_rates)
    write_rates = [
        job["generated_tokens_per_second"] / max(1 - _computed(job) / mean, 0.1) for job in writes
    ]
    return _spread(write_rates, num_engines), _spread(read_rates, num_engines)


def _computed(job: dict[str, Any]) -> float:
    """Tokens of prompts a second that no cache held."""
    return float(job["prompt_tokens_per_second"] * (1 - job["cache_hit_share"]))


def _training_rate(lines: Sequence[dict[str, Any]], config: dict[str, Any]) -> Rate:
    """Tokens a second of a worker: the middle half of the preference model's steps.

    As if each passed three times, forward and backward: a run that recomputed or trained adapters
    took more passes or fewer.
    """
    steps = [line for line in lines if line.get("stage") == "preference_model" and "tokens" in line]
    rates = [
        step["tokens"] / (step["time"] - before["time"])
        for before, step in pairwise(steps)
        if step["member"] == before["member"] and step["time"] > before["time"]
    ]
    if len(rates) < _FEWEST_STEPS:
        return None
    num_workers: int | list[int] = config["cluster"]["num_workers"]
    if not isinstance(num_workers, int):
        raise ConfigError(
            f"plan.rates: the run had {num_workers[0]} to {num_workers[1]} training workers, so "
            "that its rate of one is not known; give a file of rates"
        )
    low, _, high = quantiles(rates, n=4)
    section = config["preference_model"]
    passes = training_passes(
        has_adapters=section["lora"] is not None,
        recomputes=section["resources"]["recompute_activations"],
        has_reference=False,
    )
    factor = passes.total / 3 / num_workers
    return low * factor, high * factor


def _spread(rates: Sequence[float], count: int) -> Rate:
    return (min(rates) / count, max(rates) / count) if rates else None
