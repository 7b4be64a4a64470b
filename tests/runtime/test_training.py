"""Ray Train around a loop without a model: metrics, restarts, and failures."""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.fs as pafs
import pytest
import ray.train
import torch
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from charactertrain.exceptions import ArtifactError, TrainingError, UnavailableError
from charactertrain.runtime import ray_worker, training
from charactertrain.runtime.training import WorkerSettings, _may_pass
from charactertrain.runtime.worker import Worker
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

NUM_STEPS = 5
TARGET = 3.0


def descend(
    worker: Worker,
    directory: str,
    fail_at: int,
    failures: int,
    error: type[Exception] = RuntimeError,
) -> None:
    """Gradient steps on (x - 3)^2, the mean over workers of equal gradients; writes x at the end.

    Raises at `fail_at` as often as `failures` says; every call leaves a line in `starts`.
    """
    x = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    first = 0
    with worker.last_checkpoint() as checkpoint:
        if checkpoint is not None:
            state = json.loads((checkpoint / f"rank{worker.rank}.json").read_text())
            first = state["step"]
            x.data.fill_(state["x"])
    starts = Path(directory) / f"starts{worker.rank}.txt"
    with starts.open("a") as file:
        file.write(f"{first} of {worker.num_workers}\n")
    for step in range(first, NUM_STEPS):
        if step == fail_at and len(starts.read_text().splitlines()) <= failures:
            raise error(f"no luck at step {step}")
        loss = (x - TARGET).square()
        optimizer.zero_grad()
        loss.backward()
        assert x.grad is not None
        torch.distributed.all_reduce(x.grad)
        x.grad.div_(worker.num_workers)
        optimizer.step()
        worker.send({"step": step + 1, "loss": loss.item()})
        state = {"step": step + 1, "x": x.item()}
        worker.report_checkpoint(save_as(worker.rank, state), {"step": step + 1})
    (Path(directory) / f"x{worker.rank}.txt").write_text(str(x.item()))


def wait_after_a_step(worker: Worker, directory: str) -> None:
    (Path(directory) / f"pid{worker.rank}.txt").write_text(str(os.getpid()))
    torch.distributed.barrier()
    worker.send({"step": 1})
    time.sleep(600)


def save_as(rank: int, state: dict[str, Any]) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        (path / f"rank{rank}.json").write_text(json.dumps(state))

    return save


def fit(
    directory: Path,
    *,
    fail_at: int = -1,
    failures: int = 0,
    error: type[Exception] = RuntimeError,
    workers: int | tuple[int, int] = 1,
    max_failures: int = 1,
) -> list[dict[str, Any]]:
    """The metrics that arrive."""
    lines: list[dict[str, Any]] = []
    training.fit(
        descend,
        {"directory": str(directory), "fail_at": fail_at, "failures": failures, "error": error},
        workers=WorkerSettings(workers, 0.5, 0.0, max_failures, None),
        storage=open_directory(str(directory)),
        on_metrics=lines.append,
    )
    return lines


def expected_losses() -> list[float]:
    x, losses = 0.0, []
    for _ in range(NUM_STEPS):
        losses.append((x - TARGET) ** 2)
        x += 0.2 * (TARGET - x)
    return losses


def test_fit_hands_on_every_metric_of_rank_0_once_and_in_order(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    lines = fit(tmp_path, workers=2)
    assert signal.getsignal(signal.SIGINT) is before
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines] == pytest.approx(expected_losses(), rel=1e-5)
    assert (tmp_path / "x0.txt").read_text() == (tmp_path / "x1.txt").read_text()
    assert (tmp_path / "starts1.txt").read_text() == "0 of 2\n"


def test_fit_restarts_a_loop_from_its_last_checkpoint(tmp_path: Path) -> None:
    lines = fit(tmp_path, fail_at=3, failures=1)
    assert (tmp_path / "starts0.txt").read_text() == "0 of 1\n3 of 1\n"
    # What was done before the failure is not done again, and the failure is told.
    assert [line.get("step") for line in lines] == [1, 2, 3, None, 4, 5]
    assert "rank 0: no luck at step 3" in lines.pop(3)["worker group failed"]
    assert [line["loss"] for line in lines] == pytest.approx(expected_losses(), rel=1e-5)


