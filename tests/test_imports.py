"""Light modules stay light: a plan is made without waiting for an engine's imports."""

import subprocess
import sys

import pytest

HEAVY = ("deepspeed", "ray", "torch", "transformers", "vllm")


@pytest.mark.parametrize(
    "module",
    [
        "artifacts",
        "config",
        "pipeline",
        "plan.page",
        "records",
        "review.__main__",
        "stages.definitions",
    ],
)
def test_module_is_imported_without_engines(module: str) -> None:
    code = f"import sys, charactertrain.{module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"charactertrain.{module}" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_submitting_imports_no_engine() -> None:
    code = "import sys, launch.submit, launch.hydra_points; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_a_plugin_that_hydra_scans_for_imports_nothing_of_its_own() -> None:
    """Hydra imports it whenever the command line starts."""
    code = "import sys, hydra_plugins.sweep_launcher; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({*HEAVY, "aiohttp", "launch", "charactertrain"})
