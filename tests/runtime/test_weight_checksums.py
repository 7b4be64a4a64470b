"""Checksums of weights where they are: what they tell, and what they leave alone."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from charactertrain.runtime.weight_sync.checksums import (
    Summed,
    SummedSource,
    differing,
    word_sums,
)

ROW = 4096


def by_hand(words: Tensor) -> list[int]:
    """The sums as they are defined, one word after the other, modulo 2^64 with a sign."""
    values = words.numpy().astype(np.int64).astype(object)
    places = range(len(values))
    sums = [
        sum(values),
        sum(place // ROW * value for place, value in zip(places, values, strict=True)),
        sum(place % ROW * value for place, value in zip(places, values, strict=True)),
    ]
    return [(int(total) + 2**63) % 2**64 - 2**63 for total in sums]


@pytest.mark.parametrize("size", [0, 1, ROW - 1, ROW, 2 * ROW, 3 * ROW + 7])
def test_sums_are_those_of_the_words_their_rows_and_their_columns(size: int) -> None:
    weight = torch.randn(size, generator=torch.Generator().manual_seed(size)).bfloat16()
    assert word_sums(weight).tolist() == by_hand(weight.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_sums_tell_a_flipped_bit_wherever_it_is(dtype: torch.dtype) -> None:
    weight = torch.randn(97, 131, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = word_sums(weight)
    for place in (0, 4096, weight.numel() - 1):
        changed = weight.clone().view(-1)
        changed.view(torch.uint8)[place * weight.element_size()] ^= 1
        assert word_sums(changed.view(97, 131)).tolist() != before.tolist()


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, ROW), (3, 2 * ROW + 1), (5, 3 * ROW)])
def test_sums_tell_words_that_changed_places(first: int, second: int) -> None:
    weight = torch.arange(3 * ROW + 9, dtype=torch.float32)
    changed = weight.clone()
    changed[[first, second]] = weight[[second, first]]
    assert word_sums(changed)[0] == word_sums(weight)[0]
    assert word_sums(changed).tolist() != word_sums(weight).tolist()


def test_sums_are_of_the_values_and_not_of_how_they_lie_in_memory() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    assert word_sums(weight.T).tolist() == word_sums(weight.T.contiguous()).tolist()
    assert word_sums(weight.T).tolist() != word_sums(weight).tolist()


class Two(WeightSource):
    """Two weights."""

    def __init__(self) -> None:
        self.weights = {"a": torch.ones(3), "b": torch.full((2, 2), 2.0)}

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, w.dtype, tuple(w.shape)) for name, w in self.weights.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.weights.items())


def test_what_is_sent_and_what_arrives_have_the_same_sums() -> None:
    source, arrived = SummedSource(two := Two()), Summed()
    assert source.metadata() == two.metadata()
    for _ in range(2):
        two.weights["a"] = two.weights["a"] * 3
        arrived.forget()
        received = dict(arrived.passed(source))
        assert list(received) == ["a", "b"]
        assert all(torch.equal(received[name], two.weights[name]) for name in received)
        assert source.summed.sums() == arrived.sums()
        assert set(arrived.sums()) == {"a", "b"}


def test_what_differs_is_named() -> None:
    sums = {"a": (1, 2, 3), "b": (4, 5, 6)}
    assert differing(sums, dict(sums)) is None
    assert differing(sums, sums | {"b": (4, 5, 7)}) == "b"
    assert differing(sums, {"b": (4, 5, 6)}) == "a"
    assert differing(sums, sums | {"c": (0, 0, 0)}) == "c"
