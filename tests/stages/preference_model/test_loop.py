"""The preference model's training on a tiny model: what it learns, and how it goes on."""

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saving_worker import KilledError, SavingWorker
from transformers import AutoModelForSequenceClassification

from charactertrain.exceptions import TrainingError
from charactertrain.models.lora import LoraSettings
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.zero import ZeroSettings
from charactertrain.stages.preference_model import data as preference_data
from charactertrain.stages.preference_model.loop import (
    Member,
    PreferenceTask,
    evaluation_steps,
    num_steps,
    steps_of,
    train,
)
from charactertrain.stages.preference_model.step import (
    PreferenceObjective,
    RankedPair,
    RankedPrompt,
)
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("process_group")]

GOOD, BAD = 50, 60
"""Tokens that a response holds at a place of its own, and by which it is better or worse."""
OPTIMIZER = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False)
ZERO = ZeroSettings(stage=0, offload=False, bf16=False, optimizer=OPTIMIZER)


def planted(count: int, *, seed: int, responses: int = 3) -> tuple[RankedPrompt, ...]:
    """Prompts whose responses are better the more of their tokens are GOOD ones, and not BAD."""
    drawn = random.Random(seed)
    prompts = []
    for index in range(count):
        question = tuple(drawn.choices(range(100, 200), k=6))
        levels = drawn.sample(range(5), responses)
        texts = []
        for level in levels:
            tokens = [GOOD] * level + [BAD] * (4 - level)
            tokens += drawn.choices(range(100, 200), k=drawn.randint(2, 8))
            drawn.shuffle(tokens)
            texts.append(tuple(tokens))
        pairs = tuple(
            RankedPair(*((i, j) if levels[i] > levels[j] else (j, i)), 0.95, 1 / 3, 0.0)
            for i, j in itertools.combinations(range(responses), 2)
        )
        utilities = tuple(2.0 * level for level in levels)
        prompts.append(
            RankedPrompt(
                f"{seed}-{index}", "warm", PromptGroup(question, tuple(texts)), pairs, utilities
            )
        )
    return tuple(prompts)


def make_task(model: Path, directory: Path, **changes: Any) -> PreferenceTask:
    held_out = planted(40, seed=2)
    task = PreferenceTask(
        model_directory=str(model),
        precision="fp32",
        members=(Member("model", 3, planted(160, seed=1)),),
        selection=held_out[:20],
        scored=tuple(prompt.group for prompt in held_out),
        objective=PreferenceObjective("bradley_terry", centering=0.01, margin=0.0),
        epochs=2,
        prompts_per_step=8,
        learning_rate=3e-3,
        warmup_share=0.1,
        decay="linear",
        evaluations=4,
        patience=0,
        lora=None,
        token_budget=512,
        zero=ZERO,
        checkpoint_every=1000,
        output=open_directory(str(directory)),
    )
    return replace(task, **changes)


def results(directory: Path, name: str = "model") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / f"{name}.json").read_text())
    return found


