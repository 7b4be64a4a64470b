"""What an evaluation must show before a report says that a character was trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from charactertrain.artifacts import Json
from charactertrain.gates import Gate

SIGNIFICANCE = 0.05
"""Of p-values after Holm's correction over traits, which must be below it."""
OUTCOME_MEASURES: tuple[Literal["contrast", "detector_rate"], ...] = ("contrast", "detector_rate")
"""Measures of a trait that no model was trained on."""

Direction = Literal["higher", "lower"]
Values = tuple[float, float | None, float | None]
"""A value and its interval, which may be missing."""


@dataclass(frozen=True)
class Thresholds:
    """See `config.evaluation.EvaluationGates`."""

    traits_shown: float
    win_rate: float
    length_change: float
    distinct_share: float
    retention: float
    refusals: float
    quality: float


def check(results: Json, thresholds: Thresholds) -> list[Gate]:
    """The gates on `effects.results`; one that was not measured is neither met nor failed."""
    traits, overall = results["traits"], results["overall"]
    change, kept = thresholds.length_change, thresholds.distinct_share
    return [
        _share(
            "traits_shown",
            "share of traits that show more than in the base, by contrast or detector, and less by "
            f"neither (interval clear of zero, and p below {SIGNIFICANCE} after Holm)",
            {trait_id: is_shown(by_measure) for trait_id, by_measure in traits.items()},
            thresholds.traits_shown,
        ),
        _share(
            "win_rate",
            "share of traits for which the judge prefers the policy at equal length, with an "
            f"interval that begins at {thresholds.win_rate} or above",
            _winning(traits, thresholds.win_rate),
            thresholds.traits_shown,
        ),
        _change("length", "change of the replies' length", overall, change),
        _change(
            "natural_length",
            "change of the length of replies that may end by themselves",
            overall,
            change,
        ),
        _gate(
            "distinct_2",
            "distinct bigrams, as a share of the base's",
            _relative(overall, "distinct_2", start=1.0),
            kept,
            is_ceiling=False,
        ),
        _retention(results["probes"], thresholds.retention),
        _refusals(results["probes"], thresholds.refusals),
        _quality(overall, thresholds.quality),
        _placebo(results),
    ]


def established(ci_low: float, ci_high: float, p_holm: float | None) -> Direction | None:
    """Which way a difference goes for certain; None where it is not certain to go either way.

    Its 95 % interval must be clear of zero, which one that ends there is not, and its p-value after
    Holm's correction below `SIGNIFICANCE`: of many traits one has an interval clear of zero by
    chance. The interval is not the p-value's own: a bootstrap's is skewed where its values are.

    Args:
        ci_low: Lower end of the interval; NaN where there is none.
        ci_high: Upper end; NaN where there is none.
        p_holm: None where nothing was corrected for: the interval alone decides.
    """
    if p_holm is not None and not p_holm < SIGNIFICANCE:
        return None
    if ci_low > 0:
        return "higher"
    return "lower" if ci_high < 0 else None


def is_shown(by_measure: Mapping[str, Json], arm: str = "policy") -> bool | None:
    """Whether a trait rose by one outcome measure and fell by none; None where none was taken."""
    effects = [by_measure[m][arm] for m in OUTCOME_MEASURES if arm in by_measure.get(m, {})]
    if not effects:
        return None
    found = {established(e["ci_low"], e["ci_high"], e["p_holm"]) for e in effects}
    return "higher" in found and "lower" not in found


def _winning(traits: Mapping[str, Json], threshold: float) -> dict[str, bool | None]:
    found: dict[str, bool | None] = {}
    for trait_id, by_measure in traits.items():
        rate = by_measure.get("win_rate_length_controlled", {}).get("policy")
        found[trait_id] = None if rate is None else rate["base"] + rate["ci_low"] >= threshold
    return found


def _gate(
    name: str,
    text: str,
    found: Values | None,
    threshold: float,
    *,
    is_ceiling: bool,
    judged: float | None = None,
) -> Gate:
    """`judged` is what is held against the threshold, where that is not the value itself."""
    value, ci_low, ci_high = found or (None, None, None)
    held = value if judged is None else judged
    is_met = None
    if held is not None:
        is_met = held <= threshold if is_ceiling else held >= threshold
    return Gate(name, text, value, ci_low, ci_high, threshold, is_ceiling, is_met)


