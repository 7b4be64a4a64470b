"""Direct preference optimisation on a tiny policy."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.torch_engine import TorchEngine
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.worker import LocalWorker
from charactertrain.runtime.zero import FrozenModel, ZeroSettings
from charactertrain.stages.policy.dpo import DpoTask, dpo_step, step_prompts, with_sampled_tokens
from charactertrain.stages.preference_model.data import Example
from charactertrain.stages.preference_model.step import RankedPair, RankedPrompt
from charactertrain.stages.response_logits import Models

END_TOKEN = 0
OPTIMIZER = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False)
ZERO = ZeroSettings(stage=0, offload=False, bf16=False, optimizer=OPTIMIZER)
BETA = 0.2


def prompt(number: int, responses: tuple[tuple[int, ...], ...], p: float) -> RankedPrompt:
    return RankedPrompt(
        prompt_id=f"p{number}",
        trait_id="warm",
        group=PromptGroup((7, 30 + number, 11), responses),
        pairs=(RankedPair(1, 0, p, 1.0 + number, 0.0),),
        utilities=(0.0, 1.0),
    )


PROMPTS = [
    prompt(0, ((40, 41), (50, 51, 52, 53)), 0.9),
    prompt(1, ((60, 61, 62), (70,)), 0.8),
]


@pytest.fixture(name="models")
def trained_and_frozen(tiny_model: Path, process_group: None) -> Iterator[Models]:
    load = partial(loading.load_causal_lm, tiny_model, torch.float32)
    yield Models(TorchEngine(load, OPTIMIZER, bf16=False), FrozenModel(load, ZERO), ())


def step(
    models: Models, prompts: list[RankedPrompt] = PROMPTS, budget: int = 10_000
) -> tuple[dict[str, Any], Tensor]:
    """A step's metrics and gradient, which is not kept."""
    metrics = dpo_step(models, prompts, BETA, LocalWorker(print), budget)
    assert isinstance(models.policy, TorchEngine)
    gradient = torch.cat([value.flatten() for value in models.policy.gradients().values()])
    for value in models.policy.gradients().values():
        value.zero_()
    return metrics, gradient.clone()


def test_at_the_reference_the_loss_is_log_two_and_nothing_is_preferred(models: Models) -> None:
    metrics, gradient = step(models)
    assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert metrics["margin"] == pytest.approx(0.0, abs=1e-6)
    assert gradient.norm() > 0


def test_the_step_is_the_same_however_it_is_cut(models: Models) -> None:
    whole, whole_gradient = step(models)
    cut, cut_gradient = step(models, PROMPTS[::-1], budget=1)
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    torch.testing.assert_close(cut_gradient, whole_gradient, rtol=1e-4, atol=1e-6)


def test_the_policy_comes_to_prefer_what_its_labels_do(models: Models) -> None:
    certain = [replace(p, pairs=(replace(p.pairs[0], probability=0.9),)) for p in PROMPTS]
    for _ in range(60):
        dpo_step(models, certain, BETA, LocalWorker(print), 10_000)
        models.policy.step(1e-3)
    metrics, _ = step(models, certain)
    assert metrics["accuracy"] == 1.0
    # A soft label is reached and not passed: the margin of 0.9 is log 9.
    assert metrics["margin"] == pytest.approx(math.log(9), rel=0.2)


def test_where_responses_cannot_end_the_ending_is_held(models: Models) -> None:
    bound = replace(models, forbidden=(END_TOKEN,))
    metrics, _ = step(bound)
    assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-5)
    models.policy.module.lm_head.weight.data[END_TOKEN] += 0.5
    moved, _ = step(bound)
    # What is preferred has not changed: the end is no alternative.
    assert moved["margin"] == pytest.approx(0.0, abs=1e-5)
    assert moved["loss"] > metrics["loss"] + 1e-4


def test_responses_are_the_tokens_that_were_sampled() -> None:
    example = Example(
        ranked=PROMPTS[0],
        family="tea",
        split="train",
        texts=("a", "b"),
        response_ids=("r1", "r2"),
        lengths=(2, 4),
        variants=("none", "none"),
    )
    (found,) = with_sampled_tokens([example], {"r1": (1, 2, 3)}, [9])
    assert found.group.responses == ((1, 2, 3), (50, 51, 52, 53, 9))
    assert found.pairs == PROMPTS[0].pairs


def test_every_prompt_comes_once_per_epoch() -> None:
    prompts = tuple(prompt(number, ((1,), (2,)), 0.9) for number in range(5))
    dpo = DpoTask(prompts, prompts_per_step=2, beta=0.1)
    drawn = [p.prompt_id for number in range(5) for p in step_prompts(dpo, 1, number)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [f"p{i}" for i in range(5)]
    assert drawn[:5] != drawn[5:]
