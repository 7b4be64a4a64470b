from typing import Any

import pytest

from charactertrain.config import PreferenceGates
from charactertrain.exceptions import TrainingError
from charactertrain.stages.preference_model.gates import check_gates, require_gates

GATES = PreferenceGates(worst_trait_accuracy=0.6, above_length=0.05, calibration_error=0.08)


def row(estimate: float | None, above: float | None) -> dict[str, Any]:
    return {
        "estimate": estimate,
        "ci_low": None if estimate is None else estimate - 0.1,
        "ci_high": None if estimate is None else estimate + 0.1,
        "above_length": None
        if above is None
        else {"estimate": above, "ci_low": above - 0.1, "ci_high": above + 0.1},
    }


def quality(ece: float = 0.05, **rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "accuracy_by_trait": rows,
        "after_temperature": {"ece": ece, "ece_ci_low": 0.0, "ece_ci_high": 0.2},
    }


def verdicts(found: dict[str, Any]) -> list[bool | None]:
    return [gate.is_met for gate in check_gates(found, GATES)]


def test_gates_look_at_the_worst_trait() -> None:
    found = quality(warm=row(0.9, 0.06), curious=row(0.6, 0.3))
    assert verdicts(found) == [True, True, True]
    worst, above, _ = check_gates(found, GATES)
    assert (worst.value, above.value) == (0.6, 0.06)
    assert worst.text.endswith("worst for curious")
    assert above.text.endswith("worst for warm")
    require_gates(check_gates(found, GATES))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (quality(warm=row(0.9, 0.3), curious=row(0.59, 0.3)), [False, True, True]),
        (quality(warm=row(0.9, 0.04), curious=row(0.7, 0.3)), [True, False, True]),
        (quality(0.081, warm=row(0.9, 0.3)), [True, True, False]),
        (quality(warm=row(None, None)), [None, None, True]),
        (quality(warm=row(0.9, None)), [True, None, True]),
    ],
)
def test_a_gate_that_is_not_met_or_not_measured_stops(
    found: dict[str, Any], expected: list[bool | None]
) -> None:
    assert verdicts(found) == expected
    with pytest.raises(TrainingError, match=r"policy\.despite_gates=true"):
        require_gates(check_gates(found, GATES))


def test_the_message_has_number_interval_and_threshold() -> None:
    with pytest.raises(TrainingError) as caught:
        require_gates(check_gates(quality(warm=row(0.55, 0.3)), GATES))
    assert (
        "held-out accuracy of a trait, worst for warm: 0.550 [0.450, 0.650]; "
        "preference_model.gates.worst_trait_accuracy 0.6"
    ) in str(caught.value)


def test_gates_of_traits_leave_out_general_comparisons_unless_there_are_no_others() -> None:
    found = quality(general=row(0.3, -0.2), warm=row(0.9, 0.3))
    assert verdicts(found) == [True, True, True]
    assert verdicts(quality(general=row(0.3, -0.2))) == [False, False, True]


def test_a_trait_that_could_not_be_measured_is_not_passed_over() -> None:
    assert verdicts(quality(warm=row(0.9, 0.3), curious=row(None, None))) == [None, None, True]
