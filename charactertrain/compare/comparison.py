"""What several runs have in common and what not, as the page's view and as JSON."""

from collections.abc import Mapping, Sequence

from charactertrain.artifacts import Json
from charactertrain.compare.runs import FinishedRun
from charactertrain.report.comparison import (
    ComparisonView,
    GateRow,
    RunRow,
    SettingRow,
    TraitTexts,
)
from charactertrain.report.effects_view import BASE, POLICY, ByArm, Measure
from charactertrain.report.reading import MEASURE_LABELS
from charactertrain.report.settings import ABSENT
from charactertrain.report.view import Reply, Sample
from charactertrain.seeds import derive_seed
from charactertrain.stages.report import effects as report_effects
from charactertrain.stages.report.samples import sample_measures

NUM_TEXTS = 4
"""Prompts shown side by side, per trait."""


def as_json(runs: Sequence[FinishedRun]) -> Json:
    """The comparison's numbers: settings that differ, effects and gates, each by run."""
    return {
        "runs": [
            {
                "name": run.name,
                "directory": run.uri,
                "created_at": run.evaluation.created_at,
                "code_version": run.evaluation.code_version,
                "evaluation_fingerprint": run.evaluation.fingerprint,
                "wall_seconds": run.wall_seconds,
            }
            for run in runs
        ],
        "num_common_prompts": len(common_prompts(runs)),
        "settings": {row.key: row.values for row in differing_settings(runs)},
        "traits": {
            trait_id: _by_run({run.name: run.results["traits"].get(trait_id, {}) for run in runs})
            for trait_id in trait_ids(runs)
        },
        "overall": _by_run({run.name: run.results["overall"] for run in runs}),
        "gates": {
            name: {run.name: gate for run in runs for gate in run.gates if gate["name"] == name}
            for name in gate_names(runs)
        },
    }


def _by_run(parts: Mapping[str, Json]) -> Json:
    """The policy's effect by measure and run; a run that has not measured it is absent."""
    found: Json = {}
    for run, by_measure in parts.items():
        for measure, by_arm in by_measure.items():
            if POLICY in by_arm:
                found.setdefault(measure, {})[run] = by_arm[POLICY]
    return found


def trait_ids(runs: Sequence[FinishedRun]) -> list[str]:
    """Traits of any run, in the order of the first that has each."""
    return list(dict.fromkeys(trait_id for run in runs for trait_id in run.results["traits"]))


def gate_names(runs: Sequence[FinishedRun]) -> list[str]:
    """Gates of any run."""
    gates = (gate["name"] for run in runs for gate in run.gates)
    return list(dict.fromkeys(gates))


def differing_settings(runs: Sequence[FinishedRun]) -> tuple[SettingRow, ...]:
    """Settings in which not all runs agree, by name."""
    keys = sorted({key for run in runs for key in run.settings})
    rows = [
        SettingRow(key=key, values={run.name: run.settings.get(key, ABSENT) for run in runs})
        for key in keys
    ]
    return tuple(row for row in rows if len(set(row.values.values())) > 1)


def common_prompts(runs: Sequence[FinishedRun]) -> list[str]:
    """Held-out prompts that every run has answered, in the order of a hash of the text."""
    common = set.intersection(*(set(run.answers) for run in runs))
    return sorted(common, key=derive_seed)


def view(runs: Sequence[FinishedRun]) -> ComparisonView:
    """All that the page shows."""
    found = as_json(runs)
    prompts = common_prompts(runs)
    return ComparisonView(
        runs=tuple(
            RunRow(
                name=run.name,
                directory=run.uri,
                created=run.evaluation.created_at,
                code_version=run.evaluation.code_version,
                wall_seconds=run.wall_seconds,
                num_prompts=len(run.answers),
            )
            for run in runs
        ),
        num_common_prompts=len(prompts),
        settings=differing_settings(runs),
        traits={
            trait_id: _effects_by_measure(by_measure)
            for trait_id, by_measure in found["traits"].items()
        },
        overall={
            measure: report_effects.by_arm(by_run) for measure, by_run in found["overall"].items()
        },
        gates=tuple(
            GateRow(
                name=name,
                gates={run: report_effects.gate(values) for run, values in by_run.items()},
            )
            for name, by_run in found["gates"].items()
        ),
        texts=tuple(
            TraitTexts(
                trait_id=trait_id,
                samples=tuple(
                    _sample(prompt, runs)
                    for prompt in prompts
                    if runs[0].answers[prompt].trait_id == trait_id
                )[:NUM_TEXTS],
            )
            for trait_id in trait_ids(runs)
        ),
    )


def _effects_by_measure(by_measure: Json) -> dict[Measure, ByArm]:
    return {
        measure: report_effects.by_arm(by_measure[measure])
        for measure in MEASURE_LABELS
        if measure in by_measure
    }


def _sample(prompt: str, runs: Sequence[FinishedRun]) -> Sample:
    first = runs[0].answers[prompt]
    replies = {BASE: Reply(text=first.base.text, measures=sample_measures(first.base))}
    for run in runs:
        reply = run.answers[prompt].policy
        replies[run.name] = Reply(text=reply.text, measures=sample_measures(reply))
    return Sample(
        prompt=prompt,
        kind=first.kind,
        pick="random",
        contrast_rise=first.policy.contrast - first.base.contrast,
        replies=replies,
    )
