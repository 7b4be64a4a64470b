"""The charts of the report: safe, the same each time, described, and drawn from the values."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from charactertrain.report import arm_plots, plots, sections, watch_plots
from charactertrain.report.data_view import HistogramBin
from charactertrain.report.effects_view import Arm, ByArm, Measure
from charactertrain.report.preference_view import CurvePoint, HeldOutLoss, Shortcut
from charactertrain.report.svg import HIGHER
from charactertrain.report.view import ReportView, TraitView


def _forest(view: ReportView, measure: Measure = "contrast") -> str:
    groups = [(trait.trait_id, trait.effects.get(measure, {})) for trait in view.traits]
    return arm_plots.forest_plot(f"effects {measure}", "Title", groups, arm_plots.looks(view.arms))


def _of_policy(trait: TraitView, effects: ByArm | None = None) -> str:
    """The contrast of the policy alone, on one trait."""
    found = trait.effects["contrast"] if effects is None else effects
    arms = arm_plots.looks([Arm(name="policy", kind="policy", source=None, num_unasked=0)])
    return arm_plots.forest_plot("one", "Title", [(trait.trait_id, found)], arms)


def _all_plots(view: ReportView) -> list[str]:
    model, watch = view.preference_model, view.watch
    assert model
    assert watch
    return [
        _forest(view),
        arm_plots.arm_key("policy", arm_plots.looks(view.arms)["policy"]),
        plots.accuracy_plot(sections.accuracies(model)),
        plots.shortcuts_plot(model.shortcuts),
        plots.loss_plot(model.curve, model.held_out_losses, model.best_step),
        plots.curve_plot("policy reward", "Reward", [(1, 0.1), (2, 0.4), (3, 0.2)]),
        plots.calibration_plot(model.before_temperature, model.after_temperature),
        plots.histogram_plot(view.data.label_strength),
        watch_plots.over_optimisation_plot(watch.readings, watch.exported_step),
    ]


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


def test_plots_are_the_same_bytes_each_time(view: ReportView) -> None:
    assert _all_plots(view) == _all_plots(view)


def test_plots_name_no_place_date_or_font(view: ReportView) -> None:
    for svg in _all_plots(view):
        assert svg.startswith("<svg ")
        assert not re.search(r"://|xmlns|<\?xml|<!|<metadata|<style|font-family|Matplotlib", svg)


def test_plots_take_every_colour_from_the_page(view: ReportView) -> None:
    for svg in _all_plots(view):
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
        assert colours - {"none"}
        assert all(colour == "none" or colour.startswith("var(--") for colour in colours), colours


def test_plots_are_described_images_without_a_fixed_size(view: ReportView) -> None:
    for svg in _all_plots(view):
        root = ET.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert len(root.attrib["aria-label"]) > 20 or root.attrib["aria-label"] == "policy"
        assert root.attrib.keys() == {"viewBox", "role", "aria-label"}


def test_labels_stay_text_and_are_escaped(view: ReportView) -> None:
    hostile = "</svg><script>$x$</script>"
    trait = replace(view.traits[0], trait_id=hostile)
    svg = _of_policy(trait)
    assert "<script" not in svg
    assert hostile in _texts(svg)
    assert hostile in ET.fromstring(svg).attrib["aria-label"]


@pytest.mark.parametrize("label", ["\u597d\u5947", "bell\x07", "\uffff", "\u202e"])
def test_any_label_can_be_drawn(view: ReportView, label: str) -> None:
    svg = _of_policy(replace(view.traits[0], trait_id=label))
    ET.fromstring(svg)


def test_ids_of_two_plots_never_meet(view: ReportView) -> None:
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in _all_plots(view)]
    assert sum(map(len, ids)) == len(set().union(*ids))


def test_every_reference_is_kept(view: ReportView) -> None:
    for svg in _all_plots(view):
        references = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
        assert references == set(re.findall(r' id="([^"]+)"', svg))


def test_forest_plot_shows_each_trait_and_arm_with_its_difference(view: ReportView) -> None:
    texts = _texts(_forest(view, "detector_rate"))
    assert {"enthusiastic", "uncertain", "honest: not measured", "brief"} <= set(texts)
    assert texts.count("policy") == texts.count("prompted") == texts.count("demo-dpo") == 3
    assert {"+0.443", "+0.031", "-0.016", "+0.620"} <= set(texts)


def test_forest_plot_leaves_out_an_arm_that_was_not_measured(view: ReportView) -> None:
    assert "prompted" not in _texts(_forest(view, "win_rate"))


def test_interval_clear_of_zero_is_filled_and_another_hollow(view: ReportView) -> None:
    enthusiastic, _, honest, brief = view.traits
    assert "fill: var(--arm-1)" in _of_policy(enthusiastic)
    assert "fill: var(--arm-1)" in _of_policy(brief)
    hollow = _of_policy(honest)
    assert "fill: var(--paper); stroke: var(--arm-1)" in hollow
    assert "fill: var(--arm-1)" not in hollow


def test_policy_looks_alike_whatever_it_is_compared_with(view: ReportView) -> None:
    base, prompted, policy, other = view.arms
    first, second = arm_plots.looks(view.arms), arm_plots.looks([base, other, prompted, policy])
    assert first["policy"] == second["policy"]
    assert "base" not in first


def test_many_arms_never_look_alike() -> None:
    arms = [Arm(name=f"run-{n}", kind="run", source=None, num_unasked=0) for n in range(56)]
    found = arm_plots.looks(arms).values()
    assert len({(look.colour, look.marker) for look in found}) == 56


def test_interval_stands_where_its_numbers_are() -> None:
    row = plots.IntervalRow(
        label="a",
        value=2.0,
        low=1.0,
        high=3.0,
        note="",
        colour=HIGHER,
        is_filled=True,
        marks=(),
    )
    svg = plots.interval_plot("test", "Test", [row], reference=0.0)
    ticks = {
        float(text.text or "nan"): float(text.attrib["x"])
        for text in ET.fromstring(svg).iter("text")
        if re.fullmatch(r"\d(\.\d)?", text.text or "")
    }
    line = re.search(r'd="M ([\d.]+) [\d.]+ L ([\d.]+) [\d.]+"[^>]*var\(--higher\)', svg)
    assert line
    assert float(line[1]) == pytest.approx(ticks[1.0], abs=0.02)
    assert float(line[2]) == pytest.approx(ticks[3.0], abs=0.02)


def test_values_that_are_not_finite_are_not_drawn(view: ReportView) -> None:
    found = view.traits[0].effects["contrast"]["policy"]
    effect = replace(found, difference=math.nan, ci_low=math.nan, ci_high=math.inf)
    assert "var(--arm-1)" in _of_policy(view.traits[0])
    assert "var(--arm-1)" not in _of_policy(view.traits[0], {"policy": effect})


def _shortcut(value: float, half_width: float) -> Shortcut:
    return Shortcut(
        edit="padding",
        value=value,
        ci_low=value - half_width,
        ci_high=value + half_width,
        num_prompts=9,
        raised_share=0.5,
    )


@pytest.mark.parametrize(
    ("value", "half_width", "reading", "look"),
    [
        (0.5, 0.25, "rewarded", "fill: var(--lower); stroke: var(--lower)"),
        (-0.5, 0.25, "penalised", "fill: var(--higher); stroke: var(--higher)"),
        (0.25, 0.25, "not established", "fill: var(--paper); stroke: var(--neutral)"),
        (-0.25, 0.25, "not established", "fill: var(--paper); stroke: var(--neutral)"),
    ],
)
def test_shortcut_is_read_and_drawn_by_its_interval(
    value: float, half_width: float, reading: str, look: str
) -> None:
    shortcut = _shortcut(value, half_width)
    assert shortcut.reading == reading
    assert look in plots.shortcuts_plot([shortcut])


def test_accuracy_is_marked_with_both_baselines(view: ReportView) -> None:
    assert view.preference_model
    whole = view.preference_model.accuracy_overall
    assert whole
    without = replace(whole, length_only=None, provenance_only=None)
    drawn, bare = (plots.accuracy_plot([("all", found)]) for found in (whole, without))
    # A diamond and a triangle, and nothing else that is drawn in ink and hollow.
    assert drawn.count("fill-opacity: 0") - bare.count("fill-opacity: 0") == 2


def test_accuracy_that_was_not_measured_is_named_and_not_drawn() -> None:
    svg = plots.accuracy_plot([("honest", None)])
    assert {"honest", "not measured"} <= set(_texts(svg))
    assert "var(--higher)" not in svg


def test_losses_are_described_with_the_step_that_was_kept() -> None:
    curve = [CurvePoint(step=step, loss=1.0 / step, accuracy=None) for step in (1, 2, 4)]
    held_out = [HeldOutLoss(step=2, loss=0.75), HeldOutLoss(step=4, loss=0.875)]
    svg = plots.loss_plot(curve, held_out, 2)
    assert ET.fromstring(svg).attrib["aria-label"] == (
        "Training loss by step: 1.000 at step 1, 0.250 at step 4, lowest 0.250, highest 1.000. "
        "Held-out loss by step: 0.750 at step 2, 0.875 at step 4, lowest 0.750, highest 0.875. "
        "Weights of step 2 kept."
    )
    assert {"training", "held-out", "weights kept"} <= set(_texts(svg))


def test_losses_that_were_not_recorded_are_not_drawn() -> None:
    texts = _texts(plots.loss_plot([CurvePoint(step=1, loss=0.7, accuracy=None)], [], None))
    assert "training" in texts
    assert not {"held-out", "weights kept"} & set(texts)


def test_curve_is_described_by_its_ends_and_extremes() -> None:
    svg = plots.curve_plot("x", "Reward", [(1, 0.1), (2, math.nan), (3, 0.9), (4, 0.4)])
    assert ET.fromstring(svg).attrib["aria-label"] == (
        "Reward by step: 0.100 at step 1, 0.400 at step 4, lowest 0.100, highest 0.900."
    )


def test_histogram_is_described_bin_by_bin() -> None:
    svg = plots.histogram_plot([HistogramBin(low=0.5, high=0.75, count=12)])
    assert "0.50 to 0.75: 12" in ET.fromstring(svg).attrib["aria-label"]
