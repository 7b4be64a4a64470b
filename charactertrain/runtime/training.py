"""Training on Ray Train: one SPMD function on every worker, restarted from its last checkpoint.

The function gets plain arguments, reports checkpoints through `report`, and sends metrics to the
driver through a relay, so that a step is on the console while the next one runs.
"""

import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import ray.train
import torch
from ray.train.torch import TorchConfig
from ray.train.v2._internal.constants import VALIDATE_STORAGE_MARKER_FILENAME
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from charactertrain.exceptions import TrainingError
from charactertrain.runtime.hardware import available_cores
from charactertrain.runtime.relay import Loop, Relay, RestartNotice, run_packed
from charactertrain.storage import Directory

_POLL_SECONDS = 0.5
_SAVING = ".saving-"
_CHECKPOINT_INDEX = "checkpoints/checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class WorkerSettings:
    """The worker group."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    max_failures: int


def fit(
    loop: Loop,
    arguments: Mapping[str, Any],
    *,
    workers: WorkerSettings,
    storage: Directory,
    on_metrics: Callable[[dict[str, Any]], None],
) -> None:
    """Run `loop` on every worker until it returns.

    Checkpoints go to `storage`/checkpoints. A run that was killed goes on from the last one when
    `fit` is called again with the same storage.

    A TrainingError or ModelError in the loop stops the run: it must be raised on every rank at the
    same point. Any other error restarts the workers from the last checkpoint, and so does the loss
    of a worker.

    Raises:
        TrainingError: The loop stopped itself, or failed more often than `max_failures` allows.
    """
    drop_leftovers(storage)
    relay: Any = ray.remote(Relay).options(num_cpus=0).remote()
    use_gpu = workers.gpus_per_worker > 0
    resources = {"CPU": workers.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = workers.gpus_per_worker
    trainer = TorchTrainer(
        run_packed,
        train_loop_config={
            "loop_and_arguments": ray.cloudpickle.dumps((loop, dict(arguments))),
            "relay": relay,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=storage.root,
            storage_filesystem=storage.filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=[RestartNotice(relay)],
            worker_runtime_env={"env_vars": _environment(use_gpu=use_gpu)},
        ),
    )
    with _relayed(relay, on_metrics):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise TrainingError(_cause(error)) from error
        reason = ray.get(relay.stopped.remote())
        if reason is not None:
            raise TrainingError(reason)


def drop_leftovers(storage: Directory) -> None:
    """Delete what kills have left: checkpoints half saved, and an index cut off as it was written.

    Without Ray Train's index training starts anew, and takes the same steps.
    """
    index = ""
    if storage.exists(_CHECKPOINT_INDEX):
        index = storage.read_bytes(_CHECKPOINT_INDEX).decode(errors="replace")
        try:
            json.loads(index)
        except ValueError:
            storage.delete(_CHECKPOINT_INDEX)
            index = ""
    if storage.is_local:
        for pattern in (f"{_SAVING}*", "checkpoint_*"):
            for path in (storage.local_path / "checkpoints").glob(pattern):
                if path.is_dir() and path.name not in index:
                    shutil.rmtree(path)


def _environment(*, use_gpu: bool) -> dict[str, str]:
    # DeepSpeed takes the first accelerator library that it can import, which on a CPU machine with
    # CUDA wheels is the wrong one.
    if use_gpu:
        return {"DS_ACCELERATOR": "cuda"}
    # Ray hides no GPU from a worker that asked for none.
    return {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def _cause(error: TrainingFailedError) -> str:
    failures = getattr(error, "worker_failures", {}) or {}
    for rank, failure in sorted(failures.items()):
        return f"training failed on rank {rank}: {failure}"
    return f"training failed: {error}"


@contextmanager
def _relayed(relay: Any, on_metrics: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Hand on metrics while training runs, and whatever is left when it ends."""
    stop = threading.Event()

    def forward() -> None:
        while True:
            last = stop.wait(_POLL_SECONDS)
            for values in ray.get(relay.take.remote()):
                on_metrics(values)
            if last:
                return

    with ThreadPoolExecutor(1, thread_name_prefix="metric-relay") as pool:
        forwarding = pool.submit(forward)
        try:
            yield
        finally:
            stop.set()
            wait([forwarding])
            ray.kill(relay)
        forwarding.result()


@dataclass(frozen=True)
class Worker:
    """This process's place in the worker group."""

    rank: int
    num_workers: int
    relay: Any

    def send(self, values: dict[str, Any]) -> None:
        """Metrics of one step, from rank 0 alone."""
        if self.rank == 0:
            # Waits for the answer: a worker that ends takes calls on their way with it.
            ray.get(self.relay.send.remote(values))


def join_group(arguments: Mapping[str, Any]) -> Worker:
    """Set this worker up; the first call of every loop."""
    context = ray.train.get_context()
    # DeepSpeed counts the devices of a CPU machine by this variable.
    os.environ["LOCAL_SIZE"] = str(context.get_local_world_size())
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, available_cores() // context.get_local_world_size()))
    return Worker(context.get_world_rank(), context.get_world_size(), arguments["relay"])


@contextmanager
def last_checkpoint() -> Iterator[Path | None]:
    """The last reported checkpoint as a local directory, or None at a fresh start."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as directory:
        yield Path(directory)


def report_checkpoint(save: Callable[[Path], None], metrics: Mapping[str, Any]) -> None:
    """Save and report a checkpoint; every rank must call at the same step."""
    storage = ray.train.get_context().get_storage()
    is_local = isinstance(storage.storage_filesystem, pafs.LocalFileSystem)
    directory = storage.experiment_fs_path if is_local else None
    with tempfile.TemporaryDirectory(prefix=_SAVING, dir=directory) as temporary:
        save(Path(temporary))
        ray.train.report(
            dict(metrics),
            checkpoint=ray.train.Checkpoint.from_directory(temporary),
            checkpoint_upload_fn=_moved if is_local else None,
        )


def _moved(checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """The checkpoint in its place, where the files of all ranks meet.

    Ray Train would copy it: another 1.9 GB for 135M parameters, 5 of 10 seconds (2026-11).
    """
    storage = ray.train.get_context().get_storage()
    if not Path(storage.experiment_fs_path, VALIDATE_STORAGE_MARKER_FILENAME).exists():
        raise OSError(
            f"{storage.experiment_fs_path} on {socket.gethostname()} is not the directory that the "
            "run was started with: give a run.dir on storage that all nodes share"
        )
    source, target = Path(checkpoint.path), Path(storage.experiment_fs_path) / name
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    return ray.train.Checkpoint(str(target), filesystem=storage.storage_filesystem)


def learning_rate_at(step: int, *, peak: float, warmup_steps: int) -> float:
    """Linear rise over `warmup_steps`, then constant. Steps count from 0."""
    return peak * min(1.0, (step + 1) / max(1, warmup_steps))
