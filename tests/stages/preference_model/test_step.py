"""A step of the preference model: its numbers on a real engine of one process."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from charactertrain.exceptions import TrainingError
from charactertrain.models import loading, lora
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.torch_engine import TorchEngine
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.worker import LocalWorker
from charactertrain.stages.preference_model import step as steps
from charactertrain.stages.preference_model.step import (
    PreferenceObjective,
    RankedPair,
    RankedPrompt,
    group_rewards,
    held_out_loss,
    preference_step,
    row_tokens,
)

BRADLEY_TERRY = PreferenceObjective("bradley_terry", centering=0.0, margin=0.0)
PLACKETT_LUCE = PreferenceObjective("plackett_luce", centering=0.0, margin=0.0)
OBJECTIVES = {
    "bradley_terry": BRADLEY_TERRY,
    "margin_and_centering": PreferenceObjective("bradley_terry", centering=0.1, margin=1.5),
    "plackett_luce": PLACKETT_LUCE,
    "plackett_luce_centering": PreferenceObjective("plackett_luce", centering=0.1, margin=0.0),
}
ALL_TOGETHER, EACH_ALONE = 10_000, 20
"""Budgets, in tokens."""


def ranked(
    prompt_id: str,
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    utilities: Sequence[float],
    *,
    weight: float = 1.0,
    margin: float = 0.0,
) -> RankedPrompt:
    """A prompt with all pairs of its responses, which weigh `weight` together."""
    all_pairs = list(combinations(range(len(responses)), 2))
    pairs = tuple(
        RankedPair(i, j, sigmoid(utilities[i] - utilities[j]), weight / len(all_pairs), margin)
        for i, j in all_pairs
    )
    group = PromptGroup(tuple(prompt), tuple(map(tuple, responses)))
    return RankedPrompt(prompt_id, "warm", group, pairs, tuple(utilities))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


TWO = ranked("two", (7, 30, 11), ((40, 41), (50, 51, 52, 53)), (1.0, -0.5))
THREE = ranked(
    "three",
    (9, 8, 60, 61, 62, 63),
    (range(70, 90), (91,), (92, 93, 94)),
    (0.2, 1.4, -0.9),
    weight=2.0,
    margin=0.5,
)
FOUR = ranked(
    "four",
    (33, 34),
    ((100, 101, 102), (103,), range(104, 112), (113, 114)),
    (-1.0, 0.3, 0.3, 2.0),
    weight=0.5,
)
ANOTHER = ranked("another", range(120, 140), ((200,), range(201, 211)), (-2.0, 1.0))
PROMPTS = (TWO, THREE, FOUR, ANOTHER)


# A step's sums are taken over it.
pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(name="load", scope="module")
def preference_model_loader(tiny_model: Path) -> partial[Any]:
    return partial(loading.load_preference_model, tiny_model, torch.float32, seed=1)


def make_engine(
    load: Any, *, recompute_activations: bool = False, bf16: bool = False
) -> TorchEngine:
    settings = OptimizerSettings(
        weight_decay=0.0, max_grad_norm=1.0, recompute_activations=recompute_activations
    )
    engine = TorchEngine(load, settings, bf16=bf16)
    # A new head gives rewards near zero, for which any pair's loss is log 2.
    generator = torch.Generator().manual_seed(3)
    head = engine.module.score.weight
    with torch.no_grad():
        head.copy_(0.3 * torch.randn(head.shape, generator=generator))
    return engine


@pytest.fixture(name="engine")
def engine_with_a_head_that_tells_responses_apart(load: partial[Any]) -> TorchEngine:
    return make_engine(load)


def worker(rank: int = 0, num_workers: int = 1) -> LocalWorker:
    """This process in the place of one of several workers."""
    placed = LocalWorker(lambda _: None)
    placed.rank, placed.num_workers = rank, num_workers
    return placed


def gradients(engine: TorchEngine) -> dict[str, Tensor]:
    """What has been added up since the last call, by parameter."""
    found = {name: gradient.clone() for name, gradient in engine.gradients().items()}
    for gradient in engine.gradients().values():
        gradient.zero_()
    return found


def step(
    engine: TorchEngine,
    prompts: Sequence[RankedPrompt],
    objective: PreferenceObjective,
    token_budget: int = ALL_TOGETHER,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A step's metrics and gradient."""
    metrics = preference_step(engine, prompts, objective, worker(), token_budget)
    return metrics, gradients(engine)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def rewards_alone(engine: TorchEngine, group: PromptGroup) -> list[float]:
    """The model's own scalar of each response with its prompt, in a call of its own."""
    with torch.no_grad():
        return [
            float(
                engine.module(
                    input_ids=torch.tensor([[*group.prompt_token_ids, *response]])
                ).logits[0, 0]
            )
            for response in group.responses
        ]


