"""What is left of an effect and what is lost, by hand and by simulation."""

import random

import pytest

from charactertrain.evaluation.effects import Bootstrap
from charactertrain.probes.effects import difference, lost_share, retention, slope

BOOTSTRAP = Bootstrap(num_resamples=2000, seed=1)


def test_slope_is_that_of_a_line_and_of_least_squares() -> None:
    assert slope([1.0, 3.0, 5.0, 7.0]) == pytest.approx(2.0)
    assert slope([2.0, 2.0, 2.0]) == 0.0
    # By hand: steps -1, 0, 1; (-1 * 0 + 0 * 5 + 1 * 1) / 2.
    assert slope([0.0, 5.0, 1.0]) == pytest.approx(0.5)


def test_difference_is_of_the_clusters_that_both_have() -> None:
    found = difference({"a": 0.0, "b": 1.0, "x": 9.0}, {"a": 1.0, "b": 3.0, "y": 9.0}, BOOTSTRAP)
    assert found is not None
    assert (found["base"], found["arm"], found["difference"]) == (0.5, 2.0, 1.5)
    assert (found["num_prompts"], found["num_responses"]) == (2, 2)
    assert difference({"a": 0.0, "b": 1.0}, {"a": 1.0, "c": 3.0}, BOOTSTRAP) is None


def test_retention_is_the_share_that_is_left() -> None:
    plain = {f"p{n}": 1.0 + n / 10 for n in range(10)}
    half = {cluster: value / 2 for cluster, value in plain.items()}
    found = retention(plain, {"suffix": half}, BOOTSTRAP)
    assert found is not None
    assert found["base"] == 1.0
    assert found["arm"] == pytest.approx(0.5)
    assert found["difference"] == pytest.approx(-0.5)
    # Half of each prompt's effect is left, so whichever prompts are drawn.
    assert found["ci_low"] == pytest.approx(-0.5)
    assert found["ci_high"] == pytest.approx(-0.5)
    assert "condition" not in found


def test_retention_under_the_worst_condition_names_it() -> None:
    plain = {f"p{n}": 1.0 for n in range(10)}
    conditions = {
        "mild": dict.fromkeys(plain, 0.9),
        "hard": {cluster: 0.2 + n / 50 for n, cluster in enumerate(plain)},
    }
    found = retention(plain, conditions, BOOTSTRAP)
    assert found is not None
    assert found["condition"] == "hard"
    assert found["arm"] == pytest.approx(0.29)
    assert found["ci_low"] < -0.71 < found["ci_high"] < -0.5


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_retention_of_no_effect_is_not_established(sign: float) -> None:
    plain = {f"p{n}": sign + (-1) ** n for n in range(10)}
    found = retention(plain, {"suffix": plain}, BOOTSTRAP)
    assert found is not None
    assert found["arm"] is None
    assert found["ci_low"] is None
    assert found["num_prompts"] == 10
    assert found["note"].startswith("not established: without a condition the effect is ")


def test_retention_needs_two_clusters_in_all_conditions() -> None:
    assert retention({"a": 1.0, "b": 1.0}, {"x": {"a": 1.0, "c": 1.0}}, BOOTSTRAP) is None


def test_interval_of_retention_holds_the_truth() -> None:
    """Of 100 simulated studies with a plain effect of 1 and a truth of 0.6."""
    draw = random.Random(1)
    held = 0
    for _ in range(100):
        plain = {f"p{n}": draw.gauss(1.0, 0.8) for n in range(40)}
        under = {cluster: draw.gauss(0.6, 0.8) for cluster in plain}
        found = retention(plain, {"suffix": under}, BOOTSTRAP)
        assert found is not None
        held += found["ci_low"] <= -0.4 <= found["ci_high"]
    # 95 less three standard errors of 2.2.
    assert held >= 89


def test_lost_share_is_of_the_answers_that_were_right() -> None:
    items = {"a": [1.0, 1.0], "b": [1.0, 0.0], "c": [0.0, 0.0], "d": [0.0, 1.0]}
    others = {"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [1.0, 0.0], "d": [1.0, 1.0]}
    base = {f"{name}{number}": tries for name, tries in items.items() for number in range(4)}
    arm = {f"{name}{number}": tries for name, tries in others.items() for number in range(4)}
    found = lost_share(base, arm, BOOTSTRAP)
    assert found is not None
    assert (found["base"], found["arm"]) == (0.5, 0.75)
    assert found["difference"] == 0.25
    assert found["ci_low"] < 0.25 < found["ci_high"]
    # The base was right on half of the 16 at first, and the share is of those.
    assert (found["num_prompts"], found["num_responses"]) == (8, 8)


def test_lost_share_says_nothing_of_a_few_right_answers() -> None:
    tries = {f"{n}": [0.0, 0.0] for n in range(28)}
    base, arm = tries | {"1": [1.0, 1.0]}, tries | {"2": [1.0, 0.0]}
    found = lost_share(base, arm, BOOTSTRAP)
    assert found is not None
    assert (found["difference"], found["p_value"]) == (None, None)
    assert found["note"] == "not established: one arm has 1 first answers that are right"


def test_lost_share_needs_a_right_answer_in_both_arms() -> None:
    base = {"a": [0.0, 1.0], "b": [0.0, 0.0]}
    arm = {"a": [1.0, 0.0], "b": [1.0, 1.0]}
    found = lost_share(base, arm, BOOTSTRAP)
    assert found is not None
    assert found["difference"] is None
    assert found["note"].startswith("not established")