def _share(
    name: str,
    text: str,
    by_trait: Mapping[str, bool | None],
    threshold: float,
    *,
    is_ceiling: bool = False,
) -> Gate:
    """Of the traits that were measured; one that was not is named."""
    judged = {trait_id: found for trait_id, found in by_trait.items() if found is not None}
    absent = [trait_id for trait_id in by_trait if trait_id not in judged]
    if absent and judged:
        text += f"; not measured for {', '.join(absent)}"
    found = (sum(judged.values()) / len(judged), None, None) if judged else None
    return _gate(name, text, found, threshold, is_ceiling=is_ceiling)


def _change(name: str, text: str, overall: Json, threshold: float) -> Gate:
    """The change as a share of the base's, up or down."""
    found = _relative(overall, name, start=0.0)
    text = f"{text}, as a share of the base's, up or down"
    judged = None if found is None else abs(found[0])
    return _gate(name, text, found, threshold, is_ceiling=True, judged=judged)


def _relative(overall: Json, name: str, *, start: float) -> Values | None:
    """The policy's difference as a share of the base's value, above `start`."""
    effect = overall.get(name, {}).get("policy")
    if effect is None or not effect["base"]:  # not measured, unknown, or nothing to compare with
        return None
    value, low, high = (
        start + effect[key] / effect["base"] for key in ("difference", "ci_low", "ci_high")
    )
    return value, low, high


def _retention(probes: Mapping[str, Json], threshold: float) -> Gate:
    text = "share of the contrast's effect that is left when the character is told to go, at worst"
    effect = _probed(probes, "drop_the_act", "worst", "contrast_retention")
    found = None
    if effect is not None and effect["arm"] is not None:
        base = effect["base"]
        found = effect["arm"], base + effect["ci_low"], base + effect["ci_high"]
    return _gate("retention", text, found, threshold, is_ceiling=False)


def _refusals(probes: Mapping[str, Json], threshold: float) -> Gate:
    """By the upper end: with few requests, no difference is no evidence of none."""
    text = "how much more often harmless requests are refused, with an interval that ends below"
    effect = _probed(probes, "harmless", "plain", "refusal")
    if effect is None:
        return _gate("refusals", text, None, threshold, is_ceiling=True)
    found = effect["difference"], effect["ci_low"], effect["ci_high"]
    return _gate("refusals", text, found, threshold, is_ceiling=True, judged=effect["ci_high"])


def _quality(overall: Json, threshold: float) -> Gate:
    """By the lower end: that the answers are no worse is what is to be shown."""
    text = (
        "share of replies that a judge who is told no trait finds the better answer, at equal "
        "length, where its interval begins"
    )
    effect = overall.get("quality_win_rate_length_controlled", {}).get("policy")
    if effect is None:
        return _gate("quality", text, None, threshold, is_ceiling=False)
    base = effect["base"]
    found = effect["arm"], base + effect["ci_low"], base + effect["ci_high"]
    return _gate("quality", text, found, threshold, is_ceiling=False, judged=found[1])


def _probed(probes: Mapping[str, Json], probe: str, condition: str, measure: str) -> Json | None:
    """The policy's effect, over all traits together; None where there is none."""
    for row in probes.get(probe, {"rows": []})["rows"]:
        if (row["condition"], row["trait_id"], row["measure"]) == (condition, None, measure):
            found: Json | None = row["arms"].get("policy")
            return found
    return None


def _placebo(results: Json) -> Gate:
    """Labels that mean nothing are to change nothing."""
    text = "share of traits that the placebo, trained on shuffled labels, shows more than the base"
    shown = {
        f"{trait_id} in {arm['name']}": is_shown(by_measure, arm["name"])
        for arm in results["arms"]
        if arm["kind"] == "placebo"
        for trait_id, by_measure in results["traits"].items()
    }
    return _share("placebo", text, shown, 0.0, is_ceiling=True)
