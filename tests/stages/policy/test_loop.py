"""The policy's loop on a real engine, with rewards that are planted in place of a learnt model."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import pytest
import ray
import torch
from engine_specs import real
from planted_reward import EvenTokens
from policy_gradients import PLAIN
from transformers import AutoModelForCausalLM

from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.lora import LoraSettings
from charactertrain.objectives.advantages import RunningBaseline
from charactertrain.records import Prompt
from charactertrain.runtime import training
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engine_spec import Device
from charactertrain.runtime.engines import EngineSource
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.runtime.training import WorkerSettings
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.weights import own_weights
from charactertrain.runtime.worker import LocalWorker
from charactertrain.runtime.zero import ZeroSettings
from charactertrain.stages.policy import loop as policy_loop
from charactertrain.stages.policy import rollout_engines
from charactertrain.stages.policy.ledger import LedgerSettings
from charactertrain.stages.policy.loop import train
from charactertrain.stages.policy.rollout_buffer import BufferSettings, RolloutBuffer, Taken
from charactertrain.stages.policy.rollout_engines import RolloutEngines, Sampling
from charactertrain.stages.policy.rollouts import Rollout, RolloutMaker, RolloutSettings, Version
from charactertrain.stages.policy.step import policy_step
from charactertrain.stages.policy.task import (
    OptimiseTask,
    PolicyTask,
    WarmStartTask,
    forbidden_tokens,
    frozen_model,
    training_engine,
)
from charactertrain.stages.preference_model.ensemble import EnsembleReward
from charactertrain.stages.prompts.stream import PromptStream
from charactertrain.stages.response_logits import Models
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.ray]

BROKER = "policy-loop-engines"
PROMPTS = [Prompt(f"p{i}", "warm", "tea", "trait", f"Tea {i}?", "train") for i in range(8)]
MAX_TOKENS = 24
PER_STEP = 4
LEARNING_RATE = 3e-3
OBJECTIVE = replace(PLAIN, advantages="rloo", clip_high=0.3, kl_coef=0.001)


@pytest.fixture(name="broker", scope="module")
def engine_broker(ray_cluster: None) -> Iterator[Any]:
    actor: Any = ray.remote(EngineBroker)
    broker = actor.options(name=BROKER, num_cpus=0, max_concurrency=100).remote(1)
    yield broker
    ray.get(broker.shutdown.remote())
    ray.kill(broker)


@dataclass(frozen=True)
class Loop:
    """What a test runs."""

    model: Path
    directory: Path

    @property
    def source(self) -> EngineSource:
        """Where the engine is."""
        spec = real(str(self.model), context_tokens=128, max_num_seqs=32)
        return EngineSource(BROKER, spec, str(self.model))

    def task(
        self,
        num_steps: int,
        learning_rate: float = LEARNING_RATE,
        lora: LoraSettings | None = None,
    ) -> PolicyTask:
        """What the worker is given."""
        optimizer = OptimizerSettings(
            weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False
        )
        return PolicyTask(
            model_directory=str(self.model),
            precision="fp32",
            context_tokens=128,
            warm_start=WarmStartTask((), 0, 1, 0.0),
            optimise=OptimiseTask(OBJECTIVE, num_steps, learning_rate, 0, 0.01),
            fixed_ending=True,
            token_budget=4096,
            lora=lora,
            zero=ZeroSettings(stage=0, offload=False, bf16=False, optimizer=optimizer),
            checkpoint_every=1000,
            watch=None,
            seed=0,
            output=open_directory(str(self.directory)),
        )

    def settings(self, num_steps: int, sign: float, max_staleness: int) -> BufferSettings:
        """What the buffer is given."""
        ends = tuple(loading.end_token_ids(self.model))
        assert ends, "a fixed ending forbids something"
        return BufferSettings(
            ledger=LedgerSettings(num_steps, PER_STEP, max_staleness, max_staleness, 0),
            rollouts=RolloutSettings(
                SamplingSettings(1.0, 1.0, MAX_TOKENS, MAX_TOKENS, ()), group_size=8, seed=0
            ),
            prompts=PromptStream(PROMPTS, [], general_share=0.0, seed=0),
            reward=EnsembleReward((0.0,), (0.0,), 0.0, "mean", 0.0, None),
            rewards=(EvenTokens(sign, MAX_TOKENS),),  # type: ignore[arg-type]
            gold=None,
            groups_per_engine=8,
        )

    def run(
        self,
        *,
        sign: float = 1.0,
        num_steps: int = 20,
        max_staleness: int = 0,
        learning_rate: float = LEARNING_RATE,
        lora: LoraSettings | None = None,
        on_metrics: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """The history of the policy steps."""
        task = self.task(num_steps, learning_rate, lora)
        with self.buffer(self.settings(num_steps, sign, max_staleness)) as buffer:
            sampling = Sampling(self.source, 1, buffer, is_colocated=False)
            train(LocalWorker(on_metrics), task, sampling)
        return self.history()

    def run_on_workers(
        self,
        num_workers: int,
        *,
        num_steps: int,
        learning_rate: float = LEARNING_RATE,
        max_failures: int = 0,
        on_metrics: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """The history of the steps of Ray Train's workers, with a checkpoint after each."""
        task = replace(self.task(num_steps, learning_rate), checkpoint_every=1)
        with self.buffer(self.settings(num_steps, 1.0, 0)) as buffer:
            training.fit(
                train,
                {"task": task, "sampling": Sampling(self.source, 1, buffer, is_colocated=False)},
                workers=WorkerSettings(num_workers, 1.0, 0.0, max_failures, None),
                storage=open_directory(str(self.directory)),
                on_metrics=on_metrics,
            )
        return self.history()

    @contextmanager
    def buffer(self, settings: BufferSettings) -> Iterator[Any]:
        """The actor that hands out rollouts."""
        buffer: Any = ray.remote(RolloutBuffer).options(num_cpus=0, max_restarts=-1)  # type: ignore[attr-defined]
        buffer = buffer.remote(settings, str(self.model))
        yield buffer
        ray.kill(buffer)

    def history(self) -> list[dict[str, Any]]:
        """What a run has left."""
        history: list[dict[str, Any]] = json.loads((self.directory / "optimise.json").read_text())
        return history

    def run_in_turn(self, num_steps: int) -> list[dict[str, Any]]:
        """The history of a plain loop: sample, step, send, and sample again."""
        from charactertrain.runtime.weight_sync.sender import WeightSender

        task, settings = self.task(num_steps), self.settings(num_steps, 1.0, 0)
        sampler = self.source.open_for_training()
        reward: Any = EvenTokens(1.0, MAX_TOKENS)
        tokenizer = loading.load_tokenizer(self.model)
        maker = RolloutMaker([reward], settings.reward, tokenizer, settings.rollouts)
        engine = training_engine(task, self.model, None)
        models = Models(engine, frozen_model(task, self.model), forbidden_tokens(task))
        sender = WeightSender(
            own_weights(engine.module), [sampler.handle], sampler.spec, rank=0, dtype=torch.float32
        )
        history = []

        async def sample(step: int) -> list[tuple[Rollout, ...]]:
            numbers = range(PER_STEP * step, PER_STEP * (step + 1))
            groups = [maker.make(sampler.handle, settings.prompts[n], n, 8) for n in numbers]
            return await asyncio.gather(*groups)

        for step in range(num_steps):
            sender.send(str(step))
            values = policy_step(
                models,
                OBJECTIVE,
                asyncio.run(sample(step)),
                LocalWorker(print),
                token_budget=task.token_budget,
                baseline=RunningBaseline(),
            )
            values["grad_norm"] = engine.step(LEARNING_RATE)
            history.append(values)
        sender.close()
        sampler.close()
        return history


