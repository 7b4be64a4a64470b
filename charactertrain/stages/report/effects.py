"""The evaluation's numbers as the report's view has them: read from report.json and renamed."""

import math
from collections.abc import Mapping
from dataclasses import asdict

from charactertrain.artifacts import Json
from charactertrain.evaluation import gates as evaluation_gates
from charactertrain.evaluation.gates import Thresholds
from charactertrain.report.data_view import Estimate
from charactertrain.report.effects_view import (
    Arm,
    Attribution,
    ByArm,
    Cell,
    Effect,
    FlipRow,
    Flips,
    Judged,
    Measure,
    OverSeeds,
    ProbeExample,
    ProbeRow,
    ProbeView,
)
from charactertrain.report.preference_view import GateView
from charactertrain.report.reading import MEASURE_LABELS
from charactertrain.report.revealed_view import ChoiceReading, RevealedPreferences

_MAX_PROMPTS_NAMED = 100_000


def effect(values: Json) -> Effect:
    """One measure of one arm."""
    return Effect(
        base=or_nan(values["base"]),
        arm=or_nan(values["arm"]),
        difference=or_nan(values["difference"]),
        ci_low=or_nan(values["ci_low"]),
        ci_high=or_nan(values["ci_high"]),
        p_value=values.get("p_value"),
        p_holm=values.get("p_holm"),
        num_responses=values["num_responses"],
        num_prompts=values["num_prompts"],
        judged=_judged(values) if "unscored" in values else None,
        note=values.get("note") or values.get("condition") or _power(values),
    )


def _power(values: Json) -> str | None:
    """Of an effect that is not clear of zero: how many prompts would show it, were it real."""
    needed = values.get("prompts_needed")
    if needed is None or not values["ci_low"] <= 0 <= values["ci_high"]:
        return None
    if needed > _MAX_PROMPTS_NAMED:
        return f"over {_MAX_PROMPTS_NAMED:,} prompts would show so small an effect"
    return f"some {needed:,} prompts would show an effect of this size"


def _judged(values: Json) -> Judged:
    return Judged(
        num_ties=values["ties"],
        num_unscored=values["unscored"],
        num_inconsistent=values["inconsistent"],
        swap_consistency=estimate(values["swap_consistency"]),
    )


def by_arm(values: Json) -> ByArm:
    """The effects of one measure, in the order of report.json."""
    return {arm: effect(found) for arm, found in values.items()}


def by_measure(values: Json) -> dict[Measure, ByArm]:
    """The effects of a trait or of a kind of prompt, in the order of the page."""
    return {measure: by_arm(values[measure]) for measure in MEASURE_LABELS if values.get(measure)}


def against(results: Json, trait_id: str) -> dict[Measure, ByArm]:
    """The policy's effects on a trait with each other arm in the base's place."""
    found: dict[str, Json] = {
        arm: by_trait.get(trait_id, {})
        for arm, by_trait in results.get("policy_against", {}).items()
    }
    return {
        measure: {arm: effect(v[measure]) for arm, v in found.items() if measure in v}
        for measure in MEASURE_LABELS
        if any(measure in values for values in found.values())
    }


def arms(results: Json, unasked: Mapping[str, int]) -> tuple[Arm, ...]:
    """Base, then the others; `unasked` counts each one's prompts that its run trained on."""
    return tuple(
        Arm(
            name=arm["name"],
            kind=arm["kind"],
            source=arm["source"],
            num_unasked=unasked.get(arm["name"], 0),
        )
        for arm in results["arms"]
    )


def gates(results: Json, thresholds: Thresholds) -> tuple[GateView, ...]:
    """What the policy must reach, and how it stands."""
    return tuple(gate(asdict(found)) for found in evaluation_gates.check(results, thresholds))


def gate(values: Json) -> GateView:
    """One demand on a model, and how it stands."""
    return GateView(
        name=values["name"],
        measure=values["text"],
        value=values["value"],
        ci_low=or_nan(values["ci_low"]),
        ci_high=or_nan(values["ci_high"]),
        threshold=values["threshold"],
        is_ceiling=values["is_ceiling"],
        is_met=values["is_met"],
    )


def gate_row(found: GateView) -> Json:
    """A gate as the report's manifest holds it; `gate` reads it."""
    return {
        "name": found.name,
        "text": found.measure,
        "value": found.value,
        "ci_low": _or_none(found.ci_low),
        "ci_high": _or_none(found.ci_high),
        "threshold": found.threshold,
        "is_ceiling": found.is_ceiling,
        "is_met": found.is_met,
    }


