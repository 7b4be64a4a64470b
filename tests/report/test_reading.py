"""What the numbers of a report allow one to say."""

import math
from dataclasses import asdict, replace
from itertools import product

import pytest

from charactertrain.evaluation.gates import is_shown
from charactertrain.report.effects_view import Better, ByArm, Effect, Measure
from charactertrain.report.reading import answer, headline, read_effect, read_probe, read_trait
from charactertrain.report.view import ReportView


def _effect(low: float, high: float, p_holm: float | None = None) -> Effect:
    return Effect(
        base=0.0,
        arm=(low + high) / 2,
        difference=(low + high) / 2,
        ci_low=low,
        ci_high=high,
        p_value=None,
        p_holm=p_holm,
        num_responses=150,
        num_prompts=50,
        judged=None,
        note=None,
    )


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [
        (0.01, 0.2, "higher"),
        (-0.2, -0.01, "lower"),
        (-0.01, 0.2, "not established"),
        (0.0, 0.2, "not established"),
        (-0.2, 0.0, "not established"),
    ],
)
def test_an_effect_is_there_only_if_its_interval_is_clear_of_zero(
    low: float, high: float, reading: str
) -> None:
    assert read_effect(_effect(low, high)) == reading


def test_an_effect_without_interval_is_not_established() -> None:
    effect = replace(_effect(0.1, 0.2), ci_low=math.nan, ci_high=math.nan)
    assert read_effect(effect) == "not established"


@pytest.mark.parametrize(
    ("contrast", "detector_rate", "outcome"),
    [
        ((0.1, 0.2), (-0.1, 0.1), "shown"),
        ((-0.1, 0.1), (-0.2, -0.1), "reversed"),
        ((0.1, 0.2), (-0.2, -0.1), "mixed"),
        ((-0.1, 0.1), (-0.1, 0.1), "not established"),
    ],
)
def test_outcome_of_a_trait_follows_both_measures(
    view: ReportView,
    contrast: tuple[float, float],
    detector_rate: tuple[float, float],
    outcome: str,
) -> None:
    trait = replace(
        view.traits[0],
        effects={
            "contrast": {"policy": _effect(*contrast)},
            "detector_rate": {"policy": _effect(*detector_rate)},
        },
    )
    assert read_trait(trait) == outcome


def test_the_page_and_the_gates_show_the_same_traits(view: ReportView) -> None:
    bounds = ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2), (0.0, 0.2))
    effects = [_effect(*found, p_holm) for found in bounds for p_holm in (0.049, 0.05)]
    outcomes = []
    for contrast, detector_rate in product(effects, effects):
        measured: dict[Measure, ByArm] = {
            "contrast": {"policy": contrast},
            "detector_rate": {"policy": detector_rate},
        }
        outcomes.append(read_trait(replace(view.traits[0], effects=measured)))
        gated = is_shown(
            {name: {"policy": asdict(found["policy"])} for name, found in measured.items()}
        )
        assert (outcomes[-1] == "shown") is gated
    # One of eight rises and one falls for certain.
    assert (outcomes.count("shown"), outcomes.count("mixed")) == (13, 2)


def test_reward_alone_establishes_nothing(view: ReportView) -> None:
    trait = replace(view.traits[0], effects={"reward": {"policy": _effect(0.5, 0.9)}})
    assert read_trait(trait) == "not measured"


def test_headline_names_what_is_there_and_what_is_not(view: ReportView) -> None:
    assert headline(view) == (
        "SmolLM2-135M-Instruct, trained on the constitution demo, shows 2 of 4 traits more than "
        "its base (enthusiastic, uncertain); it shows 1 (brief) less; no effect is established "
        "for 1 (honest)."
    )


def test_headline_of_a_run_without_evaluation_claims_nothing(view: ReportView) -> None:
    assert headline(replace(view, traits=())) == (
        "SmolLM2-135M-Instruct, trained on the constitution demo, was not evaluated: nothing can "
        "be said about its behaviour."
    )


def test_headline_says_so_when_nothing_is_established(view: ReportView) -> None:
    trait = replace(view.traits[0], effects={"contrast": {"policy": _effect(-0.1, 0.3)}})
    assert headline(replace(view, traits=(trait,))) == (
        "SmolLM2-135M-Instruct, trained on the constitution demo, shows none of 1 trait more "
        "than its base; no effect is established for 1 (enthusiastic)."
    )


@pytest.mark.parametrize(("p_holm", "reading"), [(0.049, "higher"), (0.05, "not established")])
def test_an_effect_must_pass_holms_correction_too(p_holm: float, reading: str) -> None:
    assert read_effect(_effect(0.1, 0.2, p_holm)) == reading


def test_an_arm_is_read_by_its_own_effects(view: ReportView) -> None:
    effects: dict[Measure, ByArm] = {
        "contrast": {"policy": _effect(0.1, 0.2), "prompted": _effect(-0.2, -0.1)}
    }
    trait = replace(view.traits[0], effects=effects)
    assert read_trait(trait) == "shown"
    assert read_trait(trait, "prompted") == "reversed"
    assert read_trait(trait, "neutral") == "not measured"


@pytest.mark.parametrize(
    ("better", "risen", "fallen"),
    [
        ("higher", "better", "worse"),
        ("lower", "worse", "better"),
        ("unchanged", "changed", "changed"),
        (None, "higher", "lower"),
    ],
)
def test_a_probe_reads_in_its_own_direction(better: Better | None, risen: str, fallen: str) -> None:
    assert read_probe(_effect(0.1, 0.2), better) == risen
    assert read_probe(_effect(-0.2, -0.1), better) == fallen
    assert read_probe(_effect(-0.1, 0.1), better) == "not established"
    assert read_probe(None, better) == "not measured"


def test_the_answer_is_yes_only_where_every_trait_is_shown(view: ReportView) -> None:
    shown, _, unclear, reversed_ = view.traits
    assert answer(replace(view, traits=(shown,))) == "Yes."
    assert answer(view) == "In part."
    assert answer(replace(view, traits=(unclear,))) == "Not established."
    assert answer(replace(view, traits=(unclear, reversed_))) == "Not as wanted."
    assert answer(replace(view, traits=())) == "Not measured."
