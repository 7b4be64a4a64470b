"""The model card that belongs beside the weights when a policy is published.

Its front matter is what the Hugging Face Hub reads:
https://huggingface.co/docs/hub/model-cards#model-card-metadata.
"""

import math
import re
from typing import Any

import yaml

from charactertrain.report.effects_view import POLICY, Effect
from charactertrain.report.reading import MEASURE_LABELS, OVERALL_LABELS, headline, read_effect
from charactertrain.report.text import interval, number, shorten, signed
from charactertrain.report.view import ReportView

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What opens markup in Markdown or HTML, so that a statement stays text.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!&~])")
_MAX_CHARACTERS = 600


def render(view: ReportView) -> str:
    """The card as Markdown with YAML front matter; the same view gives the same text."""
    front = yaml.safe_dump(front_matter(view), sort_keys=False, allow_unicode=True)
    sections = (
        f"# {_plain(view.run.model_name)}, trained on the constitution "
        f"{_plain(view.run.constitution_name)}",
        _plain(headline(view)),
        *_method(view),
        *_traits(view),
        *_results(view),
        *_gates(view),
        *_limits(view),
        *_over_seeds(view),
    )
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def front_matter(view: ReportView) -> dict[str, Any]:
    """License, base model, tags, and results by trait and measure with their intervals."""
    path = view.run.model_path or ""
    # Only the Hub's own names are links there; a local directory is named in the text.
    base = {"base_model": path} if _HUB_ID.fullmatch(path) else {}
    return {
        "license": "other",
        "license_name": "as-the-base-model",
        **base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["charactertrain", "character-training", "constitutional-ai"],
        "model-index": [
            {
                "name": f"{_line(view.run.model_name)}, {_line(view.run.constitution_name)}",
                "results": [_result(trait.trait_id, trait.effects) for trait in view.traits],
            }
        ],
    }


def _result(trait_id: str, effects: Any) -> dict[str, Any]:
    found = {measure: by_arm[POLICY] for measure, by_arm in effects.items() if POLICY in by_arm}
    return {
        "task": {"type": "text-generation", "name": f"character: {_line(trait_id)}"},
        "dataset": {
            "type": "held-out-prompts",
            "name": f"held-out prompts about {_line(trait_id)}",
        },
        "metrics": [
            {
                "type": measure,
                "name": f"{MEASURE_LABELS[measure].title}, policy minus base",
                "value": round(effect.difference, 4),
                "args": {
                    "ci_low": _rounded(effect.ci_low),
                    "ci_high": _rounded(effect.ci_high),
                    "p_holm": _rounded(effect.p_holm),
                    "num_prompts": effect.num_prompts,
                },
            }
            for measure, effect in found.items()
            if math.isfinite(effect.difference)
        ],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 4)


def _line(text: str) -> str:
    return shorten(text, _MAX_CHARACTERS)


def _plain(text: str) -> str:
    """The text on one line, with nothing in it that Markdown or HTML would read as markup."""
    return _MARKDOWN.sub(r"\\\1", _line(text))


def _method(view: ReportView) -> list[str]:
    return [
        "## How it was made",
        f"Base model: `{(view.run.model_path or view.run.model_name).replace('`', '')}`, whose "
        f"licence holds for these weights too. {_plain(view.run.method)} No system prompt is "
        "needed. Made by charactertrain "
        f"{_plain(view.run.code_version or '(version not recorded)')}.",
    ]


def _traits(view: ReportView) -> list[str]:
    lines = [f"- **{_plain(trait.trait_id)}**: {_plain(trait.statement)}" for trait in view.traits]
    return ["## Traits", "\n".join(lines) or "None was evaluated."]


def _results(view: ReportView) -> list[str]:
    rows = [
        _row(f"{_plain(trait.trait_id)}: {MEASURE_LABELS[measure].title.lower()}", by_arm[POLICY])
        for trait in view.traits
        for measure, by_arm in trait.effects.items()
        if POLICY in by_arm
    ]
    rows += [
        _row(OVERALL_LABELS.get(measure, (_plain(measure), ""))[0].lower(), by_arm[POLICY])
        for measure, by_arm in view.overall.items()
        if POLICY in by_arm
    ]
    return [
        "## What changed",
        "Policy and base on the same held-out prompts, of scenarios that no training saw. "
        f"{view.interval_note or 'How the intervals were made was not recorded.'}",
        "\n".join([_head("policy"), *rows]) if rows else "Nothing was measured.",
        "\n".join(
            f"- {label.title} ({label.unit}): {label.explanation}"
            for label in MEASURE_LABELS.values()
        ),
    ]


def _head(value: str) -> str:
    return (
        f"| measure | base | {value} | difference, 95 % interval | reading |\n|---|---|---|---|---|"
    )


def _row(name: str, effect: Effect) -> str:
    return (
        f"| {name} | {number(effect.base)} | {number(effect.arm)} | {signed(effect.difference)} "
        f"{interval(effect.ci_low, effect.ci_high)} | {read_effect(effect)} |"
    )


def _gates(view: ReportView) -> list[str]:
    marks = {True: "pass", False: "fail", None: "not measured"}
    rows = [
        f"- {marks[gate.is_met]}: {_plain(gate.measure)}, "
        f"{'at most' if gate.is_ceiling else 'at least'} {gate.threshold:g}; "
        f"{number(gate.value)} {interval(gate.ci_low, gate.ci_high)}"
        for gate in view.gates
    ]
    return ["## Gates", "\n".join(rows) or "None was set, so no claim is judged."]


def _limits(view: ReportView) -> list[str]:
    missing = ", ".join(_plain(name) for name in view.missing_arms)
    controls = f" Controls that were not compared: {missing}." if missing else ""
    probes = ", ".join(_plain(probe.title) for probe in view.probes)
    probed = f"Probes that were run: {probes}." if probes else "No probe was run."
    return [
        "## Limits",
        f"A trait is a tendency, measured on prompts that a model wrote. {_seeds(view)} Contrast "
        "and reward are close to what was trained for, and a judge has preferences of its own. "
        "Safety, factual accuracy and other languages were not evaluated."
        f"{controls} {probed} The run's "
        "`report.html` has every number, the texts side by side, and what the run was made of.",
    ]


def _seeds(view: ReportView) -> str:
    """What the numbers say of training again with another seed."""
    if view.over_seeds is None:
        return (
            "All of it is of one run with one seed: an interval is over prompts and says nothing "
            "of another seed."
        )
    return (
        "The tables above are of these weights, one run with one seed, and their intervals are "
        f"over prompts. What {len(view.over_seeds.arms)} runs that differ by seed alone have in "
        "common, with intervals over runs and prompts, is in the table below."
    )


def _over_seeds(view: ReportView) -> list[str]:
    if view.over_seeds is None:
        return []
    rows = [
        _row(f"{_plain(trait_id)}: {MEASURE_LABELS[measure].title.lower()}", effect)
        for trait_id, effects in view.over_seeds.traits.items()
        for measure, effect in effects.items()
    ]
    return [
        f"## Over {len(view.over_seeds.arms)} seeds",
        "\n".join([_head("mean of runs"), *rows]) if rows else "Nothing was measured.",
    ]
