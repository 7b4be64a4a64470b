import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch

from charactertrain.models import sources

# Read once, when DeepSpeed is first imported; as `training.fit` sets it for its workers.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def tiny_model(model_cache: Path) -> Path:
    """A two-layer Llama over bytes with random weights."""
    return sources.resolve(sources.TINY_RANDOM)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this module's own."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
