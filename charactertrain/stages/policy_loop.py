"""The worker's side of the policy stage: a warm start, then sample, score, step, send weights."""

import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray
import torch

from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup, pack
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.records import Prompt
from charactertrain.runtime.engines import EngineSource, LeasedSampler
from charactertrain.runtime.hardware import resolve_precision
from charactertrain.runtime.learning_rate import Schedule
from charactertrain.runtime.sampling import Sampler, SamplerSource, ScoreRequest
from charactertrain.runtime.worker import Worker
from charactertrain.runtime.zero import FrozenModel, ZeroEngine
from charactertrain.runtime.zero_checkpoint import read_state
from charactertrain.seeds import derive_seed
from charactertrain.stages.policy_step import Models, policy_step, prompt_group, response_logits
from charactertrain.stages.policy_task import (
    PolicyTask,
    forbidden_tokens,
    training_engine,
    write_model,
)
from charactertrain.stages.rollouts import Rollout, RolloutCollector
from charactertrain.stages.warm_start import warm_start
from charactertrain.templates import plain_conversation


@dataclass(frozen=True)
class EngineSources:
    """Where rank 0 gets its engines."""

    policy: EngineSource
    rewards: tuple[SamplerSource, ...]
    """Of each of the preference model's members."""


def train(worker: Worker, task: PolicyTask, engines: EngineSources) -> None:
    """Warm start, optimise, and write the policy: the function that Ray Train runs."""
    with worker.last_checkpoint() as checkpoint:
        phase = read_state(checkpoint)["phase"] if checkpoint is not None else "warm_start"
        if task.warm_start.epochs > 0 and not task.output.exists("warm_start.json"):
            assert phase == "warm_start", "a checkpoint of policy steps follows a warm start"
            warm_start(task, worker, checkpoint)
        _Optimisation(task, worker, engines, checkpoint if phase == "optimise" else None).run()


class _Optimisation:
    """The policy steps of one attempt, and the models and engines they use."""

    def __init__(
        self, task: PolicyTask, worker: Worker, engines: EngineSources, checkpoint: Path | None
    ) -> None:
        self._task, self._worker = task, worker
        self._engines = _open_engines(task, engines) if worker.rank == 0 else None
        with _starting_weights(task) as start:
            self._engine = training_engine(task, start, checkpoint)
            # The policy as it starts, as in Ouyang et al. (2022): towards the base, the KL would
            # undo the warm start.
            dtype = resolve_precision(task.precision)
            load = partial(loading.load_causal_lm, start, dtype)
            reference = FrozenModel(load, task.zero.in_dtype(dtype))
        self._history: list[dict[str, Any]] = []
        if checkpoint is not None:
            self._history = read_state(checkpoint)["history"]
        self._models = Models(self._engine, reference, forbidden_tokens(task))

    def run(self) -> None:
        """Sample, score, step and send weights, `num_steps` times; writes model/."""
        from charactertrain.runtime.weight_sync.sender import WeightSender

        task, worker, engine, history = self._task, self._worker, self._engine, self._history
        # Under ZeRO-3 the first forward initialises parameters; sent before, they would be garbage.
        _warm_up(engine)
        engines = [self._engines.policy.handle] if self._engines is not None else []
        dtype = resolve_precision(task.precision)
        sender = WeightSender(engine.module, engines, rank=worker.rank, dtype=dtype)
        first_step = len(history)
        schedule = Schedule(
            task.optimise.learning_rate,
            task.optimise.warmup_steps,
            task.optimise.num_steps,
            "constant",
        )
        sender.send(str(first_step))
        for step in range(first_step, task.optimise.num_steps):
            clock = _Clock()
            groups = self._rollouts(step)
            clock.lap("sample_seconds")
            values = policy_step(self._models, task, groups, worker)
            values["grad_norm"] = engine.step(schedule.rate(step))
            clock.lap("train_seconds")
            sender.send(str(step + 1))
            clock.lap("sync_seconds")
            if step == first_step:
                values["sync_difference"] = self._check_sync(step_prompts(task, step)[0], groups[0])
            values |= clock.laps | {"seconds": sum(clock.laps.values())}
            history.append({"phase": "optimise", "step": step + 1, **values})
            worker.send({"step": f"{step + 1}/{task.optimise.num_steps}", **values})
            if (step + 1) % task.checkpoint_every == 0 and step + 1 < task.optimise.num_steps:
                state = {"phase": "optimise", "history": history}
                worker.report_checkpoint(partial(engine.save, state=state), {"step": step + 1})
        write_model(engine, task, worker, "model")
        if worker.rank == 0:
            task.output.write_bytes("optimise.json", json.dumps(history).encode())
        torch.distributed.barrier()
        sender.close()
        if self._engines is not None:
            self._engines.close()

    def _rollouts(self, step: int) -> list[list[Rollout]]:
        """One group per prompt of the step: drawn and scored by rank 0, on every rank."""
        box: list[list[list[Rollout]] | None] = [None]
        if self._engines is not None:
            box = [self._engines.collector.collect(step_prompts(self._task, step), step)]
        torch.distributed.broadcast_object_list(box, src=0)
        assert box[0] is not None, "rank 0 sends rollouts"
        return box[0]

    def _check_sync(self, prompt: Prompt, group: list[Rollout]) -> float:
        """Mean absolute difference of the engine's and the trainer's logprobs of a group, in nats.

        Raises TrainingError on every rank if it exceeds the tolerance: the engine would sample
        from other weights than those being trained. The mean, since in bf16 single tokens differ by
        up to half a nat between two right computations, and the mean by a twentieth.
        """
        with torch.no_grad():
            row = pack([prompt_group(group)]).to(self._engine.device)
            logits_BTV = response_logits(self._engine, row, ())
            logprobs_N = token_logprobs(logits_BTV, row.token_ids_N[None])[0].cpu()
        difference = [0.0]
        if self._engines is not None:
            shown = plain_conversation(prompt.text)
            requests = [ScoreRequest("probe", shown, rollout.token_ids) for rollout in group]
            scores = ray.get(self._engines.policy.handle.score.remote(requests))
            theirs = torch.tensor([value for score in scores for value in score.logprobs])
            difference = [float((logprobs_N - theirs).abs().mean())]
        torch.distributed.broadcast_object_list(difference, src=0)
        tolerance = self._task.optimise.sync_tolerance
        # Not "greater": nan is no agreement either.
        if not difference[0] <= tolerance:
            raise TrainingError(
                "after the first weight update the sampler's and the trainer's log-probabilities "
                f"of the same {len(logprobs_N)} tokens differ by {difference[0]:.3f} nats on "
                f"average, more than policy.sync_tolerance {tolerance}: the engine does not hold "
                "the trained weights"
            )
        return difference[0]


