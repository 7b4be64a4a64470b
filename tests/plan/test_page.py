"""What `charactertrain plan` prints, and how it ends."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from charactertrain.exceptions import ConfigError
from charactertrain.plan.page import show, span, tokens
from charactertrain.sizing.ranges import Range
from charactertrain.stages.definitions import NAMES

ROOT = Path(__file__).resolve().parent.parent.parent
FITTING = (
    "cluster=ray",
    "sampler=vllm_gpu",
    "run.dir=/shared/run",
    "model=qwen3_8b",
    "deepspeed@policy.deepspeed=zero3",
    "deepspeed@preference_model.deepspeed=zero3",
    "policy.resources.recompute_activations=true",
    "preference_model.resources.recompute_activations=true",
    "plan.num_gpus=64",
)


def shown(plan: Any) -> str:
    printed = io.StringIO()
    show(plan, Console(file=printed, width=120), NAMES)
    return printed.getvalue()


def test_numbers_have_the_digits_that_they_are_worth() -> None:
    shown_as = {0: "", 7: "7", 1234: "1.23k", 5_678_000: "5.68M", 1_500_000_000: "1.5B"}
    assert {number: tokens(number) for number in shown_as} == shown_as
    assert span(Range(0.01234, 0.5678)) == "0.012-0.57"
    assert span(Range(12.34, 1234.5)) == "12-1,200"
    assert span(Range(0.0, 0.0)) == ""


def test_a_plan_names_layout_hours_memory_storage_and_settings(planned: Any) -> None:
    text = shown(planned(*FITTING, "plan.price_per_gpu_hour=2"))
    for words in (
        "8.19 billion parameters, 144 KiB",
        "64 x H100 SXM",
        "give the run: sampler.resources.num_engines=[64,64]",
        "hours at the rooflines' shares",
        "masters and Adam",
        "KV cache",
        "storage",
        "GPU-hours held by stages",
        "at 2 an hour",
        "everything fits",
    ):
        assert words in text, words
    for stage in NAMES:
        assert stage in text


def test_what_does_not_fit_is_an_error_after_the_tables(planned: Any) -> None:
    plan = planned(*FITTING, "plan.gpu.memory_gib=16")
    printed = io.StringIO()
    with pytest.raises(ConfigError, match="does not fit:\n  preference_model: a training worker"):
        show(plan, Console(file=printed, width=120), NAMES)
    assert "besides, while it is made" in printed.getvalue()


def test_without_gpus_there_is_a_table_of_tokens(planned: Any) -> None:
    text = shown(planned("experiment=demo"))
    assert "on CPUs: 1 engines, 1 training workers" in text
    assert "hours" not in text.partition("note:")[0]


@pytest.mark.parametrize(
    ("overrides", "status", "words"),
    [
        (("experiment=demo", "run.until=responses"), 0, "responses"),
        (("experiment=demo", "plan.num_gpus=8"), 2, "cluster=ray sampler=vllm_gpu"),
        (("plan.decode_share=[0.9,0.1]",), 2, "give the least first"),
        (("plan/gpu=nosuch",), 1, "nosuch"),
    ],
)
def test_the_command_ends_as_a_run_does(
    tmp_path: Path, overrides: tuple[str, ...], status: int, words: str
) -> None:
    command = [sys.executable, "-m", "charactertrain", "plan", f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [*command, *overrides], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert words in done.stdout + done.stderr
    # Nothing is made.
    assert not (tmp_path / "run").exists()
