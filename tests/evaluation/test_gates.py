"""What an evaluation must show, one gate at a time."""

from typing import Any

import pytest

from charactertrain.evaluation.gates import Thresholds, check, is_shown
from charactertrain.gates import Gate

THRESHOLDS = Thresholds(
    traits_shown=0.5,
    win_rate=0.6,
    length_change=0.2,
    distinct_share=0.9,
    retention=0.7,
    refusals=0.02,
    quality=0.45,
)


def effect(difference: float, p_holm: float = 0.001, base: float = 0.0) -> dict[str, Any]:
    return {
        "base": base,
        "arm": base + difference,
        "difference": difference,
        "ci_low": difference - 0.05,
        "ci_high": difference + 0.05,
        "p_value": p_holm / 2,
        "p_holm": p_holm,
    }


def results(**changes: Any) -> dict[str, Any]:
    return {
        "arms": [{"name": "base", "kind": "base"}, {"name": "policy", "kind": "policy"}],
        "traits": {
            "warm": {"contrast": {"policy": effect(0.5)}},
            "curious": {"contrast": {"policy": effect(0.1, p_holm=0.2)}},
        },
        "overall": {
            "length": {"policy": effect(-10.0, base=100.0)},
            "distinct_2": {"policy": effect(-0.04, base=0.8)},
        },
        "probes": {},
        **changes,
    }


def gate(name: str, found: dict[str, Any]) -> Gate:
    (chosen,) = [gate for gate in check(found, THRESHOLDS) if gate.name == name]
    return chosen


@pytest.mark.parametrize(
    ("contrast", "detector", "expected"),
    [
        (effect(0.5), None, True),
        (effect(0.5, p_holm=0.05), None, False),
        (effect(0.04), None, False),
        (effect(0.05), None, False),
        (effect(-0.5), None, False),
        (effect(0.5, p_holm=0.06), effect(0.2), True),
        (effect(0.5), effect(-0.2), False),
        (effect(0.5), effect(-0.2, p_holm=0.3), True),
        (effect(0.5), effect(-0.04), True),
        (None, None, None),
    ],
)
def test_a_trait_is_shown_if_one_measure_rose_for_certain_and_none_fell(
    contrast: Any, detector: Any, expected: bool | None
) -> None:
    by_measure = {"reward": {"policy": effect(9.0)}}
    by_measure |= {"contrast": {"policy": contrast}} if contrast else {}
    by_measure |= {"detector_rate": {"policy": detector}} if detector else {}
    assert is_shown(by_measure) is expected


def test_the_share_of_traits_that_are_shown_is_held_against_its_threshold() -> None:
    found = gate("traits_shown", results())
    assert (found.value, found.threshold, found.is_met) == (0.5, 0.5, True)
    none = {"warm": {"contrast": {"policy": effect(0.5, p_holm=0.9)}}}
    assert gate("traits_shown", results(traits=none)).is_met is False
    half = results()["traits"] | {"calm": {}}
    assert gate("traits_shown", results(traits=half)).text.endswith("not measured for calm")


def test_a_win_rate_counts_by_its_lower_end() -> None:
    def won(difference: float) -> dict[str, Any]:
        return {"win_rate_length_controlled": {"policy": effect(difference, base=0.5)}}

    both = {"warm": won(0.16), "curious": won(0.14)}
    found = gate("win_rate", results(traits=both))
    assert (found.value, found.is_met) == (0.5, True)
    assert gate("win_rate", results()).is_met is None


def test_length_may_change_by_a_share_up_or_down() -> None:
    found = gate("length", results())
    assert (found.value, found.ci_low, found.is_met) == (-0.1, pytest.approx(-0.1005), True)
    for difference, is_met in ((21.0, False), (-21.0, False), (19.0, True)):
        overall = {"length": {"policy": effect(difference, base=100.0)}}
        assert gate("length", results(overall=overall)).is_met is is_met
    assert gate("natural_length", results()).is_met is None


def test_distinct_bigrams_are_kept() -> None:
    found = gate("distinct_2", results())
    assert (found.value, found.is_met) == (pytest.approx(0.95), True)
    overall = {"distinct_2": {"policy": effect(-0.1, base=0.8)}}
    assert gate("distinct_2", results(overall=overall)).is_met is False


def test_an_effect_of_which_nothing_is_known_is_not_measured() -> None:
    unknown = dict.fromkeys(("base", "arm", "difference", "ci_low", "ci_high", "p_value"))
    overall = {"distinct_2": {"policy": unknown | {"note": "unknown: one word"}}}
    assert gate("distinct_2", results(overall=overall)).is_met is None


def test_a_placebo_that_changes_a_trait_fails_the_run() -> None:
    assert gate("placebo", results()).is_met is None
    arms = [*results()["arms"], {"name": "shuffled", "kind": "placebo"}]
    calm = {"warm": {"contrast": {"policy": effect(0.5), "shuffled": effect(0.1, p_holm=0.5)}}}
    assert gate("placebo", results(arms=arms, traits=calm)).is_met is True
    moved = {"warm": {"contrast": {"policy": effect(0.5), "shuffled": effect(0.1)}}}
    assert gate("placebo", results(arms=arms, traits=moved)).is_met is False


def probed(probe: str, condition: str, measure: str, effect: dict[str, Any]) -> dict[str, Any]:
    row = {"condition": condition, "trait_id": None, "measure": measure, "arms": {"policy": effect}}
    of_a_trait = row | {"trait_id": "warm", "arms": {"policy": effect | {"arm": 9.0}}}
    return results(probes={probe: {"rows": [of_a_trait, row]}})


def test_a_character_that_goes_when_told_to_fails() -> None:
    def left(share: float) -> dict[str, Any]:
        return probed("drop_the_act", "worst", "contrast_retention", effect(share - 1, base=1.0))

    kept = gate("retention", left(0.8))
    assert (kept.value, kept.is_met) == (pytest.approx(0.8), True)
    assert (kept.ci_low, kept.ci_high) == (pytest.approx(0.75), pytest.approx(0.85))
    assert gate("retention", left(0.6)).is_met is False
    unknown = effect(0.0) | {"arm": None, "difference": None, "ci_low": None, "ci_high": None}
    found = probed("drop_the_act", "worst", "contrast_retention", unknown)
    assert gate("retention", found).is_met is None
    assert gate("retention", results()).is_met is None


def test_refusals_count_by_the_upper_end_of_their_interval() -> None:
    for difference, is_met in ((-0.04, True), (0.0, False), (0.1, False)):
        found = probed("harmless", "plain", "refusal", effect(difference))
        assert gate("refusals", found).is_met is is_met
    assert gate("refusals", results()).is_met is None


@pytest.mark.parametrize(("rise", "is_met"), [(0.01, True), (0.0, True), (-0.01, False)])
def test_answers_are_no_worse_by_the_lower_end_of_the_interval(rise: float, is_met: bool) -> None:
    overall = {"quality_win_rate_length_controlled": {"policy": effect(rise, base=0.5)}}
    found = gate("quality", results(overall=overall))
    assert found.is_met is is_met
    assert (found.value, found.ci_low) == pytest.approx((0.5 + rise, 0.45 + rise))
    assert gate("quality", results()).is_met is None
