"""The worker's side of the policy stage: a warm start, then take groups, step, send weights."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from charactertrain.exceptions import SamplingError, TrainingError
from charactertrain.models.packing import PromptGroup, pack
from charactertrain.objectives.advantages import RunningBaseline
from charactertrain.objectives.kl_control import KlController
from charactertrain.runtime.hardware import peak_gpu_memory, resolve_precision
from charactertrain.runtime.learning_rate import Schedule
from charactertrain.runtime.worker import Worker, checkpoint_is_due
from charactertrain.runtime.zero import FrozenModel, ZeroEngine
from charactertrain.runtime.zero_checkpoint import read_state
from charactertrain.stages.policy.ledger import Batch
from charactertrain.stages.policy.monitor import PolicyMonitor
from charactertrain.stages.policy.rollout_buffer import Taken
from charactertrain.stages.policy.rollout_engines import RolloutEngines, Sampling, leave_room
from charactertrain.stages.policy.rollouts import Rollout
from charactertrain.stages.policy.step import policy_step
from charactertrain.stages.policy.task import (
    PolicyTask,
    forbidden_tokens,
    frozen_model,
    policy_weights,
    starting_weights,
    training_engine,
    write_model,
)
from charactertrain.stages.policy.warm_start import warm_start_once, warm_start_step
from charactertrain.stages.policy.weight_probe import probe
from charactertrain.stages.response_logits import Models, response_logits


def train(worker: Worker, task: PolicyTask, sampling: Sampling) -> None:
    """Warm start, optimise, and write the policy: the function that Ray Train runs."""
    with worker.last_checkpoint() as checkpoint:
        if warm_start_once(task, worker, checkpoint):
            checkpoint = None
        _Optimisation(task, worker, sampling, checkpoint).run()


class _Optimisation:
    """The policy steps of one attempt, and the models and engines they use."""

    def __init__(
        self, task: PolicyTask, worker: Worker, sampling: Sampling, checkpoint: Path | None
    ) -> None:
        self._task, self._worker = task, worker
        state = {} if checkpoint is None else read_state(checkpoint)
        self._history: list[dict[str, Any]] = state.get("history", [])
        self._baseline = RunningBaseline(**state.get("baseline", {}))
        objective = task.optimise.objective
        self._kl = KlController(0.0, None)
        if objective is not None:
            self._kl = KlController(state.get("kl_coef", objective.kl_coef), objective.kl_target)
        sources = sampling.sources()
        self._spec = sources[0].spec
        self._engines: RolloutEngines | None = None
        if worker.rank == 0:
            self._engines = RolloutEngines(sources, sampling.buffer, state.get("ledger"))
        if self._spec.beside is not None:
            # An engine that starts would take for its own what a worker allocates in the meantime.
            torch.distributed.barrier()
        with starting_weights(task) as start:
            self._engine = training_engine(task, start, checkpoint)
            self._models = Models(self._engine, _reference(task, start), forbidden_tokens(task))
        self._monitor = (
            None
            if task.watch is None
            else PolicyMonitor(task.watch, task, worker, state.get("readings", []))
        )
        self._sender: Any = None
        if task.optimise.objective is not None:
            self._meet()

    def _meet(self) -> None:
        """Engines and trainer agree on how weights travel; every rank takes part."""
        from charactertrain.runtime.weight_sync.sender import WeightSender

        # Under ZeRO-3 the first forward initialises parameters; sent before, they would be garbage.
        _warm_up(self._engine)
        handles = self._engines.handles if self._engines is not None else []
        dtype = resolve_precision(self._task.precision)
        self._sender = WeightSender(
            policy_weights(self._engine), handles, self._spec, rank=self._worker.rank, dtype=dtype
        )

    def run(self) -> None:
        """Take groups, step and send weights, `num_steps` times; writes model/."""
        first_step, num_steps = len(self._history), self._task.optimise.num_steps
        self._send(first_step)
        self._read(first_step)
        for step in range(first_step, num_steps):
            self._take_step(step)
            if self._read(step + 1):
                break
            if checkpoint_is_due(
                self._worker, step + 1, every=self._task.checkpoint_every, num_steps=num_steps
            ):
                self._save(step + 1)
        self._write()

    def _take_step(self, step: int) -> None:
        settings, clock = self._task.optimise, _Clock()
        rates = Schedule(
            settings.learning_rate, settings.warmup_steps, settings.num_steps, "constant"
        )
        taken, batch = self._take(step)
        clock.lap("sample_seconds")
        with self._engines_asleep():
            values = self._step(batch)
            values["grad_norm"] = self._engine.step(rates.rate(step))
        clock.lap("train_seconds")
        lost = self._lost(taken)
        if lost:
            self._replace(lost)
        if settings.objective is not None or lost:
            self._send(step + 1)
            clock.lap("sync_seconds")
        elif self._engines is not None:
            self._engines.serve(step + 1)
        if settings.objective is not None:
            handles = self._engines.handles if self._engines is not None else []
            values |= probe(self._engine, handles, batch.groups, tolerance=settings.sync_tolerance)
            clock.lap("probe_seconds")
        values |= _sampled(taken, batch)
        values |= clock.laps | {"seconds": sum(clock.laps.values())}
        self._history.append({"phase": "optimise", "step": step + 1, **values})
        values |= peak_gpu_memory()
        self._worker.send({"step": f"{step + 1}/{settings.num_steps}", **values})

    def _save(self, step: int) -> None:
        save = partial(self._engine.save, state=self._state())
        self._worker.report_checkpoint(save, {"step": step})
        if self._monitor is not None:
            self._monitor.forget_worse()

    def _write(self) -> None:
        if self._monitor is not None:
            self._monitor.export()
        else:
            write_model(self._engine, self._task, self._worker, "model")
        if self._worker.rank == 0:
            self._task.output.write_bytes("optimise.json", json.dumps(self._history).encode())
        torch.distributed.barrier()
        if self._sender is not None:
            self._sender.close()
        if self._engines is not None:
            self._engines.close()

    def _state(self) -> dict[str, Any]:
        """For a checkpoint; rank 0's is written."""
        state = {
            "phase": "optimise",
            "history": self._history,
            "baseline": asdict(self._baseline),
            "kl_coef": self._kl.coef,
        }
        if self._monitor is not None:
            state["readings"] = self._monitor.state()
        if self._engines is not None:
            state["ledger"] = self._engines.state()
        return state

    def _read(self, step: int) -> bool:
        """Read the policy, if it is time; whether training is to stop."""
        if self._monitor is None:
            return False
        return self._monitor.read(step, self._models, self._engine, self._engines)

    def _step(self, batch: Batch) -> dict[str, Any]:
        """Add the gradient of one step."""
        objective, budget = self._task.optimise.objective, self._task.token_budget
        if objective is None:
            best = [_best(group) for group in batch.groups]
            return warm_start_step(self._models, self._task, best, self._worker)
        values = policy_step(
            self._models,
            replace(objective, kl_coef=self._kl.coef),
            batch.groups,
            self._worker,
            token_budget=budget,
            baseline=self._baseline,
        )
        if objective.kl_target is not None:
            values["kl_coef"] = self._kl.coef
            self._kl = self._kl.after(values["kl"])
        if objective.baseline_decay is not None:
            earned = torch.tensor([[values["reward"] - values["kl_cost"]]])
            self._baseline = self._baseline.updated(earned, decay=objective.baseline_decay)
        return values

    def _take(self, step: int) -> tuple[Taken, Batch]:
        """The step's groups, on every rank; engines that die in the meantime are replaced."""
        while True:
            box: list[Taken | None] = [self._engines.take() if self._engines is not None else None]
            torch.distributed.broadcast_object_list(box, src=0)
            assert box[0] is not None, "rank 0 sends what it has taken"
            if box[0].error is not None:
                reason = f"no rollouts: {box[0].error}"
                # Where engines share devices, one that is lost has gone with its worker, or finds
                # no room beside it; workers that start again give it back.
                raise (TrainingError if self._spec.beside is None else SamplingError)(reason)
            if box[0].batch is not None:
                return box[0], box[0].batch
            self._replace(self._lost(box[0]))
            self._send(step)

    def _lost(self, taken: Taken) -> Sequence[int]:
        """Places of the engines that are dead by now, on every rank.

        The buffer knows of those that had work; weights sent to another would never arrive.
        """
        dead = self._engines.dead() if self._engines is not None else set()
        box = [sorted(dead.union(taken.lost))]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]

    def _replace(self, lost: Sequence[int]) -> None:
        """Other engines in the place of those that died. They have yet to be sent the weights."""
        if self._spec.beside is not None:
            leave_room()
            torch.distributed.barrier()
        if self._engines is not None:
            self._engines.replace(lost)
        if self._spec.beside is not None:
            torch.distributed.barrier()
        if self._sender is not None:
            self._sender.close()
            self._meet()

    @contextmanager
    def _engines_asleep(self) -> Iterator[None]:
        """A context in which devices are the trainer's alone, where its engines can sleep."""
        if not self._spec.sleeps:
            yield
            return
        if self._engines is not None:
            self._engines.sleep()
        torch.distributed.barrier()
        yield
        leave_room()
        torch.distributed.barrier()
        if self._engines is not None:
            self._engines.wake()

    def _send(self, version: int) -> None:
        """The weights as they are to all engines, and the engines to the buffer."""
        if self._sender is not None:
            self._sender.send(str(version))
        elif self._engines is not None:
            # The best are of what the starting policy samples, however far training is.
            with starting_weights(self._task) as start:
                self._engines.load(start, 0)
        if self._engines is not None:
            self._engines.serve(version)


def _sampled(taken: Taken, batch: Batch) -> dict[str, Any]:
    return {
        "staleness": fmean(batch.staleness) if batch.staleness else 0.0,
        "max_staleness": max(batch.staleness, default=0),
        "refills": batch.refills,
        "groups_waiting": taken.waiting,
    }


def _best(group: Sequence[Rollout]) -> PromptGroup:
    best = max(group, key=lambda rollout: rollout.reward)
    return PromptGroup(best.prompt_token_ids, (best.token_ids,))


class _Clock:
    """Seconds of the phases of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """The phase called `name` ends here."""
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now


def _reference(task: PolicyTask, start: Path) -> FrozenModel | None:
    """None where nothing pulls the policy towards it, or measures how far it is."""
    objective = task.optimise.objective
    is_pulled = objective is not None and objective.kl_coef > 0
    if not (task.fixed_ending or is_pulled or task.watch is not None):
        return None
    return frozen_model(task, start)


def _warm_up(engine: ZeroEngine) -> None:
    with torch.no_grad():
        response_logits(engine, pack([PromptGroup((1, 1), ((1, 1),))]).to(engine.device))