def held_out_accuracy(directory: Path, name: str = "model") -> float:
    prompts, rewards = planted(40, seed=2), results(directory, name)["rewards"]
    hits = [
        found[pair.chosen] > found[pair.rejected]
        for prompt, found in zip(prompts, rewards, strict=True)
        for pair in prompt.pairs
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("objective", ["bradley_terry", "plackett_luce"])
def test_a_planted_preference_is_learnt(tiny_model: Path, tmp_path: Path, objective: Any) -> None:
    chosen = PreferenceObjective(objective, centering=0.01, margin=0.0)
    train(SavingWorker(tmp_path), make_task(tiny_model, tmp_path, objective=chosen))
    assert held_out_accuracy(tmp_path) >= 0.95
    found = results(tmp_path)
    assert len(found["history"]) == 40
    assert found["history"][-1]["loss"] < 0.5 * found["history"][0]["loss"] + 0.1
    assert [entry["step"] for entry in found["evaluations"]] == [10, 20, 30, 40]


def test_shuffled_labels_teach_nothing(tiny_model: Path, tmp_path: Path) -> None:
    prompts = planted(160, seed=1)
    shuffled = tuple(preference_data.shuffled(prompt, seed=5) for prompt in prompts)
    train(
        SavingWorker(tmp_path),
        make_task(tiny_model, tmp_path, members=(Member("model", 3, shuffled),)),
    )
    # 120 pairs of 40 prompts: a standard error of about 0.06.
    assert abs(held_out_accuracy(tmp_path) - 0.5) < 0.2
    trained = results(tmp_path)["history"][-1]["accuracy"]
    assert trained < 0.9


def test_the_written_model_gives_the_rewards_that_were_measured(
    tiny_model: Path, tmp_path: Path
) -> None:
    train(SavingWorker(tmp_path), make_task(tiny_model, tmp_path, epochs=1))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    rewards = results(tmp_path)["rewards"]
    for prompt, expected in zip(planted(40, seed=2)[:5], rewards[:5], strict=True):
        for response, reward in zip(prompt.group.responses, expected, strict=True):
            ids = torch.tensor([[*prompt.group.prompt_token_ids, *response]])
            with torch.no_grad():
                assert float(model(input_ids=ids).logits) == pytest.approx(reward, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_training_goes_on_bit_for_bit(
    tiny_model: Path, tmp_path: Path, precision: str
) -> None:
    members = (Member("model", 3, planted(24, seed=1)), Member("gold", 4, planted(16, seed=7)))
    changes = {
        "members": members,
        "checkpoint_every": 2,
        "precision": precision,
    }
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for directory in (undisturbed, killed):
        directory.mkdir()
    train(SavingWorker(undisturbed), make_task(tiny_model, undisturbed, **changes))
    for attempt in itertools.count():
        try:
            train(SavingWorker(killed, kill_after=1), make_task(tiny_model, killed, **changes))
            break
        except KilledError:
            assert attempt < 10
    assert attempt == 3
    for name in ("model", "gold"):
        assert results(killed, name) == results(undisturbed, name)
        expected = load_file(undisturbed / name / "model.safetensors")
        found = load_file(killed / name / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_weights_of_the_lowest_held_out_loss_are_kept(tiny_model: Path, tmp_path: Path) -> None:
    # Trained on the opposite of what is held out: every step makes it worse.
    opposite = tuple(
        replace(
            prompt,
            pairs=tuple(
                replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in prompt.pairs
            ),
        )
        for prompt in planted(64, seed=1)
    )
    task = make_task(
        tiny_model, tmp_path, members=(Member("model", 3, opposite),), evaluations=8, patience=2
    )
    train(SavingWorker(tmp_path), task)
    found = results(tmp_path)
    losses = {entry["step"]: entry["loss"] for entry in found["evaluations"]}
    assert found["best_step"] == min(losses, key=lambda step: losses[step])
    # Two evaluations without a lower one end it, short of the 16 steps.
    assert len(found["history"]) == found["best_step"] + 4 < 16
    # The rewards are those of the weights that were kept.
    short = tmp_path / "short"
    short.mkdir()
    cut = replace(task, output=open_directory(str(short)), evaluations=16, patience=1)
    train(SavingWorker(short), cut)
    if results(short)["best_step"] == found["best_step"]:
        assert results(short)["rewards"] == found["rewards"]


def test_a_held_out_loss_that_is_no_number_stops_before_anything_is_written(
    tiny_model: Path, tmp_path: Path
) -> None:
    (prompt,) = planted(1, seed=2)
    broken = replace(prompt, pairs=(replace(prompt.pairs[0], margin=float("nan")),))
    task = make_task(tiny_model, tmp_path, selection=(broken,), epochs=1)
    with pytest.raises(TrainingError, match="held-out loss of model is nan after step 5"):
        train(SavingWorker(tmp_path), task)
    assert not (tmp_path / "model.json").exists()


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (3, "bf16")])
def test_adapters_learn_and_are_merged(
    tiny_model: Path, tmp_path: Path, stage: int, precision: str
) -> None:
    task = make_task(
        tiny_model,
        tmp_path,
        lora=LoraSettings(rank=16, alpha=32),
        epochs=3,
        learning_rate=5e-3,
        precision=precision,
        zero=replace(ZERO, stage=stage),
    )
    train(SavingWorker(tmp_path), task)
    assert held_out_accuracy(tmp_path) >= 0.9
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert not any("lora" in name for name, _ in model.named_parameters())
    prompt = planted(40, seed=2)[0].group
    ids = torch.tensor([[*prompt.prompt_token_ids, *prompt.responses[0]]])
    with torch.no_grad():
        reward = float(model(input_ids=ids).logits)
    # In bf16 what is merged is rounded once more.
    tolerance = 1e-3 if precision == "fp32" else 0.1
    assert reward == pytest.approx(results(tmp_path)["rewards"][0][0], abs=tolerance)


def test_members_that_are_finished_are_not_trained_again(tiny_model: Path, tmp_path: Path) -> None:
    members = (Member("model", 3, planted(8, seed=1)),)
    train(SavingWorker(tmp_path), make_task(tiny_model, tmp_path, members=members))
    before = (tmp_path / "model.json").stat().st_mtime_ns
    more = (*members, Member("model-1", 5, planted(8, seed=1)))
    train(SavingWorker(tmp_path), make_task(tiny_model, tmp_path, members=more))
    assert (tmp_path / "model.json").stat().st_mtime_ns == before
    assert results(tmp_path, "model-1")["rewards"] != results(tmp_path)["rewards"]


def drawn(task: PreferenceTask) -> list[str]:
    return [p.prompt_id for _, prompts in steps_of(task, task.members[0], 0) for p in prompts]


def test_steps_cover_every_prompt_once_per_epoch(tmp_path: Path) -> None:
    member = Member("model", 3, planted(7, seed=1))
    task = make_task(tmp_path, tmp_path, members=(member,), prompts_per_step=3)
    assert num_steps(task, member) == 6
    sizes = [len(prompts) for _, prompts in steps_of(task, member, 0)]
    assert sizes == [3, 3, 1, 3, 3, 1]
    order = drawn(task)
    assert sorted(order[:7]) == sorted(order[7:]) == sorted(p.prompt_id for p in member.prompts)
    assert order[:7] != order[7:]
    assert [step for step, _ in steps_of(task, member, 4)] == [4, 5]
    assert list(steps_of(task, member, 4)) == list(steps_of(task, member, 0))[4:]


def test_steps_depend_on_the_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    member = Member("model", 3, planted(7, seed=1))
    task = make_task(tmp_path, tmp_path, members=(member,))
    turned = replace(task, members=(replace(member, prompts=member.prompts[::-1]),))
    assert drawn(turned) == drawn(task)
    assert drawn(replace(task, members=(replace(member, seed=4),))) != drawn(task)


def test_the_last_step_is_always_evaluated() -> None:
    assert evaluation_steps(10, 1) == {10}
    assert evaluation_steps(10, 4) == {2, 5, 8, 10}
    assert evaluation_steps(3, 8) == {1, 2, 3}
