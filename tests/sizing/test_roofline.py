"""Seconds at a device's rates, worked out by hand for a model of 388 parameters."""

from dataclasses import replace

import pytest
from small_model import SMALL

from charactertrain.sizing.ranges import Range, at_shares, later
from charactertrain.sizing.roofline import (
    Device,
    Passes,
    Step,
    Texts,
    Workers,
    beside_each_other,
    decode_seconds,
    decode_step_seconds,
    prefill_seconds,
    step_network_seconds,
    step_operation_seconds,
)

SLOW_MEMORY = Device(
    operations_per_second=1e9,
    memory_bytes_per_second=1000.0,
    memory_bytes=1e6,
    link_bytes_per_second=1000.0,
    network_bytes_per_second=100.0,
)
SLOW_SUMS = replace(SLOW_MEMORY, operations_per_second=1000.0, memory_bytes_per_second=1e9)
STEP = Step(
    groups=5, tokens_per_group=10, predicted_share=0.5, context=10, passes=Passes(3.0, 1.0, 1.0)
)
TWO = Workers(
    count=2, per_node=8, zero_stage=3, tokens_per_microbatch=10, parameters=388, trained=388
)


def test_a_step_of_an_engine_reads_weights_and_cache_or_computes() -> None:
    # 2 bytes of 348 weights, and 5 x 10 tokens of 16 bytes.
    read = decode_step_seconds(SMALL, SLOW_MEMORY, sequences=5, context=10)
    assert read == pytest.approx((696 + 800) / 1000)
    computed = decode_step_seconds(SMALL, SLOW_SUMS, sequences=5, context=10)
    assert computed == pytest.approx(5 * 1016 / 1000)


def test_texts_are_written_in_turns_and_the_longest_runs_on_alone() -> None:
    texts = Texts(count=10, shown=6, written=8, longest=20)
    # Two turns of 8 steps of 5 texts; then 12 steps of one, with 26 tokens in the cache.
    expected = 16 * 1.496 + 12 * (696 + 26 * 16) / 1000
    assert decode_seconds(SMALL, SLOW_MEMORY, texts, most_at_once=5) == pytest.approx(expected)
    # Fewer texts than an engine holds take as long as one turn of so many.
    few = replace(texts, count=2, longest=8)
    step = decode_step_seconds(SMALL, SLOW_MEMORY, sequences=2, context=10)
    assert decode_seconds(SMALL, SLOW_MEMORY, few, most_at_once=5) == pytest.approx(8 * step)
    assert decode_seconds(SMALL, SLOW_MEMORY, replace(texts, count=0), most_at_once=5) == 0


def test_twice_the_gpus_take_half_the_time() -> None:
    texts = Texts(count=10, shown=6, written=8, longest=8)
    one = decode_seconds(SMALL, SLOW_MEMORY, texts, most_at_once=5)
    two = decode_seconds(SMALL, SLOW_MEMORY.times(2), texts, most_at_once=5)
    assert two == pytest.approx(one / 2)


def test_what_is_read_passes_the_output_layer_as_far_as_its_logits_are_made() -> None:
    def seconds(share: float) -> float:
        return prefill_seconds(SMALL, SLOW_SUMS, tokens=100, context=10, predicted_share=share)

    assert seconds(0.0) == pytest.approx(100 * (2 * 308 + 320) / 1000)
    assert seconds(1.0) == pytest.approx(100 * (2 * 348 + 320) / 1000)


def test_a_training_step_waits_for_the_worker_with_most_groups() -> None:
    # Of 5 groups one of two workers has 3.
    assert TWO.busiest_tokens(STEP) == 30
    seconds = step_operation_seconds(SMALL, SLOW_SUMS, STEP, TWO)
    assert seconds == pytest.approx(30 * 5 * (2 * (308 + 20) + 320) / 1000)
    # More workers than groups are of no use.
    five, ten = (replace(TWO, count=count) for count in (5, 10))
    assert five.busiest_tokens(STEP) == ten.busiest_tokens(STEP) == 10


@pytest.mark.parametrize(
    ("stage", "exchanges"),
    [
        # Three microbatches: weights for forward, backward and the reference, and gradients.
        (3, 3 * 4),
        # Gradients, and the weights once.
        (2, 3 + 1),
        (1, 3 + 1),
        (0, 3 * 2),
    ],
)
def test_workers_exchange_weights_and_gradients_by_stage(stage: int, exchanges: int) -> None:
    workers = replace(TWO, zero_stage=stage)
    moved = exchanges * 2 * 388 / 2
    assert step_network_seconds(SLOW_SUMS, STEP, workers) == pytest.approx(moved / 1000)
    # Between nodes, by the network.
    apart = replace(workers, per_node=1)
    assert step_network_seconds(SLOW_SUMS, STEP, apart) == pytest.approx(moved / 100)
    assert step_network_seconds(SLOW_SUMS, STEP, replace(workers, count=1)) == 0


@pytest.mark.parametrize(
    ("stage", "exchanged"),
    [
        # Of 388 parameters with adapters of 256: what is gathered is of all, the rest of adapters.
        (3, 3 * (3 * 388 + 256)),
        (2, (3 + 1) * 256),
        (1, (3 + 1) * 256),
        (0, 3 * 2 * 256),
    ],
)
def test_of_adapters_alone_gradients_are_exchanged(stage: int, exchanged: int) -> None:
    workers = replace(TWO, zero_stage=stage, trained=SMALL.adapter_parameters(2))
    found = step_network_seconds(SLOW_SUMS, STEP, workers)
    assert found == pytest.approx(exchanged * 2 / 2 / 1000)


def test_shares_of_a_rate_bound_the_time() -> None:
    found = at_shares(3.0, (0.25, 0.5))
    assert (found.low, found.high) == (6.0, 12.0)
    assert found + Range(1.0, 2.0) == Range(7.0, 14.0)
    assert later(found, Range(1.0, 20.0)) == Range(6.0, 20.0)
    # At best all exchanges hide behind the computing, at worst none.
    assert beside_each_other(found, Range(1.0, 4.0)) == Range(6.0, 16.0)
