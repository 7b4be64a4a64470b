"""Readings of the policy while it is trained: made on all workers, and the best weights kept."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from charactertrain.exceptions import TrainingError
from charactertrain.runtime.worker import Worker, agreed
from charactertrain.runtime.zero import ZeroEngine
from charactertrain.stages.policy.reading import Reading, WatchedPrompt, make_reading
from charactertrain.stages.policy.rollout_engines import RolloutEngines
from charactertrain.stages.policy.rollouts import HeldOut
from charactertrain.stages.policy.step import distance_and_entropy
from charactertrain.stages.policy.task import PolicyTask, WatchTask, write_model
from charactertrain.stages.policy.watch import best_step, reading_steps, stop_reason
from charactertrain.stages.response_logits import Models

BEST = "best"
"""Where the weights of the best reading are kept, in a directory named by its step."""


class PolicyMonitor:
    """The readings of one attempt. Every rank has them all."""

    def __init__(
        self, watch: WatchTask, task: PolicyTask, worker: Worker, state: Sequence[Mapping[str, Any]]
    ) -> None:
        """Go on from the readings of a checkpoint."""
        self._watch, self._task, self._worker = watch, task, worker
        self._readings = [Reading.from_json(values) for values in state]
        self._steps = reading_steps(task.optimise.num_steps, watch.settings.every)
        self._stopped: str | None = None
        self._saved_best: int | None = None
        """The best that the last checkpoint's readings name."""

    def state(self) -> list[dict[str, Any]]:
        """For a checkpoint."""
        return [reading.as_json() for reading in self._readings]

    def read(
        self, step: int, models: Models, engine: ZeroEngine, engines: RolloutEngines | None
    ) -> bool:
        """Read the policy after `step` steps, if it is time; whether training is to stop.

        The engines hold its weights. Weights that are better than all before are written.
        """
        is_read = bool(self._readings) and self._readings[-1].step == step
        if step not in self._steps or is_read:
            return False
        groups = self._held_out(engines)
        kl_sum, entropy_sum = distance_and_entropy(
            models,
            [found.rollouts for found in groups],
            self._worker,
            token_budget=self._task.token_budget,
        )
        self._readings.append(
            make_reading(
                step,
                [_watched(found) for found in groups],
                self._watch.detectors,
                kl_sum=kl_sum,
                entropy_sum=entropy_sum,
            )
        )
        if best_step(self._readings, self._watch.settings) == step:
            write_model(engine, self._task, self._worker, f"{BEST}/{step}")
        self._stopped = stop_reason(self._readings, self._watch.settings)
        self._worker.send({"reading": step, **_shown(self._readings[-1])})
        return self._stopped is not None

    def _held_out(self, engines: RolloutEngines | None) -> list[HeldOut]:
        box: list[list[HeldOut] | None] = [None]
        if engines is not None:
            size = self._watch.settings.responses_per_prompt
            box = [engines.held_out(self._watch.prompts, size)]
        torch.distributed.broadcast_object_list(box, src=0)
        assert box[0] is not None, "rank 0 sends what it has drawn"
        return box[0]

    def forget_worse(self) -> None:
        """Drop weights that neither this checkpoint's readings call the best nor the last one's.

        Which may be the one to go on from: a checkpoint counts a while after it is reported.
        """
        best = best_step(self._readings, self._watch.settings)
        if self._worker.rank == 0:
            for reading in self._readings:
                if reading.step not in (best, self._saved_best):
                    self._task.output.delete(f"{BEST}/{reading.step}")
        self._saved_best = best

    def export(self) -> None:
        """The best weights as model/, and all readings as watch.json."""
        best = best_step(self._readings, self._watch.settings)
        output = self._task.output
        if not agreed(self._worker, output.exists(f"{BEST}/{best}/config.json")):
            raise TrainingError(
                f"the weights of step {best}, which the readings call the best, are not in {BEST}/ "
                "of the policy stage any more; move the stage's directory away to start it anew"
            )
        if self._worker.rank == 0:
            with output.child(f"{BEST}/{best}").on_local_disk() as directory:
                output.upload(directory, "model")
            found = {"readings": self.state(), "stopped": self._stopped, "exported_step": best}
            output.write_bytes("watch.json", json.dumps(found).encode())
        torch.distributed.barrier()


def _watched(found: HeldOut) -> WatchedPrompt:
    rollouts = found.rollouts
    return WatchedPrompt(
        prompt_id=found.prompt.prompt_id,
        trait_id=found.prompt.trait_id,
        texts=tuple(rollout.text for rollout in rollouts),
        num_tokens=tuple(len(rollout.token_ids) for rollout in rollouts),
        rewards=tuple(rollout.reward for rollout in rollouts),
        golds=found.golds,
    )


def _shown(reading: Reading) -> dict[str, Any]:
    """For the console."""
    names = ("reward", "gold", "kl", "entropy", "length_tokens", "distinct_2")
    values = {name: getattr(reading, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
