"""The policy's loop on a real engine, with rewards that are planted in place of a learnt model."""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import ray
import torch
from policy_gradients import PLAIN
from transformers import AutoModelForCausalLM

from charactertrain.models import loading
from charactertrain.models.lora import LoraSettings
from charactertrain.records import Prompt
from charactertrain.runtime.engine_broker import EngineBroker
from charactertrain.runtime.engine_spec import EngineSpec
from charactertrain.runtime.engines import EngineSource
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.worker import LocalWorker
from charactertrain.runtime.zero import ZeroSettings
from charactertrain.stages.ensemble import EnsembleReward
from charactertrain.stages.ledger import LedgerSettings
from charactertrain.stages.policy_loop import Sampling, train
from charactertrain.stages.policy_task import OptimiseTask, PolicyTask, WarmStartTask
from charactertrain.stages.prompt_stream import PromptStream
from charactertrain.stages.rollout_buffer import BufferSettings, RolloutBuffer
from charactertrain.stages.rollouts import RolloutSettings
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.ray]

BROKER = "policy-loop-engines"
PROMPTS = [Prompt(f"p{i}", "warm", "tea", "trait", f"Tea {i}?", "train") for i in range(8)]
MAX_TOKENS = 24
OBJECTIVE = replace(PLAIN, advantages="rloo", clip_high=0.3, kl_coef=0.001)


@dataclass(frozen=True)
class EvenTokens:
    """Rewards the share of even tokens, or the lack of them."""

    sign: float

    def open(self) -> "EvenTokens":
        """This, in any process."""
        return self

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """Of the response, which is what comes last."""
        tails = [list(ids)[-MAX_TOKENS:] for ids in token_ids]
        return [self.sign * fmean(float(token % 2 == 0) for token in tail) for tail in tails]


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

    def run(
        self,
        *,
        sign: float = 1.0,
        num_steps: int = 20,
        max_staleness: int = 0,
        lora: LoraSettings | None = None,
        on_metrics: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """The history of the policy steps."""
        optimizer = OptimizerSettings(
            weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False
        )
        task = PolicyTask(
            model_directory=str(self.model),
            precision="fp32",
            context_tokens=128,
            warm_start=WarmStartTask((), 0, 1, 0.0),
            optimise=OptimiseTask(OBJECTIVE, num_steps, 3e-3 if lora is None else 1e-2, 0, 0.01),
            fixed_ending=True,
            token_budget=4096,
            lora=lora,
            zero=ZeroSettings(stage=0, offload=False, bf16=False, optimizer=optimizer),
            checkpoint_every=1000,
            watch=None,
            seed=0,
            output=open_directory(str(self.directory)),
        )
        ends = tuple(loading.end_token_ids(self.model))
        assert ends, "a fixed ending forbids something"
        settings = BufferSettings(
            ledger=LedgerSettings(num_steps, 4, max_staleness, max_staleness, 0),
            rollouts=RolloutSettings(
                SamplingSettings(1.0, 1.0, MAX_TOKENS, MAX_TOKENS, ()), group_size=8, seed=0
            ),
            prompts=PromptStream(PROMPTS, [], general_share=0.0, seed=0),
            reward=EnsembleReward((0.0,), (0.0,), 0.0, "mean", 0.0, None),
            rewards=(EvenTokens(sign),),  # type: ignore[arg-type]
            gold=None,
            groups_per_engine=8,
        )
        spec = EngineSpec(
            kind="generate",
            architecture=str(self.model),
            precision="fp32",
            context_tokens=128,
            tensor_parallel_size=1,
            max_num_seqs=32,
            memory_fraction=0.2,
            kv_cache_gib=1.0,
            eager=True,
            num_cpus=1.0,
            num_gpus=0.0,
            threads=os.cpu_count() or 1,
            latency=None,
        )
        buffer = ray.remote(RolloutBuffer).options(num_cpus=0).remote(settings, str(self.model))  # type: ignore[attr-defined]
        source = EngineSource(BROKER, spec, str(self.model))
        try:
            train(LocalWorker(on_metrics), task, Sampling(source, 1, buffer))
        finally:
            ray.kill(buffer)
        history: list[dict[str, Any]] = json.loads((self.directory / "optimise.json").read_text())
        return history


@pytest.fixture(name="loop")
def policy_loop(tiny_model: Path, broker: Any, process_group: None, tmp_path: Path) -> Loop:
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


def test_a_planted_reward_is_learnt_by_adapters(loop: Loop) -> None:
    history = loop.run(lora=LoraSettings(rank=8, alpha=32))
    assert rise(history) > 0.1
    # The engine has the adapters' share in its weights, from the first step on.
    assert history[0]["sync_difference"] < 1e-4
    assert all(row["sampler_kl"] < 1e-6 for row in history)
    assert history[-1]["kl"] > 0.001
    written = AutoModelForCausalLM.from_pretrained(loop.directory / "model")
    assert not any("lora" in name for name, _ in written.named_parameters())


def test_an_engine_that_dies_is_replaced_and_given_the_weights(loop: Loop) -> None:
    killed = []

    def kill_an_engine(values: dict[str, Any]) -> None:
        if re.match(r"3/", values.get("step", "")):
            (name,) = [
                actor["name"]
                for actor in ray.util.list_named_actors(all_namespaces=True)
                if actor["name"].startswith("engine-")
            ]
            killed.append(name)
            ray.kill(ray.get_actor(name))

    history = loop.run(num_steps=6, max_staleness=1, on_metrics=kill_an_engine)
    assert killed
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    # They were seen to agree at first, and again with the one in its place.
    checked = [row["step"] for row in history if "sync_difference" in row]
    assert len(checked) == 2
    assert all(row["sampler_kl"] < 0.1 for row in history)
