"""DeepSpeed's engine on a GPU: in bf16 it computes what plain torch does, at every stage."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.torch_engine import TorchEngine
from charactertrain.runtime.training_engine import OptimizerSettings, TrainingEngine
from charactertrain.runtime.worker import LocalWorker
from charactertrain.runtime.zero import ZeroEngine, ZeroSettings
from charactertrain.stages.preference_model.step import (
    PreferenceObjective,
    RankedPair,
    RankedPrompt,
    preference_step,
)

pytestmark = pytest.mark.gpu

OBJECTIVE = PreferenceObjective("bradley_terry", centering=0.1, margin=0.3)
OPTIMIZER = OptimizerSettings(weight_decay=0.1, max_grad_norm=1.0, recompute_activations=False)
LEARNING_RATE = 1e-3
"""Far above what bf16 resolves of weights near 0.02."""
TOKEN_BUDGET = 40
"""Several microbatches a step."""


@pytest.fixture(name="base", scope="module")
def model_of_bf16_numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So that fp32 weights and those in bf16 are the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    directory = tmp_path_factory.mktemp("base")
    LlamaForSequenceClassification(config).bfloat16().float().save_pretrained(directory)
    return directory


def ranked_prompts() -> list[RankedPrompt]:
    random = torch.Generator().manual_seed(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 64, (count,), generator=random).tolist())

    return [
        RankedPrompt(
            f"p{index}",
            "warm",
            PromptGroup(tokens(4 + index), (tokens(3 + 4 * index), tokens(9))),
            (RankedPair(0, 1, 0.9, 1.0 + index, 0.0),),
            (2.0, 0.0),
        )
        for index in range(4)
    ]


def losses_and_norms(engine: TrainingEngine) -> list[tuple[float, float]]:
    """Of three steps."""
    found = []
    for _ in range(3):
        metrics = preference_step(
            engine, ranked_prompts(), OBJECTIVE, LocalWorker(print), TOKEN_BUDGET
        )
        found.append((metrics["loss"], engine.step(LEARNING_RATE)))
    return found


def loader(base: Path, dtype: torch.dtype) -> Callable[[], LlamaForSequenceClassification]:
    def load() -> LlamaForSequenceClassification:
        return loading.load_preference_model(base, dtype, seed=3)

    return load


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("stage", "offload"), [(0, False), (1, False), (2, False), (3, False), (2, True), (3, True)]
)
def test_steps_in_bf16_are_those_of_plain_torch(base: Path, stage: int, offload: bool) -> None:
    plain = TorchEngine(loader(base, torch.float32), OPTIMIZER, bf16=True)
    before = {name: value.detach().clone() for name, value in plain.module.named_parameters()}
    expected = losses_and_norms(plain)
    settings = ZeroSettings(stage=stage, offload=offload, bf16=True, optimizer=OPTIMIZER)
    engine = ZeroEngine(loader(base, torch.bfloat16), settings)
    try:
        found = losses_and_norms(engine)
        state = engine.full_state(torch.float32)
    finally:
        engine.close()
    assert found == [pytest.approx(values, rel=0.02) for values in expected]
    moved = error = 0.0
    for name, value in plain.module.state_dict().items():
        moved += float((value - before[name]).float().square().sum())
        error += float((value.float().cpu() - state[name]).square().sum())
    assert error < 0.1**2 * moved
