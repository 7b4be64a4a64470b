from typing import Any

import pytest

from charactertrain.stages.preference_model.ensemble import EnsembleReward, LengthBand

REWARDS = [[1.0, 4.0], [13.0, 12.0]]
"""Of two members, the second ten higher throughout."""


def reward(
    *,
    levels: tuple[float, ...],
    slopes: tuple[float, ...] | None = None,
    aggregate: Any = "mean",
    coefficient: float = 0.0,
    length: LengthBand | None = None,
) -> EnsembleReward:
    return EnsembleReward(
        levels=levels,
        length_slopes=slopes or (0.0,) * len(levels),
        reference_tokens=10.0,
        aggregate=aggregate,
        disagreement_coef=coefficient,
        length=length,
    )


@pytest.mark.parametrize(
    ("aggregate", "coefficient", "expected"),
    [
        # Without their levels: 1, 4 and 3, 2.
        ("mean", 0.0, [2.0, 3.0]),
        ("minimum", 0.0, [1.0, 2.0]),
        # Variance 1 of both.
        ("mean", 0.5, [1.5, 2.5]),
    ],
)
def test_ensemble_rewards_by_hand(
    aggregate: str, coefficient: float, expected: list[float]
) -> None:
    ensemble = reward(levels=(0.0, 10.0), aggregate=aggregate, coefficient=coefficient)
    combined, disagreement = ensemble.combine(REWARDS, [5, 9])
    assert combined == expected
    assert disagreement == [1.0, 1.0]


def test_one_member_is_its_own_reward_less_its_level() -> None:
    ensemble = reward(levels=(0.5,), aggregate="minimum", coefficient=3.0)
    combined, disagreement = ensemble.combine([[1.0, -2.0]], [5, 9])
    assert combined == [0.5, -2.5]
    assert disagreement == [0.0, 0.0]


def test_length_earns_nothing_whichever_member_pays_for_it() -> None:
    ensemble = reward(levels=(0.0, 0.0), slopes=(0.1, -0.2))
    # Two tokens more and two fewer than the length that counts as none.
    combined, disagreement = ensemble.combine([[1.2, 0.8], [0.6, 1.4]], [12, 8])
    assert combined == pytest.approx([1.0, 1.0])
    assert disagreement == pytest.approx([0.0, 0.0])


def test_length_outside_the_band_costs_by_the_token() -> None:
    band = LengthBand(shortest=5, longest=20, cost=0.5)
    ensemble = reward(levels=(0.0,), length=band)
    combined, _ = ensemble.combine([[1.0] * 5], [3, 5, 12, 20, 24])
    assert combined == [0.0, 1.0, 1.0, 1.0, -1.0]