def cross_entropy(label: float, logit: float) -> float:
    return -label * math.log(sigmoid(logit)) - (1 - label) * math.log(sigmoid(-logit))


def ranking_cross_entropy(rewards: Sequence[float], utilities: Sequence[float]) -> float:
    """Per choice, over all orders."""

    def logprob(order: tuple[int, ...], values: Sequence[float]) -> float:
        return sum(
            values[first] - math.log(sum(math.exp(values[i]) for i in order[place:]))
            for place, first in enumerate(order)
        )

    orders = list(permutations(range(len(rewards))))
    terms = [math.exp(logprob(order, utilities)) * logprob(order, rewards) for order in orders]
    return -sum(terms) / (len(rewards) - 1)


# Rewards


def test_rewards_are_the_models_own_scalars(engine: TorchEngine) -> None:
    rewards, num_tokens, num_padded = group_rewards(engine, [prompt.group for prompt in PROMPTS])
    expected = [reward for prompt in PROMPTS for reward in rewards_alone(engine, prompt.group)]
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.5
    assert num_tokens == num_padded == sum(prompt.group.num_tokens for prompt in PROMPTS)


def test_rewards_do_not_depend_on_neighbours(engine: TorchEngine) -> None:
    groups = [prompt.group for prompt in PROMPTS]
    with torch.no_grad():
        together = group_rewards(engine, groups)[0]
        alone = torch.cat([group_rewards(engine, [group])[0] for group in groups])
        turned = group_rewards(engine, groups[::-1])[0]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    counts = [len(group.responses) for group in groups[::-1]]
    back = torch.cat(turned.split(counts)[::-1])
    torch.testing.assert_close(together, back, rtol=1e-5, atol=1e-5)


def test_reward_of_an_empty_response_is_read_at_its_prompt(engine: TorchEngine) -> None:
    group = PromptGroup((7, 30, 11), ((), (40,)))
    rewards = group_rewards(engine, [group])[0].tolist()
    assert rewards == pytest.approx(rewards_alone(engine, group), abs=1e-4)


# Loss and gradient


@pytest.mark.parametrize("name", OBJECTIVES)
def test_step_is_the_same_for_any_budget_and_any_order(engine: TorchEngine, name: str) -> None:
    expected, expected_gradients = step(engine, PROMPTS, OBJECTIVES[name])
    for prompts, budget in (
        (PROMPTS, EACH_ALONE),
        (PROMPTS[::-1], 40),
        (PROMPTS[::-1], ALL_TOGETHER),
    ):
        metrics, found = step(engine, prompts, OBJECTIVES[name], budget)
        assert metrics == pytest.approx(expected, rel=1e-5)
        assert_same_gradients(found, expected_gradients)


def test_bradley_terry_step_by_hand(engine: TorchEngine) -> None:
    objective = OBJECTIVES["margin_and_centering"]
    loss = right = total = 0.0
    for prompt in PROMPTS:
        rewards = rewards_alone(engine, prompt.group)
        for pair in prompt.pairs:
            chosen, rejected = rewards[pair.chosen], rewards[pair.rejected]
            margin = pair.margin + 1.5 * (2 * pair.probability - 1)
            loss += pair.weight * cross_entropy(pair.probability, chosen - rejected - margin)
            loss += pair.weight * 0.1 * (chosen + rejected) ** 2
            decided = pair.probability != 0.5
            total += pair.weight * decided
            agrees = (chosen > rejected) == (pair.probability > 0.5)
            right += pair.weight * (decided and agrees)
    metrics, _ = step(engine, PROMPTS, objective)
    assert metrics["loss"] == pytest.approx(loss / 4.5, rel=1e-4)
    # Two of FOUR's responses are tied: a twelfth of weight has no label.
    assert total == pytest.approx(4.5 - 0.5 / 6)
    assert metrics["accuracy"] == pytest.approx(right / total, rel=1e-5)
    assert metrics["tokens"] == sum(prompt.group.num_tokens for prompt in PROMPTS)
    assert metrics["padding_share"] == 0.0


