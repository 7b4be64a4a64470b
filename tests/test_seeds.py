"""Seeds and identifiers: the same everywhere, different for different parts."""

import pytest

from charactertrain.seeds import derive_seed, stable_id


def test_seeds_and_ids_are_the_same_on_every_machine() -> None:
    # A change here makes every run draw other samples than it drew before.
    assert derive_seed(1, "row", 0) == 357729150
    assert stable_id("honest", "a gift", 0) == "8e4554bbe1184422"


def test_seeds_fit_what_samplers_take() -> None:
    seeds = [derive_seed(1, "row", index) for index in range(1000)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == 1000
    # About half of them are in the upper half: the whole range is used.
    assert 400 < sum(seed >= 2**30 for seed in seeds) < 600


@pytest.mark.parametrize("function", [derive_seed, stable_id])
def test_each_part_counts_and_parts_are_kept_apart(function: object) -> None:
    assert callable(function)
    parts = [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1), ("1a", 0), (1, "a0"), (1, "a"), ()]
    assert len({function(*each) for each in parts}) == len(parts)


def test_ids_are_sixteen_hexadecimal_digits() -> None:
    for index in range(100):
        assert len(stable_id(index)) == 16
        int(stable_id(index), 16)
