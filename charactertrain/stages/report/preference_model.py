"""The preference model's part of the report's view."""

from charactertrain.artifacts import Json
from charactertrain.records import NO_TRAIT
from charactertrain.report.preference_view import (
    Accuracy,
    Calibration,
    CalibrationBin,
    CurvePoint,
    HeldOutLoss,
    Member,
    Shortcut,
    StrengthBand,
)
from charactertrain.report.training_view import PreferenceModelView
from charactertrain.stages.report.effects import estimate, gate, or_nan


def preference_model(summary: Json) -> PreferenceModelView:
    """Quality and training of the preference model, as its manifest has them."""
    training = summary["training"]["model"]
    return PreferenceModelView(
        labels=summary["labels"],
        objective=summary["objective"],
        gates=tuple(gate(values) for values in summary["gates"]),
        accuracy_overall=_accuracy(summary["accuracy"]),
        accuracy_by_trait={
            None if trait_id == NO_TRAIT else trait_id: _accuracy(values)
            for trait_id, values in summary["accuracy_by_trait"].items()
        },
        accuracy_by_strength=tuple(
            StrengthBand(low=values["low"], high=values["high"], accuracy=_accuracy(values))
            for values in summary["accuracy_by_strength"]
        ),
        accuracy_same_variant=_accuracy(summary["accuracy_same_variant"]),
        shortcuts=tuple(_shortcut(edit, values) for edit, values in summary["shortcuts"].items()),
        length_correlation=estimate(summary["length_correlation"]),
        length_slope=summary["length_slopes"]["model"],
        before_temperature=_calibration(summary["before_temperature"]),
        after_temperature=_calibration(summary["after_temperature"]),
        temperature=summary["temperature"],
        baseline_nll=summary["baseline_nll"],
        num_pairs=summary["num_pairs"],
        num_selection_pairs=summary["num_selection_pairs"],
        num_general_left=summary["general_left"],
        curve=tuple(
            CurvePoint(step=row["step"], loss=row["loss"], accuracy=row["accuracy"])
            for row in training["history"]
        ),
        held_out_losses=tuple(HeldOutLoss(**row) for row in training["evaluations"]),
        best_step=training["best_step"],
        members=tuple(_member(name, summary) for name in summary["training"]),
        shared_scenarios=tuple(summary["shared_families"]),
    )


def _accuracy(values: Json) -> Accuracy | None:
    if values["estimate"] is None:
        return None
    return Accuracy(
        accuracy=values["estimate"],
        ci_low=or_nan(values["ci_low"]),
        ci_high=or_nan(values["ci_high"]),
        num_pairs=values["num_pairs"],
        num_prompts=values["num_clusters"],
        # Of parts that are not of a trait or of all pairs, the baselines are not taken.
        length_only=values.get("length_only"),
        above_length=estimate(values.get("above_length")),
        provenance_only=values.get("provenance_only"),
        above_provenance=estimate(values.get("above_provenance")),
    )


def _shortcut(edit: str, values: Json) -> Shortcut:
    return Shortcut(
        edit=edit,
        value=values["estimate"],
        ci_low=values["ci_low"],
        ci_high=values["ci_high"],
        num_prompts=values["num_prompts"],
        raised_share=values["raised_share"],
    )


def _calibration(values: Json) -> Calibration:
    return Calibration(
        bins=tuple(CalibrationBin(**entry) for entry in values["bins"]),
        ece=values["ece"],
        ece_ci_low=or_nan(values["ece_ci_low"]),
        ece_ci_high=or_nan(values["ece_ci_high"]),
        brier=values["brier"],
        nll=values["nll"],
    )


def _member(name: str, summary: Json) -> Member:
    training, prompts = summary["training"][name], summary["trained_prompts"]
    # The model itself is not among the others.
    other = summary["others"].get(name)
    return Member(
        name=name,
        num_prompts=prompts.get(name, prompts["model"]),
        num_steps=len(training["history"]),
        best_step=training["best_step"],
        accuracy=_accuracy(other["accuracy"] if other else summary["accuracy"]),
        same_order=estimate(other["same_order"] if other else None),
    )
