"""Readings of a tiny policy, and the weights that they keep."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_gradients import PLAIN

from charactertrain.models import loading
from charactertrain.records import Prompt
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.worker import LocalWorker
from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings
from charactertrain.stages.policy.monitor import BEST, PolicyMonitor
from charactertrain.stages.policy.rollouts import HeldOut, Rollout
from charactertrain.stages.policy.task import (
    OptimiseTask,
    PolicyTask,
    WarmStartTask,
    WatchTask,
)
from charactertrain.stages.policy.watch import WatchSettings
from charactertrain.stages.response_logits import Models
from charactertrain.storage import open_directory

OPTIMIZER = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False)
ZERO = ZeroSettings(stage=0, offload=False, bf16=False, optimizer=OPTIMIZER)
PROMPTS = tuple(
    Prompt(f"p{i}", "honest", "tea", "trait", f"Tea {i}?", "validation") for i in range(3)
)
SETTINGS = WatchSettings(
    every=2,
    responses_per_prompt=2,
    patience=1,
    entropy_floor=0.0,
    distinct_floor=0.0,
    length_band=(0.0, 99.0),
)


class ToldEngines:
    """Answers every prompt alike, with the gold rewards that it is told."""

    gold = 0.0
    reward = 0.0

    def held_out(self, prompts: tuple[Prompt, ...], size: int) -> list[HeldOut]:
        rollouts = tuple(
            Rollout(
                prompt_id="p",
                prompt="Tea?",
                prompt_token_ids=(5, 6),
                token_ids=(7 + place, 9),
                text="the truth is so" if place else "no it is not",
                logprobs=(-1.0, -1.0),
                reward=self.reward,
                disagreement=0.0,
                versions=((0, 0),),
            )
            for place in range(size)
        )
        return [HeldOut(prompt, rollouts, (self.gold,) * size) for prompt in prompts]


@pytest.fixture(name="engine")
def training_engine(tiny_model: Path, process_group: None) -> Iterator[ZeroEngine]:
    engine = ZeroEngine(partial(loading.load_causal_lm, tiny_model, torch.float32), ZERO)
    yield engine
    engine.close()


@pytest.fixture(name="models")
def policy_and_reference(tiny_model: Path, engine: ZeroEngine) -> Models:
    load = partial(loading.load_causal_lm, tiny_model, torch.float32)
    return Models(engine, FrozenModel(load, ZERO), ())


def make_task(tiny_model: Path, directory: Path) -> PolicyTask:
    return PolicyTask(
        model_directory=str(tiny_model),
        precision="fp32",
        context_tokens=64,
        warm_start=WarmStartTask((), 0, 1, 0.0),
        optimise=OptimiseTask(PLAIN, 5, 1e-3, 0, 0.1),
        fixed_ending=False,
        token_budget=100,
        lora=None,
        zero=ZERO,
        checkpoint_every=1,
        watch=WatchTask(SETTINGS, PROMPTS, {"honest": r"\btruth\b"}),
        seed=0,
        output=open_directory(str(directory)),
    )


def make_monitor(task: PolicyTask, state: Any = ()) -> PolicyMonitor:
    assert task.watch is not None
    return PolicyMonitor(task.watch, task, LocalWorker(lambda _: None), state)


def move(engine: ZeroEngine, amount: float) -> None:
    with torch.no_grad():
        engine.module.model.norm.weight.add_(amount)


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / BEST).iterdir())


def test_the_best_weights_are_kept_and_exported(
    tiny_model: Path, models: Models, engine: ZeroEngine, tmp_path: Path
) -> None:
    task = make_task(tiny_model, tmp_path)
    monitor, engines = make_monitor(task), ToldEngines()
    for step, gold in ((0, 1.0), (2, 3.0), (4, 2.0)):
        engines.gold = gold
        assert monitor.read(step, models, engine, engines) is False  # type: ignore[arg-type]
        if step == 2:
            assert kept(tmp_path) == ["0", "2"]
            monitor.forget_worse()
        move(engine, 0.5)
    assert kept(tmp_path) == ["2"]
    readings = monitor.state()
    assert [reading["step"] for reading in readings] == [0, 2, 4]
    assert readings[0]["kl"] == pytest.approx(0.0, abs=1e-8)
    assert 0 < readings[1]["kl"] < readings[2]["kl"]
    assert readings[0]["detectors"] == {"honest": 0.5}
    monitor.export()
    written = json.loads((tmp_path / "watch.json").read_text())
    assert (written["exported_step"], written["stopped"]) == (2, None)
    exported = loading.load_causal_lm(tmp_path / "model", torch.float32)
    # Moved once when it was read after step 2.
    base = loading.load_causal_lm(tiny_model, torch.float32)
    torch.testing.assert_close(exported.model.norm.weight, base.model.norm.weight + 0.5)


def test_nothing_is_read_between_or_twice(
    tiny_model: Path, models: Models, engine: ZeroEngine, tmp_path: Path
) -> None:
    task = make_task(tiny_model, tmp_path)
    monitor, engines = make_monitor(task), ToldEngines()
    for step in (0, 1, 2):
        monitor.read(step, models, engine, engines)  # type: ignore[arg-type]
    state = json.loads(json.dumps(monitor.state()))
    resumed = make_monitor(task, state)
    resumed.read(2, models, engine, engines)  # type: ignore[arg-type]
    assert [reading["step"] for reading in resumed.state()] == [0, 2]
    # The last step is read in any case.
    resumed.read(5, models, engine, engines)  # type: ignore[arg-type]
    assert [reading["step"] for reading in resumed.state()] == [0, 2, 5]


def test_gold_that_falls_while_reward_rises_stops_the_training(
    tiny_model: Path, models: Models, engine: ZeroEngine, tmp_path: Path
) -> None:
    task = make_task(tiny_model, tmp_path)
    monitor, engines = make_monitor(task), ToldEngines()
    found = []
    for step, (gold, reward) in ((0, (1.0, 0.0)), (2, (2.0, 1.0)), (4, (0.5, 2.0))):
        engines.gold, engines.reward = gold, reward
        found.append(monitor.read(step, models, engine, engines))  # type: ignore[arg-type]
    assert found == [False, False, True]
    monitor.export()
    written = json.loads((tmp_path / "watch.json").read_text())
    assert written["exported_step"] == 2
    assert written["stopped"].startswith("over-optimisation at step 4")


def test_lengths_that_leave_their_band_stop_the_training(
    tiny_model: Path, models: Models, engine: ZeroEngine, tmp_path: Path
) -> None:
    task = make_task(tiny_model, tmp_path)
    assert task.watch is not None
    narrow = replace(task.watch, settings=replace(SETTINGS, length_band=(0.0, 1.5)))
    monitor = PolicyMonitor(narrow, task, LocalWorker(lambda _: None), [])
    monitor.read(0, models, engine, ToldEngines())  # type: ignore[arg-type]

    class LongEngines(ToldEngines):
        def held_out(self, prompts: tuple[Prompt, ...], size: int) -> list[HeldOut]:
            return [
                replace(
                    found,
                    rollouts=tuple(
                        replace(r, token_ids=r.token_ids * 2, logprobs=r.logprobs * 2)
                        for r in found.rollouts
                    ),
                )
                for found in super().held_out(prompts, size)
            ]

    assert monitor.read(2, models, engine, LongEngines()) is True  # type: ignore[arg-type]