def test_fit_does_not_restart_a_loop_that_stops_itself(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^no luck at step 3$"):
        fit(tmp_path, fail_at=3, failures=99, error=TrainingError, workers=2, max_failures=3)
    assert (tmp_path / "starts0.txt").read_text() == "0 of 2\n"
    assert [line["step"] for line in fit(tmp_path)] == [4, 5]


def test_fit_that_failed_too_often_says_why_and_goes_on_when_called_again(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no luck at step 3"):
        fit(tmp_path, fail_at=3, failures=99, max_failures=1)
    assert (tmp_path / "starts0.txt").read_text() == "0 of 1\n3 of 1\n"
    lines = fit(tmp_path)
    assert [line["step"] for line in lines] == [4, 5]
    assert [line["loss"] for line in lines] == pytest.approx(expected_losses()[3:], rel=1e-5)


def test_an_interrupt_stops_the_workers_and_stays_an_interrupt(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt_once(line: dict[str, Any]) -> None:
        if line["step"] == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        training.fit(
            wait_after_a_step,
            {"directory": str(tmp_path)},
            workers=WorkerSettings(2, 0.5, 0.0, 1, None),
            storage=open_directory(str(tmp_path)),
            on_metrics=interrupt_once,
        )
    for rank in (0, 1):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(int((tmp_path / f"pid{rank}.txt").read_text())).wait(timeout=30)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("failure", "may_pass"),
    [
        (UnavailableError("/shared/run: timed out"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ArtifactError("/shared/run: damaged"), False),
        (RuntimeError("no luck"), False),
    ],
)
def test_what_storage_did_may_pass(failure: Exception, may_pass: bool) -> None:
    wrapped = UserExceptionWithTraceback(failure, "Traceback ...")
    assert _may_pass(WorkerGroupError("rank 1", {0: RuntimeError(""), 1: wrapped})) is may_pass
    assert _may_pass(ControllerError(failure)) is may_pass


def test_leftovers_of_kills_are_dropped_and_checkpoints_stay(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in (".saving-1", "checkpoint_1", "checkpoint_2"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "rank0.json").write_text("{}")
    index = checkpoints / "checkpoint_manager_snapshot.json"
    index.write_text('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_1"}]}')
    training.drop_leftovers(open_directory(str(tmp_path)))
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint_1", index.name]
    index.write_text('{"checkpoint_results": [{"checkpoint_di')
    training.drop_leftovers(open_directory(str(tmp_path)))
    assert not list(checkpoints.iterdir())


def test_checkpoint_is_not_moved_to_a_directory_that_is_not_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SimpleNamespace(
        experiment_fs_path=str(tmp_path / "checkpoints"), storage_filesystem=pafs.LocalFileSystem()
    )
    context = SimpleNamespace(get_storage=lambda: storage)
    monkeypatch.setattr("charactertrain.runtime.ray_worker.ray.train.get_context", lambda: context)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "rank0.json").write_text("{}")
    made = ray.train.Checkpoint.from_directory(str(tmp_path / "made"))
    with pytest.raises(OSError, match=r"give a run\.dir on storage that all nodes share"):
        ray_worker._moved(made, "checkpoint_1")
    assert (tmp_path / "made" / "rank0.json").exists()


def test_fit_does_not_hide_that_metrics_could_not_be_recorded(tmp_path: Path) -> None:
    def refuse(values: dict[str, Any]) -> None:
        raise OSError(f"no space left for {values['step']}")

    with pytest.raises(OSError, match="no space left for 1"):
        training.fit(
            descend,
            {"directory": str(tmp_path), "fail_at": -1, "failures": 0},
            workers=WorkerSettings(1, 0.5, 0.0, 0, None),
            storage=open_directory(str(tmp_path)),
            on_metrics=refuse,
        )
    assert (tmp_path / "x0.txt").exists()


def test_fit_goes_on_with_as_many_workers_as_there_is_room_for(tmp_path: Path) -> None:
    lines = fit(tmp_path, workers=(1, 2))
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert (tmp_path / "starts0.txt").read_text() == "0 of 2\n"