def over_seeds(results: Json) -> OverSeeds | None:
    """Effects over runs that differ by seed alone; None where there is one run."""
    values = results.get("over_seeds")
    if not values:
        return None
    return OverSeeds(
        arms=tuple(values["arms"]),
        traits={
            trait_id: {
                measure: effect(found[measure]) for measure in MEASURE_LABELS if measure in found
            }
            for trait_id, found in values["traits"].items()
        },
    )


def attribution(results: Json) -> tuple[Attribution, ...]:
    """Every matrix of traits that were trained or shown against those that were measured."""
    return tuple(
        _matrix(design, measure, by_measure[measure])
        for design, by_measure in results.get("attribution", {}).items()
        for measure in MEASURE_LABELS
        if by_measure.get(measure, {}).get("cells")
    )


def _matrix(design: str, measure: Measure, values: Json) -> Attribution:
    cells: dict[str, dict[str, Json]] = values["cells"]
    dominance = values["diagonal_dominance"]
    return Attribution(
        design=design,
        measure=measure,
        rows=tuple(cells),
        columns=tuple(
            dict.fromkeys(column for by_column in cells.values() for column in by_column)
        ),
        cells={
            (row, column): Cell(
                difference=cell["difference"],
                ci_low=or_nan(cell["ci_low"]),
                ci_high=or_nan(cell["ci_high"]),
                p_holm=cell.get("p_holm"),
                num_prompts=cell["num_prompts"],
            )
            for row, by_column in cells.items()
            for column, cell in by_column.items()
        },
        dominance=estimate(dominance),
    )


def probes(results: Json) -> tuple[ProbeView, ...]:
    """Every probe that was run, in the order of report.json."""
    return tuple(_probe(name, values) for name, values in results.get("probes", {}).items())


def _probe(name: str, values: Json) -> ProbeView:
    return ProbeView(
        name=name,
        title=values["title"],
        question=values["question"],
        rows=tuple(
            ProbeRow(
                condition=row["condition"],
                trait_id=row.get("trait_id"),
                measure=row["measure"],
                # Of the probe, where its rows do not differ in it.
                unit=row.get("unit", values["unit"]),
                better=row.get("better", values["better"]),
                effects=by_arm(row["arms"]),
            )
            for row in values["rows"]
        ),
        flips=tuple(_flip_row(row) for row in values.get("flips", ())),
        left_out={arm: turns for arm, turns in values.get("left_out", {}).items() if turns},
        examples=tuple(
            ProbeExample(
                condition=example["condition"],
                trait_id=example["trait_id"],
                messages=tuple(
                    (message["role"], message["content"]) for message in example["messages"]
                ),
                replies=example["replies"],
            )
            for example in values["examples"]
        ),
    )


def _flip_row(values: Json) -> FlipRow:
    return FlipRow(
        verdict=values["verdict"],
        trait_id=values["trait_id"],
        arms={
            arm: Flips(
                flips=_measured(found["flips"]),
                floor=_measured(found["floor"]),
                above_floor=_measured(found["above_floor"]),
                p_value=found["p_value"],
                num_prompts=found["num_prompts"],
            )
            for arm, found in values["arms"].items()
        },
    )


def revealed_preferences(results: Json) -> RevealedPreferences | None:
    """What arms take up when they are free to choose; None where nothing was offered."""
    values = results.get("revealed_preferences")
    if not values:
        return None
    told = values["reading"]["base"].get("told", {})
    return RevealedPreferences(
        words=values["words"],
        changes={trait_id: by_arm(found) for trait_id, found in values["changes"].items()},
        order_agreement={arm: estimate(found) for arm, found in values["order_agreement"].items()},
        num_words=len(values["arms"]["base"]),
        recognised=estimate(told.get("recognised")),
        readings=tuple(
            ChoiceReading(
                arm=arm,
                condition=condition,
                num_choices=found["num_choices"],
                num_unread=found["num_unread"],
                num_ties=found["num_ties"],
                first_taken=estimate(found["first_taken"]),
                swap_consistency=estimate(found.get("swap_consistency")),
            )
            for arm, by_condition in values["reading"].items()
            for condition, found in by_condition.items()
        ),
    )


def estimate(values: Json | None) -> Estimate | None:
    """A value with its interval; None where it was not measured."""
    return None if values is None or values["estimate"] is None else _measured(values)


def _measured(values: Json) -> Estimate:
    return Estimate(
        value=values["estimate"],
        ci_low=or_nan(values["ci_low"]),
        ci_high=or_nan(values["ci_high"]),
    )


def or_nan(value: float | None) -> float:
    """What the page takes for a number that there is not."""
    return math.nan if value is None else value


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
