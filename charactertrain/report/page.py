"""The report page: a view in, one HTML document without scripts or outside resources out."""

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from charactertrain.report import plots, reading, sections, text, watch_plots
from charactertrain.report.view import ReportView


def render(view: ReportView) -> str:
    """The report as one HTML document; the same view gives the same bytes."""
    splits = tuple(dict.fromkeys(row.split for row in view.data.prompts))
    bins = view.data.label_strength
    return (
        _environment()
        .get_template("template.html")
        .render(
            view=view,
            headline=reading.headline(view),
            effect_charts=sections.effect_charts(view.traits),
            phases=[sections.phase_section(phase, view.policy) for phase in sections.PHASE_TITLES],
            splits=splits,
            prompt_rows=sections.prompt_rows(view.data.prompts, splits),
            label_chart=Markup(plots.histogram_plot(bins)) if bins else None,
        )
    )


@functools.cache
def _environment() -> Environment:
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
        duration=text.duration,
        highlight=text.highlight,
    )
    environment.globals.update(
        interval=text.interval,
        read_effect=reading.read_effect,
        read_trait=reading.read_trait,
        measure_labels=reading.MEASURE_LABELS,
        outcome_measures=reading.OUTCOME_MEASURES,
        metric_titles=sections.METRIC_TITLES,
        accuracies=sections.accuracies,
        accuracy_chart=sections.accuracy_chart,
        calibration_chart=sections.calibration_chart,
        preference_charts=sections.preference_charts,
        over_optimisation_chart=watch_plots.over_optimisation_chart,
        watch_panels=watch_plots.watch_panels,
    )
    return environment


def _finalize(value: object) -> object:
    if value is None:
        return "not recorded"
    if isinstance(value, str) and not isinstance(value, Markup):
        return text.printable(value)
    return value
