"""What a preference model must reach before a policy is trained on it."""

from collections.abc import Mapping, Sequence
from typing import Any

from charactertrain.config import PreferenceGates
from charactertrain.exceptions import TrainingError
from charactertrain.gates import Gate
from charactertrain.records import NO_TRAIT


def check_gates(quality: Mapping[str, Any], gates: PreferenceGates) -> list[Gate]:
    """Each gate's verdict.

    Args:
        quality: The stage's summary: `accuracy_by_trait` and `after_temperature` of it.
        gates: Thresholds.
    """
    by_trait = {name: row for name, row in quality["accuracy_by_trait"].items() if name != NO_TRAIT}
    by_trait = by_trait or quality["accuracy_by_trait"]
    above = {name: row["above_length"] for name, row in by_trait.items()}
    calibrated = quality["after_temperature"]
    return [
        _worst("worst_trait_accuracy", "held-out accuracy of a trait", by_trait, gates),
        _worst("above_length", "accuracy of a trait above that of length alone", above, gates),
        Gate(
            "calibration_error",
            "calibration error (ECE) after the temperature",
            calibrated["ece"],
            calibrated["ece_ci_low"],
            calibrated["ece_ci_high"],
            gates.calibration_error,
            is_ceiling=True,
            is_met=calibrated["ece"] <= gates.calibration_error,
        ),
    ]


def _worst(
    name: str, text: str, rows: Mapping[str, Mapping[str, Any] | None], gates: PreferenceGates
) -> Gate:
    """The gate of the trait that is worst; not measured if any trait is not."""
    threshold: float = getattr(gates, name)
    found = {trait: row for trait, row in rows.items() if row and row["estimate"] is not None}
    if not found or len(found) < len(rows):
        return Gate(name, text, None, None, None, threshold, is_ceiling=False, is_met=None)
    trait, row = min(found.items(), key=lambda item: item[1]["estimate"])
    return Gate(
        name,
        f"{text}, worst for {trait}",
        row["estimate"],
        row["ci_low"],
        row["ci_high"],
        threshold,
        is_ceiling=False,
        is_met=row["estimate"] >= threshold,
    )


def require_gates(gates: Sequence[Gate]) -> None:
    """Raise TrainingError if a gate is not met or not measured, with its number and threshold."""
    failed = [gate for gate in gates if not gate.is_met]
    if failed:
        lines = "\n".join(f"  {_standing(gate)}" for gate in failed)
        raise TrainingError(
            f"the preference model does not pass its gates:\n{lines}\nA policy trained on it would "
            "follow something else than the traits. More prompts, better rankings or another "
            "learning rate help (in another run.dir); or set policy.despite_gates=true to go on "
            "all the same."
        )


def _standing(gate: Gate) -> str:
    found = "not measured" if gate.value is None else f"{gate.value:.3f}"
    if gate.ci_low is not None and gate.ci_high is not None:
        found += f" [{gate.ci_low:.3f}, {gate.ci_high:.3f}]"
    return f"{gate.text}: {found}; preference_model.gates.{gate.name} {gate.threshold}"
