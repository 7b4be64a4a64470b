"""Overlays as `kubectl kustomize` builds them."""

import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import yaml
from kube_manifests import KUBE, Manifest

Build = Callable[[Path | str], list[Manifest]]


@cache
def built(directory: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a directory; shared, not to be changed."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(name="build", scope="session")
def kustomize() -> Build:
    """Builds a directory of kube/, or any other by its path; the documents may be changed."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which builds the overlays, is not installed")
    return lambda directory: deepcopy(built(KUBE / directory))