def test_plackett_luce_step_over_prompts_of_several_sizes_by_hand(engine: TorchEngine) -> None:
    weights = [1.0, 2.0, 0.5, 1.0]
    losses = [
        ranking_cross_entropy(rewards_alone(engine, prompt.group), prompt.utilities)
        for prompt in PROMPTS
    ]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / 4.5
    assert step(engine, PROMPTS, PLACKETT_LUCE)[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_plackett_luce_of_pairs_is_bradley_terry(engine: TorchEngine) -> None:
    prompts = (TWO, ANOTHER)
    expected, expected_gradients = step(engine, prompts, BRADLEY_TERRY)
    metrics, found = step(engine, prompts, PLACKETT_LUCE)
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert_same_gradients(found, expected_gradients)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_prompt_weighs_the_same_however_many_responses_it_has(
    engine: TorchEngine, name: str
) -> None:
    objective = OBJECTIVES[name]
    few = TWO
    many = replace(FOUR, pairs=tuple(replace(p, weight=1 / 6) for p in FOUR.pairs))
    together, gradient = step(engine, [few, many], objective)
    (first, first_gradient), (second, second_gradient) = (
        step(engine, [prompt], objective) for prompt in (few, many)
    )
    assert together["loss"] == pytest.approx((first["loss"] + second["loss"]) / 2, rel=1e-5)
    mean = {key: (first_gradient[key] + second_gradient[key]) / 2 for key in first_gradient}
    assert_same_gradients(gradient, mean)


def test_gradient_is_that_of_the_loss(engine: TorchEngine) -> None:
    # Along the head, whose every step changes the loss smoothly.
    objective = OBJECTIVES["margin_and_centering"]
    _, gradient = step(engine, PROMPTS, objective, 40)
    head = engine.module.score.weight
    (name,) = [name for name, p in engine.module.named_parameters() if p is head]
    direction = torch.randn(head.shape, generator=torch.Generator().manual_seed(4))
    losses = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            head.add_(sign * 1e-2 * direction)
        losses.append(held_out_loss(engine, PROMPTS, objective, worker(), ALL_TOGETHER))
        with torch.no_grad():
            head.sub_(sign * 1e-2 * direction)
    slope = (losses[0] - losses[1]) / 2e-2
    assert slope == pytest.approx(float((gradient[name] * direction).sum()), rel=1e-2)
    assert abs(slope) > 0.01


def test_activations_computed_again_give_the_same_gradient(
    engine: TorchEngine, load: partial[Any]
) -> None:
    expected, expected_gradients = step(engine, PROMPTS, BRADLEY_TERRY)
    again = make_engine(load, recompute_activations=True)
    assert again.module.is_gradient_checkpointing
    metrics, found = step(again, PROMPTS, BRADLEY_TERRY)
    assert metrics == expected
    assert_same_gradients(found, expected_gradients)


def test_step_in_bfloat16_is_near_that_in_float32(engine: TorchEngine, load: partial[Any]) -> None:
    expected, expected_gradients = step(engine, PROMPTS, PLACKETT_LUCE)
    metrics, found = step(make_engine(load, bf16=True), PROMPTS, PLACKETT_LUCE)
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=0.03)
    assert metrics["loss"] != expected["loss"]
    for name, gradient in expected_gradients.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_step_learns_the_labels(engine: TorchEngine) -> None:
    first = held_out_loss(engine, PROMPTS, PLACKETT_LUCE, worker(), ALL_TOGETHER)
    for _ in range(12):
        preference_step(engine, PROMPTS, PLACKETT_LUCE, worker(), ALL_TOGETHER)
        engine.step(2e-3)
    last, _ = step(engine, PROMPTS, PLACKETT_LUCE)
    assert last["accuracy"] == pytest.approx(1.0)
    assert last["loss"] < first
    for prompt in PROMPTS:
        rewards = rewards_alone(engine, prompt.group)
        for pair in prompt.pairs:
            difference = rewards[pair.chosen] - rewards[pair.rejected]
            assert sigmoid(difference) == pytest.approx(pair.probability, abs=0.2)


