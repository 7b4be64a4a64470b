"""Training on Ray Train: one SPMD function on every worker, restarted from its last checkpoint.

The function gets its `Worker` and plain arguments. Metrics come to the driver through a relay, so
that a step is on the console while the next one runs.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from charactertrain.exceptions import TrainingError, UnavailableError
from charactertrain.runtime.placement import beside_the_driver, on_group
from charactertrain.runtime.ray_worker import SAVING
from charactertrain.runtime.relay import Loop, Relay, RestartNotice, run_packed
from charactertrain.storage import Directory, may_pass

_POLL_SECONDS = 0.5
_COLLECTIVE_SECONDS = 3 * 3600
"""Workers wait for rank 0 in a collective, and it for engines whose nodes may have to boot."""
_ABORT_SECONDS = 30
_CHECKPOINT_INDEX = "checkpoints/checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class WorkerSettings:
    """The worker group."""

    num_workers: int | tuple[int, int]
    """So many, or between (fewest, most), as the cluster has room."""
    cpus_per_worker: float
    gpus_per_worker: float
    max_failures: int
    node_group: str | None
    """Nodes that they may run on; None for any."""


def fit(
    loop: Loop,
    arguments: Mapping[str, Any],
    *,
    workers: WorkerSettings,
    storage: Directory,
    on_metrics: Callable[[dict[str, Any]], None],
) -> None:
    """Run `loop(worker, **arguments)` on every worker until it returns.

    Checkpoints go to `storage`/checkpoints. A run that was killed goes on from the last one when
    `fit` is called again with the same storage.

    A TrainingError or ModelError in the loop stops the run: it must be raised on every rank at the
    same point. Any other error restarts the workers from the last checkpoint, and so does the loss
    of a worker.

    Raises:
        TrainingError: The loop stopped itself, or failed more often than `max_failures` allows.
        UnavailableError: It failed so often because storage did.
    """
    drop_leftovers(storage)
    relay: Any = (
        ray.remote(Relay).options(num_cpus=0, scheduling_strategy=beside_the_driver()).remote()
    )
    trainer = _trainer(loop, arguments, relay, workers, storage)
    with _relayed(relay, on_metrics):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            reason = ray.get(relay.stopped.remote())
            if reason is None and _may_pass(error):
                raise UnavailableError(_cause(error)) from error
            raise TrainingError(reason or _cause(error)) from error
        except BaseException:
            trainer.abort()
            raise
        reason = ray.get(relay.stopped.remote())
        if reason is not None:
            raise TrainingError(reason)


def _trainer(
    loop: Loop,
    arguments: Mapping[str, Any],
    relay: Any,
    workers: WorkerSettings,
    storage: Directory,
) -> "_Trainer":
    use_gpu = workers.gpus_per_worker > 0
    resources = {"CPU": workers.cpus_per_worker}
    if use_gpu:
        resources["GPU"] = workers.gpus_per_worker
    return _Trainer(
        run_packed,
        train_loop_config={
            "loop_and_arguments": ray.cloudpickle.dumps((loop, dict(arguments))),
            "relay": relay,
        },
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_SECONDS
        ),
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            label_selector=on_group(workers.node_group),
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


class _Trainer(TorchTrainer):
    """A TorchTrainer that leaves interrupts to its caller.

    Ray's handler of SIGINT takes the place of the caller's, ends the process with status 0 in the
    middle of a run, and stays after the run, where it calls a controller that is gone.
    """

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """Stop the workers now; nothing happens where there are none any more."""
        if self._controller is not None:
            try:
                ray.get(self._controller.abort.remote(), timeout=_ABORT_SECONDS)
            except GetTimeoutError:
                ray.kill(self._controller)
            except RayError:
                pass  # it has ended, as it does when it has aborted


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
        for pattern in (f"{SAVING}*", "checkpoint_*"):
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


def _may_pass(error: TrainingFailedError) -> bool:
    """Whether what failed may do better in a while, as storage may."""
    failures = [*getattr(error, "worker_failures", {}).values()]
    failures.append(getattr(error, "controller_failure", None))
    # Ray wraps what a worker raised.
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]
    return any(
        isinstance(cause, UnavailableError) or (isinstance(cause, OSError) and may_pass(cause))
        for cause in causes
    )


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
