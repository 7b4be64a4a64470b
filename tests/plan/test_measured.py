"""Rates of a finished run, and of files."""

import json
from pathlib import Path
from typing import Any

import pytest

from charactertrain.exceptions import ConfigError
from charactertrain.plan.measured import read_rates


def engines(job: str, seconds: float, **counts: float) -> dict[str, Any]:
    """A job's last line of metrics."""
    return {
        "stage": "engines",
        "time": 0.0,
        "job": job,
        "seconds": seconds,
        "generated_tokens_per_second": counts["written"] / seconds,
        "prompt_tokens_per_second": counts["read"] / seconds,
        "cache_hit_share": counts["cached"],
        "requests": counts["requests"],
    }


def steps(count: int, seconds: float, tokens: int) -> list[dict[str, Any]]:
    """Lines of the preference model's steps."""
    line = {"stage": "preference_model", "member": "model", "tokens": tokens}
    return [line | {"time": 100.0 + seconds * step} for step in range(count)]


def finished(
    directory: Path,
    lines: list[dict[str, Any]],
    num_workers: object = 2,
    *,
    lora: object = None,
    recomputes: bool = False,
) -> str:
    """A run directory as far as rates are read from it."""
    config = {
        "model": {"path": "embedded:smollm2_135m"},
        "sampler": {"resources": {"num_engines": [1, 2]}},
        "cluster": {"num_workers": num_workers},
        "preference_model": {"lora": lora, "resources": {"recompute_activations": recomputes}},
    }
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(json.dumps(config))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(directory)


def test_rates_of_a_run_are_those_of_its_engines_and_workers(tmp_path: Path) -> None:
    lines = [
        # 1,000 of 2,000 tokens were computed in 10 s, and the rest was in the cache.
        engines("contrast", 10, written=20, read=2000, cached=0.5, requests=20),
        # 40 s, of which 20 go to 2,000 computed tokens: 600 were written in the other 20.
        engines("responses", 40, written=600, read=2000, cached=0.0, requests=50),
        # Too short to tell.
        engines("judgements", 1, written=2, read=2000, cached=0.0, requests=2),
        *steps(6, seconds=2.0, tokens=500),
    ]
    found = read_rates(finished(tmp_path / "run", lines))
    assert found.parameters == 134_515_008
    # Of each of two engines and of two workers.
    assert found.read_tokens_per_second == pytest.approx((50, 50))
    assert found.write_tokens_per_second == pytest.approx((15, 15))
    assert found.train_tokens_per_second == pytest.approx((125, 125))


def test_the_spread_of_jobs_and_steps_is_the_range(tmp_path: Path) -> None:
    lines = [
        engines("contrast", 10, written=20, read=1000, cached=0.0, requests=20),
        engines("judgements", 10, written=20, read=3000, cached=0.0, requests=20),
    ]
    found = read_rates(finished(tmp_path / "run", lines))
    assert found.read_tokens_per_second == pytest.approx((50, 150))
    assert found.write_tokens_per_second is None
    assert found.train_tokens_per_second is None


@pytest.mark.parametrize(
    ("lora", "recomputes", "passes"),
    [
        (None, False, 3),
        (None, True, 4),
        ({"rank": 8, "alpha": 16}, False, 2),
        ({"rank": 8, "alpha": 16}, True, 3),
    ],
)
def test_a_training_rate_is_of_three_passes_however_many_the_run_took(
    tmp_path: Path, lora: object, recomputes: bool, passes: int
) -> None:
    lines = steps(6, seconds=2.0, tokens=500)
    directory = finished(tmp_path / "run", lines, lora=lora, recomputes=recomputes)
    rate = 125 * passes / 3
    assert read_rates(directory).train_tokens_per_second == pytest.approx((rate, rate))


def test_a_run_whose_workers_changed_gives_no_rate_of_one(tmp_path: Path) -> None:
    directory = finished(tmp_path / "run", steps(6, 2.0, 500), num_workers=[1, 4])
    with pytest.raises(ConfigError, match="1 to 4 training workers"):
        read_rates(directory)


def test_what_is_no_run_and_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config.yaml"):
        read_rates(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no file"):
        read_rates(str(tmp_path / "rates.yaml"))
    file = tmp_path / "rates.json"
    file.write_text('{"parameters": 1, "write_tokens_per_second": [2, 1]}')
    with pytest.raises(ConfigError, match="read_tokens_per_second: Field required"):
        read_rates(str(file))
