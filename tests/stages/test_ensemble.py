import pytest

from charactertrain.stages.ensemble import EnsembleReward

REWARDS = [[1.0, 4.0], [13.0, 12.0]]
"""Of two members, the second ten higher throughout."""


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
    ensemble = EnsembleReward((0.0, 10.0), (0.0, 0.0), aggregate, coefficient)  # type: ignore[arg-type]
    combined, disagreement = ensemble.combine(REWARDS, [5, 9])
    assert combined == expected
    assert disagreement == [1.0, 1.0]


def test_one_member_is_its_own_reward_less_its_level() -> None:
    ensemble = EnsembleReward((0.5,), (0.0,), "minimum", 3.0)
    combined, disagreement = ensemble.combine([[1.0, -2.0]], [5, 9])
    assert combined == [0.5, -2.5]
    assert disagreement == [0.0, 0.0]


def test_length_earns_nothing_whichever_member_pays_for_it() -> None:
    ensemble = EnsembleReward((0.0, 0.0), (0.1, -0.2), "mean", 0.0)
    # Two tokens more and two fewer than the mean.
    combined, disagreement = ensemble.combine([[1.2, 0.8], [0.6, 1.4]], [12, 8])
    assert combined == pytest.approx([1.0, 1.0])
    assert disagreement == pytest.approx([0.0, 0.0])
