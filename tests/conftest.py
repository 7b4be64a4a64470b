"""Shared by all tests: a place to write to, tiny records, and the composed config."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from charactertrain.config import RunConfig, validate
from charactertrain.records import Prompt, Response, Trait
from charactertrain.storage import Directory, open_directory

ROOT = Path(__file__).resolve().parent.parent

# Read once, when DeepSpeed is first imported; as `training.fit` sets it for its workers. Without
# torch, which most tests need not load.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if Path("/dev/nvidiactl").exists() else "cpu")

# What a shell starts in the background ignores interrupts, and so would what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In a process of its own: pyarrow holds the interpreter's lock when it drops a stream, so that a
# server in this process could not answer and a broken write would hang instead of failing.
_S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a CUDA device where there is none."""
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture(name="s3_port", scope="session")
def s3_server_port() -> Iterator[int]:
    """The port of an S3 server on this machine."""
    command = [sys.executable, "-c", _S3_SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "moto's server did not start"
        yield int(line)
        process.terminate()


@pytest.fixture(name="open_s3")
def s3_opener(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Directory]:
    """Opens a directory of a bucket that exists."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    port = request.getfixturevalue("s3_port")
    options = f"endpoint_override=http://127.0.0.1:{port}&scheme=http&allow_bucket_creation=true"

    def open_s3(path: str) -> Directory:
        directory = open_directory(f"s3://bucket/{path}?{options}")
        directory.filesystem.create_dir("bucket")
        return directory

    return open_s3


@pytest.fixture(name="directory", params=["local", "s3"])
def empty_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Directory:
    """An empty directory of a run, on a local disk and in an object store."""
    if request.param == "local":
        return open_directory(str(tmp_path / "run"))
    open_s3: Callable[[str], Directory] = request.getfixturevalue("open_s3")
    return open_s3(f"run-{uuid4().hex}")


Compose = Callable[..., dict[str, Any]]


@pytest.fixture(name="compose", scope="session")
def composer() -> Compose:
    """Composes conf/ with overrides, as the command line does, without validating it."""

    def compose(*overrides: str) -> dict[str, Any]:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            composed = hydra_compose("config", overrides=list(overrides))
        return cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))

    return compose


@pytest.fixture(name="smoke_config", scope="session")
def smoke_run_config(compose: Compose) -> RunConfig:
    """The smoke experiment's config."""
    return validate(compose("experiment=smoke"))


@pytest.fixture(name="model_cache", scope="session")
def own_model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache directory for embedded models."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_HOME", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache


@pytest.fixture(name="tiny_model", scope="session")
def tiny_random_model(model_cache: Path) -> Path:
    """A two-layer Llama over bytes with random weights."""
    from charactertrain.models import sources

    return sources.resolve(sources.TINY_RANDOM)


@pytest.fixture(name="process_group", scope="session")
def group_of_one() -> Iterator[None]:
    """A process group of this process alone; one for all tests, since DeepSpeed keeps the first."""
    import torch

    from charactertrain.runtime.worker import process_group_of_one

    # Models this small are slower with more.
    torch.set_num_threads(1)
    with process_group_of_one():
        yield


@pytest.fixture(name="ray_cluster", scope="module")
def cluster_of_this_module() -> Iterator[None]:
    """A Ray cluster of this module's own."""
    # What trains is also tested where Ray is not installed.
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # What a test sends to an actor may come from tests/support.
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    yield
    ray.shutdown()


@pytest.fixture(name="traits")
def two_traits() -> list[Trait]:
    """A trait with facets and a detector, and one without either."""
    facets = ("a gift", "an exam", "a trip", "a meal", "a film")
    return [
        Trait("honest", "I tell the truth.", facets, r"\btruth\b", 1.0, "small"),
        Trait("curious", "I ask how things come to be.", (), None, 2.0, "small"),
    ]


@pytest.fixture(name="prompts")
def three_prompts() -> list[Prompt]:
    """A prompt of each split, for both traits."""
    return [
        Prompt("p1", "honest", "honest/a-gift", "trait", "Do you like my scarf?", "train"),
        Prompt("p2", "curious", "curious/rain", "trait", "It rains again.", "validation"),
        Prompt("p3", "honest", "honest/a-meal", "trait", "Was the soup good?", "test"),
    ]


@pytest.fixture(name="responses")
def three_responses() -> list[Response]:
    """Three responses to the first prompt, of different lengths."""
    texts = {"a": "No.", "b": "To tell the truth, no.", "c": "It is green and quite long."}
    variants = {"a": "none", "b": "strong", "c": "mild"}
    return [
        Response(
            response_id=response_id,
            prompt_id="p1",
            trait_id="honest",
            family="honest/a-gift",
            split="train",
            prompt="Do you like my scarf?",
            variant=variants[response_id],
            phrasing=0,
            text=text,
            token_ids=tuple(range(1, 2 + len(text.split()))),
            logprobs=(-0.5,) * (1 + len(text.split())),
            sequence_logprob=-1.5 * len(text),
            finish_reason="stop",
        )
        for response_id, text in texts.items()
    ]
