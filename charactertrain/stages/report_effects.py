"""The evaluation's numbers as the report's view has them: read from report.json and renamed."""

import math
from collections.abc import Mapping

from charactertrain.artifacts import Json
from charactertrain.report.effects_view import (
    Arm,
    ByArm,
    Effect,
    Judged,
    Measure,
    ProbeExample,
    ProbeRow,
    ProbeView,
)
from charactertrain.report.preference_view import GateView
from charactertrain.report.reading import MEASURE_LABELS


def effect(values: Json) -> Effect:
    """One measure of one arm."""
    return Effect(
        base=values["base"],
        arm=values["arm"],
        difference=_or_nan(values["difference"]),
        ci_low=_or_nan(values["ci_low"]),
        ci_high=_or_nan(values["ci_high"]),
        p_value=values.get("p_value"),
        p_holm=values.get("p_holm"),
        num_responses=values["num_responses"],
        num_prompts=values["num_prompts"],
        judged=_judged(values) if "unscored" in values else None,
    )


def _judged(values: Json) -> Judged:
    return Judged(
        ties=values["ties"],
        unscored=values["unscored"],
        swap_consistency=values.get("swap_consistency"),
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
    return tuple(Arm(**arm, num_unasked=unasked.get(arm["name"], 0)) for arm in results["arms"])


def gates(results: Json) -> tuple[GateView, ...]:
    """What the policy must reach; none where the evaluation names none."""
    return tuple(gate(values) for values in results.get("gates", ()))


def gate(values: Json) -> GateView:
    """One demand on the policy, and how it stands."""
    return GateView(
        measure=values["text"],
        value=values["value"],
        ci_low=_or_nan(values["ci_low"]),
        ci_high=_or_nan(values["ci_high"]),
        threshold=values["threshold"],
        is_ceiling=values["is_ceiling"],
        is_met=values["is_met"],
    )


def probes(results: Json) -> tuple[ProbeView, ...]:
    """Every probe that was run, in the order of report.json."""
    return tuple(_probe(name, values) for name, values in results.get("probes", {}).items())


def _probe(name: str, values: Json) -> ProbeView:
    return ProbeView(
        name=name,
        title=values["title"],
        question=values["question"],
        unit=values["unit"],
        better=values["better"],
        rows=tuple(
            ProbeRow(
                condition=row["condition"], measure=row["measure"], effects=by_arm(row["arms"])
            )
            for row in values["rows"]
        ),
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


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