@pytest.fixture(name="loop")
def loop_of_this_test(tiny_model: Path, broker: Any, process_group: None, tmp_path: Path) -> Loop:
    torch.manual_seed(0)
    return Loop(tiny_model, tmp_path)


def rise(history: list[dict[str, Any]]) -> float:
    """Mean reward of the last steps less that of the first."""
    rewards = [row["reward"] for row in history]
    return fmean(rewards[-4:]) - fmean(rewards[:4])


@pytest.mark.parametrize(("sign", "max_staleness"), [(1.0, 0), (-1.0, 0), (1.0, 2)])
def test_a_planted_reward_is_learnt_and_with_its_sign_turned_unlearnt(
    loop: Loop, sign: float, max_staleness: int
) -> None:
    history = loop.run(sign=sign, max_staleness=max_staleness)
    # Of itself, negative rewards for the other sign.
    assert rise(history) > 0.1
    first = history[0]
    assert first["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert abs(first["kl"]) < 1e-6
    assert first["sampler_kl"] < 1e-6
    assert max(row["max_staleness"] for row in history) == max_staleness
    if max_staleness == 0:
        assert all(row["sampler_kl"] < 1e-6 for row in history)
    assert history[-1]["kl"] > 0.001


def test_without_staleness_the_loop_is_a_plain_one(loop: Loop) -> None:
    expected = loop.run_in_turn(num_steps=4)
    found = loop.run(num_steps=4, max_staleness=0)
    for theirs, ours in zip(expected, found, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    # The steps are such that other weights would have shown.
    assert found[-1]["kl"] > 1e-3


def test_updates_that_change_nothing_leave_the_policy_where_it_was(loop: Loop) -> None:
    for row in loop.run(num_steps=3, learning_rate=0.0):
        assert row["ratio"] == pytest.approx(1.0, abs=1e-3)
        assert abs(row["kl"]) < 1e-6
        assert row["sampler_kl"] < 1e-6
        assert row["sync_difference"] < 1e-4


def test_on_two_workers_a_planted_reward_is_learnt(loop: Loop) -> None:
    history = loop.run_on_workers(2, num_steps=20)
    assert rise(history) > 0.1
    assert history[0]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert abs(history[0]["kl"]) < 1e-6
    assert all(row["sampler_kl"] < 1e-6 for row in history)
    assert all(row["sync_difference"] < 1e-4 for row in history)


def test_on_two_workers_updates_that_change_nothing_leave_the_policy_where_it_was(
    loop: Loop,
) -> None:
    for row in loop.run_on_workers(2, num_steps=3, learning_rate=0.0):
        assert row["ratio"] == pytest.approx(1.0, abs=1e-3)
        assert abs(row["kl"]) < 1e-6
        assert row["sampler_kl"] < 1e-6
        assert row["sync_difference"] < 1e-4


def test_an_engine_that_is_not_sent_the_weights_stops_the_training(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from charactertrain.runtime.weight_sync.sender import WeightSender

    send = WeightSender.send

    def send_the_first(sender: WeightSender, version: str) -> None:
        if version == "0":
            send(sender, version)

    monkeypatch.setattr(WeightSender, "send", send_the_first)
    with pytest.raises(TrainingError, match="the engine does not hold the trained weights"):
        loop.run(num_steps=3)


def test_a_planted_reward_is_learnt_by_adapters(loop: Loop) -> None:
    history = loop.run(learning_rate=1e-2, lora=LoraSettings(rank=8, alpha=32))
    assert rise(history) > 0.1
    # The engine has the adapters' share in its weights.
    assert all(row["sync_difference"] < 1e-4 for row in history)
    assert all(row["sampler_kl"] < 1e-6 for row in history)
    assert history[-1]["kl"] > 0.001
    written = AutoModelForCausalLM.from_pretrained(loop.directory / "model")
    assert not any("lora" in name for name, _ in written.named_parameters())


def kill_the_engine() -> None:
    (name,) = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("engine-")
    ]
    ray.kill(ray.get_actor(name))


def test_an_engine_that_dies_is_replaced_and_given_the_weights(loop: Loop) -> None:
    killed = []

    def kill_after_the_third(values: dict[str, Any]) -> None:
        if re.match(r"3/", values.get("step", "")):
            killed.append(3)
            kill_the_engine()

    history = loop.run(num_steps=6, max_staleness=1, on_metrics=kill_after_the_third)
    assert killed
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    # The one in its place was seen to agree too.
    assert "sync_difference" in history[-1]
    assert all(row.get("sync_difference", 0.0) < 1e-3 for row in history)
    assert all(row["sampler_kl"] < 0.1 for row in history)


def test_an_engine_that_dies_while_it_has_no_work_is_found(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def step_without_the_engine(*arguments: Any, **options: Any) -> dict[str, Any]:
        steps.append(len(steps))
        if steps[-1] == 1:
            # It waits for the weights of this step.
            kill_the_engine()
        return policy_step(*arguments, **options)

    monkeypatch.setattr(policy_loop, "policy_step", step_without_the_engine)
    history = loop.run(num_steps=3, max_staleness=0)
    # Once each: nothing began anew.
    assert steps == [0, 1, 2]
    assert all(row["sync_difference"] < 1e-3 for row in history)
    assert all(row["sampler_kl"] < 1e-6 for row in history)


def kill_process(name: str) -> None:
    """Kill the one process of Ray's with this in its name."""
    (process,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith(f"ray::{name}")
    ]
    process.kill()


@pytest.mark.parametrize("name", ["RolloutBuffer", "RayTrainWorker"])
def test_what_dies_in_training_starts_again_and_every_step_is_taken_once(
    loop: Loop, tmp_path: Path, name: str
) -> None:
    expected = loop.run(num_steps=5)
    killed = []

    def kill_after_the_third(values: dict[str, Any]) -> None:
        if not killed and values.get("step") == "3/5":
            kill_process(name)
            killed.append(name)

    disturbed = replace(loop, directory=tmp_path / "disturbed")
    found = disturbed.run_on_workers(
        1, num_steps=5, max_failures=2, on_metrics=kill_after_the_third
    )
    assert killed
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5]
    # On the same prompts with the same weights.
    for theirs, ours in zip(expected, found, strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], rel=1e-3)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


def test_engines_on_the_workers_own_device_rest_while_a_step_is_trained(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    class Noted(RolloutEngines):
        """Notes what is asked of the engines, which on a CPU have nothing to give back."""

        def take(self) -> Taken:
            taken = super().take()
            order.append("take")
            return taken

        def sleep(self) -> None:
            order.append("sleep")

        def wake(self) -> None:
            order.append("wake")

        def serve(self, version: Version) -> None:
            order.append("serve")
            super().serve(version)

    def noted_step(*arguments: Any, **options: Any) -> dict[str, Any]:
        order.append("step")
        return policy_step(*arguments, **options)

    here = Device(ray.get_runtime_context().get_node_id(), "")
    monkeypatch.setattr(policy_loop, "RolloutEngines", Noted)
    monkeypatch.setattr(policy_loop, "policy_step", noted_step)
    monkeypatch.setattr(rollout_engines, "own_device", lambda: here)
    source = replace(loop.source, spec=replace(loop.source.spec, sleeps=True))
    with loop.buffer(loop.settings(2, 1.0, 0)) as buffer:
        sampling = Sampling(source, 1, buffer, is_colocated=True)
        train(LocalWorker(lambda _: None), loop.task(2), sampling)
    assert order == ["serve", *(["take", "sleep", "step", "wake", "serve"] * 2)]
    assert all(row["sampler_kl"] < 1e-6 for row in loop.history())
