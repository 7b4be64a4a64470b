"""Light modules stay light: a plan is made without waiting for an engine's imports."""

import subprocess
import sys

import pytest

HEAVY = ("deepspeed", "ray", "torch", "transformers", "vllm")


@pytest.mark.parametrize(
    "module",
    ["artifacts", "config", "pipeline", "records", "review.__main__", "stages.definitions"],
)
def test_module_is_imported_without_engines(module: str) -> None:
    code = f"import sys, charactertrain.{module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"charactertrain.{module}" in loaded
    assert loaded.isdisjoint(HEAVY)