def test_adapted_model_gives_the_same_rewards_and_trains(
    engine: TorchEngine, load: partial[Any]
) -> None:
    settings = lora.LoraSettings(rank=2, alpha=4)
    adapted = make_engine(lambda: lora.add_adapters(load(), settings))
    expected, _ = step(engine, PROMPTS, BRADLEY_TERRY)
    metrics, found = step(adapted, PROMPTS, BRADLEY_TERRY)
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert all(".lora_" in name or name.endswith(".score.weight") for name in found)
    preference_step(adapted, PROMPTS, BRADLEY_TERRY, worker(), ALL_TOGETHER)
    adapted.step(1e-2)
    assert step(adapted, PROMPTS, BRADLEY_TERRY)[0]["loss"] < metrics["loss"]


# Padded rows


@pytest.fixture(name="unpacked")
def engine_of_a_model_that_is_not_packed(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> TorchEngine:
    """As if the model's attention were none that can be packed."""
    engine.module.set_attn_implementation("sdpa")
    monkeypatch.setattr(steps, "is_packable", lambda _: False)
    return engine


@pytest.mark.parametrize("name", ["margin_and_centering", "plackett_luce"])
def test_padded_rows_give_the_loss_and_gradient_of_packed_ones(
    unpacked: TorchEngine, load: partial[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        step(unpacked, PROMPTS, OBJECTIVES[name], budget)
        for budget in (EACH_ALONE, 100, ALL_TOGETHER)
    ]
    monkeypatch.undo()
    expected, expected_gradients = step(make_engine(load), PROMPTS, OBJECTIVES[name])
    assert expected["padding_share"] == 0.0
    for metrics, of_padded in found:
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert metrics["accuracy"] == pytest.approx(expected["accuracy"])
        assert_same_gradients(of_padded, expected_gradients)
        # Each response with its prompt: 5 + 7, 26 + 7 + 9, 5 + 3 + 10 + 4, 21 + 30.
        assert metrics["tokens"] == 127
        assert 0 <= metrics["padding_share"] <= 0.05


def test_padded_rewards_are_the_same_for_any_number_of_batches(unpacked: TorchEngine) -> None:
    groups = [prompt.group for prompt in PROMPTS]
    expected = [reward for group in groups for reward in rewards_alone(unpacked, group)]
    expected_gradients = reward_gradients(unpacked, groups)
    for count in (11, 14):
        rewards, *_ = group_rewards(unpacked, groups, count)
        assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
        # Rows that come again pass through the model, and add nothing.
        rewards.sum().backward()
        assert_same_gradients(gradients(unpacked), expected_gradients)


def reward_gradients(engine: TorchEngine, groups: Sequence[PromptGroup]) -> dict[str, Tensor]:
    """Of the sum of all rewards, each by a call of its own."""
    for group in groups:
        for response in group.responses:
            row = torch.tensor([[*group.prompt_token_ids, *response]])
            engine.module(input_ids=row).logits.sum().backward()
    return gradients(engine)


def test_tokens_of_a_group_by_hand() -> None:
    group = PromptGroup((1, 2, 3), ((4,), (5, 6), ()))
    assert row_tokens(group, packs=True) == 6
    assert row_tokens(group, packs=False) == 12


# Several workers


@pytest.mark.parametrize(("num_workers", "budget"), [(2, EACH_ALONE), (3, 50), (5, ALL_TOGETHER)])
@pytest.mark.parametrize("engine_name", ["engine", "unpacked"])
def test_workers_add_up_to_the_step_of_one(
    request: pytest.FixtureRequest, engine_name: str, num_workers: int, budget: int
) -> None:
    engine: TorchEngine = request.getfixturevalue(engine_name)
    objective = OBJECTIVES["margin_and_centering"]
    expected = steps._sums(engine, PROMPTS, objective, worker(), budget, "a step")
    expected_gradients = gradients(engine)
    # In the process group of one each worker's sums stay its own; five have an empty share.
    parts = [
        steps._sums(engine, PROMPTS, objective, worker(rank, num_workers), budget, "a step")
        for rank in range(num_workers)
    ]
    assert_same_gradients(gradients(engine), expected_gradients)
    total = torch.stack(parts).sum(0)
    torch.testing.assert_close(total[:4], expected[:4], rtol=1e-5, atol=1e-6)
    if engine_name == "engine":
        assert total[4:].tolist() == expected[4:].tolist()


@pytest.mark.parametrize("engine_name", ["engine", "unpacked"])
def test_workers_pass_through_the_model_as_often_as_one_another(
    request: pytest.FixtureRequest, engine_name: str
) -> None:
    engine: TorchEngine = request.getfixturevalue(engine_name)
    passes: list[int] = []

    class CountingEngine(TorchEngine):
        def __init__(self) -> None:
            """One that exists already."""
            self.__dict__ = engine.__dict__

        def forward(self, **inputs: Any) -> Any:
            passes[-1] += 1
            return super().forward(**inputs)

    for rank in range(3):
        passes.append(0)
        steps._sums(CountingEngine(), PROMPTS, BRADLEY_TERRY, worker(rank, 3), 40, "a step")
    assert len(set(passes)) == 1
    assert passes[0] > 0


# Held-out loss, and losses that are not finite


@pytest.mark.parametrize("name", OBJECTIVES)
def test_held_out_loss_is_the_steps_loss_and_adds_no_gradient(
    engine: TorchEngine, name: str
) -> None:
    loss = held_out_loss(engine, PROMPTS, OBJECTIVES[name], worker(), 40)
    assert gradients(engine) == {}
    assert loss == pytest.approx(step(engine, PROMPTS, OBJECTIVES[name])[0]["loss"], rel=1e-5)


def test_held_out_loss_leaves_a_gradient_as_it_was(engine: TorchEngine) -> None:
    _, expected = step(engine, [TWO], BRADLEY_TERRY)
    preference_step(engine, [TWO], BRADLEY_TERRY, worker(), ALL_TOGETHER)
    held_out_loss(engine, PROMPTS, BRADLEY_TERRY, worker(), ALL_TOGETHER)
    assert_same_gradients(gradients(engine), expected)
    assert torch.is_grad_enabled()


def test_step_without_a_decided_pair_has_no_accuracy(engine: TorchEngine) -> None:
    tied = ranked("tied", (7, 30), ((40, 41), (50,)), (0.0, 0.0))
    metrics, _ = step(engine, [tied], BRADLEY_TERRY)
    assert metrics["accuracy"] is None
    assert math.isfinite(metrics["loss"])


def test_loss_that_is_not_finite_is_refused_with_its_prompts(engine: TorchEngine) -> None:
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    wrong = replace(
        ANOTHER, pairs=(replace(ANOTHER.pairs[0], margin=math.nan),), prompt_id="the-wrong-one"
    )
    preference_step(engine, [TWO, wrong, FOUR], BRADLEY_TERRY, worker(), EACH_ALONE)
    with pytest.raises(TrainingError, match=r"not finite: nan in the step, prompts the-wrong-one$"):
        engine.step(1e-3)
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_rewards_that_are_not_finite_are_refused_with_all_prompts(engine: TorchEngine) -> None:
    with torch.no_grad():
        engine.module.score.weight.fill_(torch.inf)
    preference_step(engine, [TWO, FOUR], PLACKETT_LUCE, worker(), ALL_TOGETHER)
    with pytest.raises(
        TrainingError, match=r"not finite: nan in the step, prompts (two, four|four, two)"
    ):
        engine.step(1e-3)
