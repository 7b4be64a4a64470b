"""Bytes on a GPU, worked out by hand for a model of 388 parameters."""

from dataclasses import replace

import pytest
from small_model import SMALL

from charactertrain.sizing.memory import Training, engine_memory, trainer_memory

PLAIN = Training(
    workers=4,
    zero_stage=2,
    is_offloaded=False,
    adapter_rank=None,
    has_reference=True,
    recomputes=False,
    tokens_per_microbatch=10,
    predicted_tokens=5,
)


def test_state_is_spread_by_stage() -> None:
    def state(stage: int) -> tuple[float, float, float, float]:
        found = trainer_memory(SMALL, replace(PLAIN, zero_stage=stage))
        return found.parameters, found.gradients, found.optimizer, found.reference

    assert state(0) == (2 * 388, 6 * 388, 12 * 388, 2 * 388)
    assert state(1) == (2 * 388, 6 * 388, 3 * 388, 2 * 388)
    assert state(2) == (2 * 388, 1 * 388, 3 * 388, 2 * 388)
    assert state(3) == (0.5 * 388, 1 * 388, 3 * 388, 0.5 * 388)


def test_a_microbatch_adds_activations_and_logits() -> None:
    found = trainer_memory(SMALL, PLAIN)
    # 2 bytes, 10 tokens, 2 layers: 4 x 4 + 2 x 4 + 2 x 2 + 3 x 8 values.
    assert found.activations == 2 * 10 * 2 * 52
    assert found.logits == 4 * 5 * 10
    again = trainer_memory(SMALL, replace(PLAIN, recomputes=True))
    assert again.activations == 2 * 10 * 2 * 4 + 2 * 10 * 52
    # Two buckets, and at stage 3 the weights that are gathered.
    assert found.buffers == 4 * 388
    assert trainer_memory(SMALL, replace(PLAIN, zero_stage=3)).buffers == 6 * 388
    assert trainer_memory(SMALL, replace(PLAIN, zero_stage=0)).buffers == 0


def test_the_total_is_what_stays_on_the_gpu() -> None:
    found = trainer_memory(SMALL, PLAIN)
    assert found.total == 776 + 388 + 1164 + 776 + 1552 + 2080 + 200
    offloaded = trainer_memory(SMALL, replace(PLAIN, is_offloaded=True))
    assert found.total - offloaded.total == 388 + 1164
    everything = trainer_memory(SMALL, replace(PLAIN, is_offloaded=True, zero_stage=3))
    assert everything.total == 6 * 388 + 2080 + 200


def test_adapters_alone_have_gradients_and_moments() -> None:
    adapters = SMALL.adapter_parameters(2)
    found = trainer_memory(SMALL, replace(PLAIN, adapter_rank=2))
    assert found.parameters == 2 * 388 + 2 * adapters
    assert found.gradients == adapters
    assert found.optimizer == 3 * adapters


def test_an_engine_has_what_its_weights_leave() -> None:
    found = engine_memory(SMALL, allowed_bytes=10_000, reserve_bytes=1_000)
    assert found.cache == 10_000 - 776 - 1_000
    assert found.cache_tokens == 8224 / 16
    assert found.sequences(100) == pytest.approx(5.14)
    full = engine_memory(SMALL, allowed_bytes=1_000, reserve_bytes=1_000)
    assert (full.cache, full.cache_tokens) == (-776, 0)