@dataclass(frozen=True)
class _Engines:
    """What rank 0 samples and scores with."""

    policy: LeasedSampler
    rewards: tuple[Sampler, ...]
    collector: RolloutCollector

    def close(self) -> None:
        """Give all of them back."""
        for sampler in (self.policy, *self.rewards):
            sampler.close()


def _open_engines(task: PolicyTask, sources: EngineSources) -> _Engines:
    """The engines of this attempt; an engine that died in the last one is replaced."""
    sources.policy.end_leases()
    policy = sources.policy.open_for_training()
    rewards = tuple(source.open() for source in sources.rewards)
    tokenizer = loading.load_tokenizer(Path(task.model_directory))
    collector = RolloutCollector(
        policy.handle, rewards, task.optimise.reward, tokenizer, task.optimise.rollouts
    )
    return _Engines(policy, rewards, collector)


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


def _starting_weights(task: PolicyTask) -> AbstractContextManager[Path]:
    """A context with the directory that the policy starts from."""
    if task.warm_start.epochs > 0:
        return task.output.child("warm_start").on_local_disk()
    return nullcontext(Path(task.model_directory))


def _warm_up(engine: ZeroEngine) -> None:
    with torch.no_grad():
        response_logits(engine, pack([PromptGroup((1, 1), ((1, 1),))]).to(engine.device), ())


def step_prompts(task: PolicyTask, step: int) -> list[Prompt]:
    """The prompts of a step: epochs of permutations that depend on the seed alone."""
    prompts, size = task.optimise.prompts, task.optimise.prompts_per_step

    @cache
    def order(epoch: int) -> list[Prompt]:
        return sorted(prompts, key=lambda p: derive_seed(task.seed, "policy", epoch, p.prompt_id))

    places = [divmod(position, len(prompts)) for position in range(step * size, (step + 1) * size)]
    return [order(epoch)[index] for epoch, index in places]
