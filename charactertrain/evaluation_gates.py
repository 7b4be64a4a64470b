"""What an evaluation must show before a report says that a character was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

SIGNIFICANCE = 0.05
"""Of p-values after Holm's correction over traits, which must be below it."""
OUTCOME_MEASURES: tuple[Literal["contrast", "detector_rate"], ...] = ("contrast", "detector_rate")
"""Measures of a trait that no model was trained on."""

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Thresholds:
    """See `config.evaluation.EvaluationGates`."""

    traits_shown: float
    win_rate: float
    length_change: float
    distinct_share: float
    retention: float
    refusals: float


@dataclass(frozen=True)
class Gate:
    """One demand on the policy."""

    name: str
    text: str
    """What is demanded, in words."""
    value: float | None
    """None: not measured."""
    ci_low: float | None
    ci_high: float | None
    threshold: float
    is_ceiling: bool
    """The value may be at most the threshold; else at least."""
    is_met: bool | None
    """None: not measured."""


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
        _change("length", "change of the replies' length", overall.get("length"), change),
        _change(
            "natural_length",
            "change of the length of replies that may end by themselves",
            overall.get("natural_length"),
            change,
        ),
        _kept("distinct_2", "distinct bigrams, as a share of the base's", overall, kept),
        _retention(results["probes"], thresholds.retention),
        _refusals(results["probes"], thresholds.refusals),
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
        found[trait_id] = None if rate is None else rate["base"] + _low(rate) >= threshold
    return found


def _low(effect: Json) -> float:
    low: float = effect["ci_low"]
    return low


def _share(name: str, text: str, by_trait: Mapping[str, bool | None], threshold: float) -> Gate:
    """Of the traits that were measured; one that was not is named."""
    judged = {trait_id: found for trait_id, found in by_trait.items() if found is not None}
    absent = [trait_id for trait_id in by_trait if trait_id not in judged]
    if absent and judged:
        text += f"; not measured for {', '.join(absent)}"
    value = sum(judged.values()) / len(judged) if judged else None
    return Gate(
        name=name,
        text=text,
        value=value,
        ci_low=None,
        ci_high=None,
        threshold=threshold,
        is_ceiling=False,
        is_met=None if value is None else value >= threshold,
    )


def _change(name: str, text: str, by_arm: Json | None, threshold: float) -> Gate:
    """The change as a share of the base's, up or down."""
    effect = (by_arm or {}).get("policy")
    text = f"{text}, as a share of the base's, up or down"
    if effect is None or effect["base"] == 0:
        return _unmeasured(name, text, threshold, is_ceiling=True)
    value, low, high = (effect[key] / effect["base"] for key in ("difference", "ci_low", "ci_high"))
    return Gate(
        name=name,
        text=text,
        value=value,
        ci_low=low,
        ci_high=high,
        threshold=threshold,
        is_ceiling=True,
        is_met=abs(value) <= threshold,
    )


def _kept(name: str, text: str, overall: Json, threshold: float) -> Gate:
    effect = overall.get(name, {}).get("policy")
    if effect is None or effect["base"] == 0:
        return _unmeasured(name, text, threshold, is_ceiling=False)
    value, low, high = (
        (effect["base"] + effect[key]) / effect["base"]
        for key in ("difference", "ci_low", "ci_high")
    )
    return Gate(
        name=name,
        text=text,
        value=value,
        ci_low=low,
        ci_high=high,
        threshold=threshold,
        is_ceiling=False,
        is_met=value >= threshold,
    )


def _retention(probes: Mapping[str, Json], threshold: float) -> Gate:
    text = "share of the contrast's effect that is left when the character is told to go, at worst"
    effect = _probed(probes, "drop_the_act", "worst", "contrast_retention")
    if effect is None or effect["arm"] is None:
        return _unmeasured("retention", text, threshold, is_ceiling=False)
    return Gate(
        name="retention",
        text=text,
        value=effect["arm"],
        ci_low=effect["base"] + effect["ci_low"],
        ci_high=effect["base"] + effect["ci_high"],
        threshold=threshold,
        is_ceiling=False,
        is_met=effect["arm"] >= threshold,
    )


def _refusals(probes: Mapping[str, Json], threshold: float) -> Gate:
    """By the upper end: with few requests, no difference is no evidence of none."""
    text = "how much more often harmless requests are refused, with an interval that ends below"
    effect = _probed(probes, "harmless", "plain", "refusal")
    if effect is None:
        return _unmeasured("refusals", text, threshold, is_ceiling=True)
    return Gate(
        name="refusals",
        text=text,
        value=effect["difference"],
        ci_low=effect["ci_low"],
        ci_high=effect["ci_high"],
        threshold=threshold,
        is_ceiling=True,
        is_met=effect["ci_high"] <= threshold,
    )


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
    arms = [arm["name"] for arm in results["arms"] if arm["kind"] == "placebo"]
    shown: Sequence[bool | None] = [
        is_shown(by_measure, arm) for arm in arms for by_measure in results["traits"].values()
    ]
    judged = [found for found in shown if found is not None]
    if not judged:
        return _unmeasured("placebo", text, 0.0, is_ceiling=True)
    value = sum(judged) / len(judged)
    return Gate(
        name="placebo",
        text=text,
        value=value,
        ci_low=None,
        ci_high=None,
        threshold=0.0,
        is_ceiling=True,
        is_met=value == 0,
    )


def _unmeasured(name: str, text: str, threshold: float, *, is_ceiling: bool) -> Gate:
    return Gate(name, text, None, None, None, threshold, is_ceiling, None)
