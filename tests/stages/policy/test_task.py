"""A policy that is trained by adapters: what its phases leave is a plain model all the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_gradients import PLAIN
from safetensors.torch import load_file
from saving_worker import KilledError, SavingWorker
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from charactertrain.models import loading
from charactertrain.models.lora import LoraSettings
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.worker import LocalWorker
from charactertrain.runtime.zero import ZeroEngine, ZeroSettings
from charactertrain.stages.policy.dpo import DpoTask, train
from charactertrain.stages.policy.task import (
    OptimiseTask,
    PolicyTask,
    WarmStartTask,
    training_engine,
    write_model,
)
from charactertrain.stages.preference_model.step import RankedPair, RankedPrompt
from charactertrain.storage import open_directory

pytestmark = pytest.mark.usefixtures("process_group")

OPTIMIZER = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False)
ZERO = ZeroSettings(stage=0, offload=False, optimizer=OPTIMIZER)
LORA = LoraSettings(rank=4, alpha=16)
IDS = torch.tensor([[7, 30, 11, 40, 41, 50, 51]])
EXAMPLES = tuple(PromptGroup((7, 30 + number, 11), ((40, 41, 42),)) for number in range(4))
PROMPTS = tuple(
    RankedPrompt(
        prompt_id=f"p{number}",
        trait_id="warm",
        group=PromptGroup((7, 30 + number, 11), ((40, 41), (50, 51, 52, 53))),
        pairs=(RankedPair(1, 0, 0.9, 1.0, 0.0),),
        utilities=(0.0, 1.0),
    )
    for number in range(4)
)


@pytest.fixture(name="gpt2", scope="module")
def transposed_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that holds the weights of its layers transposed."""
    directory = tmp_path_factory.mktemp("gpt2")
    tokenizer = loading.load_tokenizer(tiny_model)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_task(model: Path, directory: Path, **changes: Any) -> PolicyTask:
    task = PolicyTask(
        model_directory=str(model),
        precision="fp32",
        context_tokens=64,
        warm_start=WarmStartTask(EXAMPLES, 1, 2, 1e-2),
        optimise=OptimiseTask(PLAIN, 4, 1e-2, 0, 0.1),
        fixed_ending=False,
        token_budget=100,
        lora=LORA,
        zero=ZERO,
        checkpoint_every=1,
        watch=None,
        seed=0,
        output=open_directory(str(directory)),
    )
    return replace(task, **changes)


@contextmanager
def opened(task: PolicyTask, directory: Path) -> Iterator[ZeroEngine]:
    engine = training_engine(task, directory, None)
    yield engine
    engine.close()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def plain(directory: Path) -> nn.Module:
    """As anybody loads it."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()


def moved(engine: ZeroEngine) -> ZeroEngine:
    """Adapters other than at first, when they add nothing."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in engine.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return engine


@pytest.mark.parametrize("model", ["tiny_model", "gpt2"])
def test_adapted_policy_is_written_as_a_plain_model_that_says_the_same(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Path = request.getfixturevalue(model)
    task = make_task(base, tmp_path)
    with opened(task, base) as engine:
        write_model(moved(engine), task, LocalWorker(print), "model")
        expected = logits(engine.module.eval())
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found.keys() == load_file(base / "model.safetensors").keys()
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    written = plain(tmp_path / "model")
    torch.testing.assert_close(logits(written), expected, rtol=1e-5, atol=1e-5)
    assert (expected - logits(plain(base))).abs().max() > 0.05


def test_adapters_begin_alike_at_every_start_and_add_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    task = make_task(tiny_model, tmp_path)
    starts = []
    for _ in range(2):
        with opened(task, tiny_model) as engine:
            starts.append(engine.full_state(torch.float32))
            assert torch.equal(logits(engine.module.eval()), logits(plain(tiny_model)))
        torch.rand(1)
    first, second = starts
    assert all(torch.equal(first[name], second[name]) for name in first)
    with opened(replace(task, seed=1), tiny_model) as engine:
        other = engine.full_state(torch.float32)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def run_dpo(task: PolicyTask, *, kill_after: Iterator[int]) -> None:
    """Both phases of a policy that learns from pairs, killed after so many checkpoints."""
    dpo = DpoTask(PROMPTS, prompts_per_step=2, beta=0.2)
    for count in (*kill_after, -1):
        worker = SavingWorker(task.output.local_path, kill_after=count)
        try:
            train(worker, task, dpo)
        except KilledError:
            continue


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapted_policy_that_is_killed_goes_on_bit_for_bit(
    tiny_model: Path, tmp_path: Path, precision: str
) -> None:
    found = []
    # In the warm start, and in the steps after it.
    for name, kills in (("whole", ()), ("killed", (1, 2))):
        directory = tmp_path / name
        directory.mkdir()
        task = make_task(tiny_model, directory, precision=precision)
        run_dpo(task, kill_after=iter(kills))
        found.append(directory)
    base = load_file(tiny_model / "model.safetensors")
    states = []
    for phase in ("warm_start", "model"):
        whole, killed = (load_file(path / phase / "model.safetensors") for path in found)
        assert whole.keys() == killed.keys() == base.keys()
        assert all(torch.equal(whole[name], killed[name]) for name in whole)
        states.append(whole)
    base = {name: value.to(states[0][name].dtype) for name, value in base.items()}
    # Each phase moved what has adapters, from where the one before it ended, and nothing else.
    for before, after in ((base, states[0]), (states[0], states[1])):
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        assert changed == {name for name in base if "_proj." in name}


def test_second_phase_begins_where_the_first_has_ended(tiny_model: Path, tmp_path: Path) -> None:
    task = make_task(tiny_model, tmp_path)
    run_dpo(task, kill_after=iter(()))
    warm = tmp_path / "warm_start"
    with opened(task, warm) as engine:
        assert torch.equal(logits(engine.module.eval()), logits(plain(warm)))
