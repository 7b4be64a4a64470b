"""The report page: a view in, one HTML document without outside resources out.

Its one script filters what is there; the page's policy allows that script alone, by its hash.
"""

import base64
import functools
import hashlib
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from charactertrain.evaluation import gates as evaluation_gates
from charactertrain.report import (
    arm_plots,
    effect_sections,
    plots,
    reading,
    sections,
    text,
    watch_plots,
)
from charactertrain.report.effects_view import POLICY
from charactertrain.report.view import ReportView

NAVIGATION = {
    "outcome": "Outcome",
    "effects": "Effects",
    "probes": "Probes",
    "free-choice": "Free choice",
    "attribution": "Attribution",
    "texts": "Texts",
    "preference-model": "Preference model",
    "policy": "Policy",
    "over-optimisation": "Over-optimisation",
    "checks": "Checks",
    "data": "Data",
    "run": "Run",
}
"""Title of each section by its id."""


def render(view: ReportView) -> str:
    """The report as one HTML document; the same view gives the same bytes."""
    splits = tuple(dict.fromkeys(row.split for row in view.data.prompts))
    bins = view.data.label_strength
    arms = arm_plots.looks(view.arms)
    others = {name: look for name, look in arms.items() if name != POLICY}
    script = resources.files("charactertrain.report").joinpath("filters.js").read_text()
    return (
        environment()
        .get_template("template.html")
        .render(
            view=view,
            navigation={
                name: title
                for name, title in NAVIGATION.items()
                if name != "over-optimisation" or view.watch
            },
            script=Markup(script),
            script_hash=script_hash(script),
            headline=reading.headline(view),
            answer=reading.answer(view),
            arm_looks=arms,
            keys=effect_sections.arm_keys(arms),
            effect_charts=effect_sections.measure_charts(view, arms),
            other_looks=others,
            policy_look={name: look for name, look in arms.items() if name == POLICY},
            against_charts=effect_sections.against_charts(view, others),
            kind_charts=effect_sections.kind_charts(view, arms),
            revealed_chart=effect_sections.revealed_chart(view.revealed_preferences, arms),
            revealed_looks=effect_sections.revealed_looks(view.revealed_preferences, arms),
            phases=[sections.phase_section(phase, view.policy) for phase in sections.PHASE_TITLES],
            splits=splits,
            prompt_rows=sections.prompt_rows(view.data.prompts, splits),
            label_chart=Markup(plots.histogram_plot(bins)) if bins else None,
        )
    )


def script_hash(script: str) -> str:
    """The source expression by which a content security policy allows an inline script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@functools.cache
def environment() -> Environment:
    """Templates of this package, which escape and make printable every text that they are given."""
    environment = Environment(
        loader=PackageLoader("charactertrain.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=text.number,
        signed=text.signed,
        count=text.count,
        p_value=text.p_value,
        duration=text.duration,
        highlight=text.highlight,
    )
    environment.globals.update(
        interval=text.interval,
        read_effect=reading.read_effect,
        read_trait=reading.read_trait,
        read_probe=reading.read_probe,
        read_recognised=reading.read_recognised,
        measure_labels=reading.MEASURE_LABELS,
        overall_labels=reading.OVERALL_LABELS,
        outcome_measures=evaluation_gates.OUTCOME_MEASURES,
        significance=evaluation_gates.SIGNIFICANCE,
        metric_titles=sections.METRIC_TITLES,
        accuracies=sections.accuracies,
        accuracy_chart=sections.accuracy_chart,
        calibration_chart=sections.calibration_chart,
        preference_charts=sections.preference_charts,
        over_optimisation_chart=watch_plots.over_optimisation_chart,
        watch_panels=watch_plots.watch_panels,
        probe_charts=effect_sections.probe_charts,
        probe_summary=effect_sections.probe_summary,
        whole_rows=effect_sections.whole_rows,
        measure_title=effect_sections.measure_title,
        panels_of=effect_sections.panels,
    )
    return environment


def _finalize(value: object) -> object:
    if value is None:
        return "not recorded"
    if isinstance(value, str) and not isinstance(value, Markup):
        return text.printable(value)
    return value
