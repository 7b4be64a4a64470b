"""The KL controller: by hand, and steering something that answers."""

import pytest

from charactertrain.objectives.kl_control import KlController


@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (0.11, 0.5 * 1.01),  # a tenth above: a hundredth more
        (0.1, 0.5),
        (0.09, 0.5 * 0.99),
        (5.0, 0.5 * 1.02),  # clipped
        (0.0, 0.5 * 0.98),
        (-0.1, 0.5 * 0.98),  # an estimate may be below 0
    ],
)
def test_the_coefficient_follows_the_relative_error(kl: float, coef: float) -> None:
    found = KlController(0.5, target=0.1).after(kl)
    assert found.coef == pytest.approx(coef)
    assert found.target == 0.1


def test_without_a_target_it_stays() -> None:
    assert KlController(0.5, target=None).after(5.0) == KlController(0.5, target=None)


@pytest.mark.parametrize("start", [0.01, 1.0, 20.0])
def test_a_kl_that_falls_with_the_coefficient_comes_to_its_target(start: float) -> None:
    controller = KlController(start, target=0.1)
    for _ in range(400):
        controller = controller.after(0.2 / (1 + controller.coef))
    assert 0.2 / (1 + controller.coef) == pytest.approx(0.1, rel=0.01)
