"""The section on over-optimisation: with a gold model, without one, and left out."""

import re
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree as ET

import pytest

from charactertrain.report.page import render
from charactertrain.report.view import ReportView
from charactertrain.report.watch_plots import over_optimisation_plot, watch_panels
from charactertrain.report.watch_view import WatchView

HOSTILE = '</svg><script>alert(1)</script>"\' onclick="x'


@pytest.fixture(name="watch", scope="module")
def _watch(view: ReportView) -> WatchView:
    assert view.watch
    return view.watch


def _without_gold(watch: WatchView) -> WatchView:
    readings = tuple(replace(found, gold=None, gold_change=None) for found in watch.readings)
    return replace(watch, readings=readings, stopped=None, exported_step=100)


def _section(view: ReportView) -> str:
    """The section's visible text, empty where there is none."""
    html = render(view).partition('<section aria-labelledby="over-optimisation">')[2]
    words = re.sub(r"<[^>]+>", " ", html.partition("</section>")[0])
    return " ".join(unescape(words).split())


def test_section_says_what_was_exported_and_why_it_stopped(
    light_view: ReportView, watch: WatchView
) -> None:
    found = _section(replace(light_view, watch=watch))
    for said in (
        "read on 64 validation prompts, the same at each of 5 readings",
        "Exported: the weights after step 50 of 100, which have the highest gold reward",
        "Training was stopped. over-optimisation at step 100: the gold reward fell entropy at",
        *("0.710 [0.593, 0.827]", "0.290 [0.137, 0.443]", "0.0220", "1.890", "0.697", "27.8"),
        *("detector: enthusiastic", "0.251", "detector: brief", "0.062"),
    ):
        assert said in found, said
    assert "could not be seen" not in found
    assert "No rule stopped" not in found


def test_section_without_gold_says_that_nothing_could_be_seen(
    light_view: ReportView, watch: WatchView
) -> None:
    found = _section(replace(light_view, watch=_without_gold(watch)))
    assert "Over-optimisation could not be seen in this run: it has no gold model" in found
    assert "Exported: the weights after step 100 of 100, the last reading within" in found
    assert "No rule stopped the training" in found
    assert found.count("no gold model") == 1 + len(watch.readings)
    assert "highest gold reward" not in found


def test_section_and_its_link_are_left_out_without_readings(
    light_view: ReportView, watch: WatchView
) -> None:
    assert "over-optimisation" not in render(light_view).lower()
    assert 'href="#over-optimisation"' in render(replace(light_view, watch=watch))


def test_traits_without_detector_are_said(light_view: ReportView, watch: WatchView) -> None:
    bare = replace(watch, readings=tuple(replace(r, detectors={}) for r in watch.readings))
    assert "No trait of these prompts has one." in _section(replace(light_view, watch=bare))


def test_hostile_texts_are_escaped(light_view: ReportView, watch: WatchView) -> None:
    readings = tuple(replace(found, detectors={HOSTILE: 0.5}) for found in watch.readings)
    hostile = replace(watch, readings=readings, stopped=HOSTILE)
    html = render(replace(light_view, watch=hostile))
    assert html.count("<script") == 1
    assert unescape(html).count(HOSTILE) == 2


def _svg(watch: WatchView) -> ET.Element:
    return ET.fromstring(over_optimisation_plot(watch.readings, watch.exported_step))


def test_plot_is_described_with_changes_and_export(watch: WatchView) -> None:
    first_two = replace(watch, readings=watch.readings[:2], exported_step=25)
    assert _svg(first_two).attrib["aria-label"] == (
        "Reward trained on, change since the first reading: step 0 0.000 [0.000, 0.000]; step 25 "
        "+0.250 [0.231, 0.269]. Gold reward, change since the first reading: step 0 0.000 [0.000, "
        "0.000]; step 25 +0.310 [0.287, 0.333]. Weights of step 25 exported."
    )


def test_plot_labels_steps_and_lines(watch: WatchView) -> None:
    texts = [element.text for element in _svg(watch).iter("text")]
    assert {"0", "25", "50", "75", "100", "trained on", "gold", "exported"} <= set(texts)
    assert "gold" not in [element.text for element in _svg(_without_gold(watch)).iter("text")]


def test_plot_of_many_readings_labels_some_and_the_last(watch: WatchView) -> None:
    last = watch.readings[-1]
    many = replace(
        watch,
        readings=tuple(replace(last, step=1000 + i, distance=0.1 * i) for i in range(41)),
    )
    labels = {text.text for text in _svg(many).iter("text") if (text.text or "").startswith("10")}
    assert labels == {str(1000 + i) for i in range(40, -1, -5)}


def test_panels_are_entropy_length_and_variety(watch: WatchView) -> None:
    titles = [chart.title for chart in watch_panels(watch)]
    assert titles == ["Entropy, nats per token", "Length, tokens", "Distinct bigrams, share"]
