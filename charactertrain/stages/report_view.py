"""The report's view of a run, assembled from its artifacts: read and renamed, never judged."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from charactertrain.artifacts import Json, Manifest, read_rows
from charactertrain.config import PromptsSection, RankingsSection, RunConfig
from charactertrain.pipeline import Work
from charactertrain.records import NO_TRAIT, EvaluationSample, Prompt, Split, Trait
from charactertrain.report.data_view import (
    DataView,
    HistogramBin,
    PromptCount,
    RejectCount,
)
from charactertrain.report.reading import MEASURE_LABELS
from charactertrain.report.training_view import (
    Measure,
    PolicyStep,
    RankerCheck,
    TemplateCheck,
)
from charactertrain.report.view import (
    Effect,
    OverallEffects,
    ReportView,
    RunView,
    Sample,
    StageView,
    TraitView,
)
from charactertrain.seeds import derive_seed
from charactertrain.stages import report_data, report_preference, report_watch

MEASURES: tuple[Measure, ...] = tuple(MEASURE_LABELS)
NUM_SAMPLES = 8
"""Prompts shown side by side, per trait."""

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_NUM_STRENGTH_BINS = 10
_STAGES_WITHOUT_REJECTS = {"traits", "policy"}


def assemble(work: Work, config: RunConfig, run: RunView, results: Json) -> ReportView:
    """The page's view of all earlier artifacts, without verdicts; `results` is report.json."""
    manifests = {name: manifest for name, (_, manifest) in work.inputs.items()}
    prompts = read_rows(*work.inputs["prompts"], "prompts", Prompt)
    return ReportView(
        run=run,
        stages=tuple(_stage_view(name, manifest) for name, manifest in manifests.items()),
        verdicts=(),
        traits=_trait_views(work, prompts, results["traits"]),
        overall=OverallEffects(
            length=effect(results["length"]),
            distinct_2=effect(results["distinct_2"]),
            kl=effect(results["kl"]),
        ),
        interval_note=(
            "Intervals are of 95 %, over prompts as clusters: a bootstrap with "
            f"{manifests['evaluation'].summary['num_resamples']:,} resamples, and a jackknife for "
            "distinct bigrams."
        ),
        samples_note=(
            f"Up to {NUM_SAMPLES} prompts per trait, from each scenario family in turn and in the "
            "order of a hash of the prompt's id, with the first response of base and policy: no "
            "result bears on the choice."
        ),
        preference_model=report_preference.preference_model(manifests["preference_model"].summary),
        policy=_policy_steps(manifests["policy"].summary["history"]),
        watch=report_watch.watch(manifests["policy"].summary),
        template_checks=_template_checks(
            manifests["prompts"].summary["template_check"], config.prompts
        ),
        ranker_checks=_ranker_checks(manifests["rankings"].summary, config.rankings),
        data=DataView(
            prompts=_prompt_counts(prompts),
            rejects=tuple(
                RejectCount(stage=name, reason=reason, count=count)
                for name, manifest in manifests.items()
                for reason, count in manifest.rejects.items()
            ),
            label_strength=_label_strength(work),
            coverage=report_data.coverage(manifests["prompts"]),
            ranking=report_data.ranking(manifests["rankings"].summary),
        ),
    )


def effect(values: Json | None) -> Effect | None:
    """One entry of report.json; None where it was not measured."""
    if values is None:
        return None
    shown = {**values, "policy": values["arm"]}
    return Effect(**{field.name: shown[field.name] for field in fields(Effect)})


def _trait_views(work: Work, prompts: Sequence[Prompt], results: Json) -> tuple[TraitView, ...]:
    families = {prompt.prompt_id: prompt.family for prompt in prompts}
    first: dict[str, dict[str, EvaluationSample]] = {}
    for sample in read_rows(*work.inputs["evaluation"], "samples", EvaluationSample):
        first.setdefault(sample.prompt_id, {}).setdefault(sample.arm, sample)
    pairs = {
        prompt_id: (arms["base"], arms["policy"])
        for prompt_id, arms in first.items()
        if {"base", "policy"} <= arms.keys()
    }
    views = []
    for trait in read_rows(*work.inputs["traits"], "traits", Trait):
        measured = {
            measure: effect(results.get(trait.trait_id, {}).get(measure)) for measure in MEASURES
        }
        candidates = {
            prompt_id: families[prompt_id]
            for prompt_id, (base, _) in pairs.items()
            if base.trait_id == trait.trait_id
        }
        views.append(
            TraitView(
                trait_id=trait.trait_id,
                statement=trait.statement,
                detector=trait.detector,
                effects={measure: found for measure, found in measured.items() if found},
                samples=tuple(_sample(*pairs[prompt_id]) for prompt_id in pick(candidates)),
            )
        )
    return tuple(views)


def pick(families: Mapping[str, str]) -> list[str]:
    """Up to `NUM_SAMPLES` prompt ids, from each family in turn, in the order of a hash of the id.

    Args:
        families: Family of each prompt id. Nothing else bears on the choice.
    """
    seen: Counter[str] = Counter()
    turns = {}
    for prompt_id in sorted(families, key=derive_seed):
        turns[prompt_id] = seen[families[prompt_id]]
        seen[families[prompt_id]] += 1
    return sorted(turns, key=turns.__getitem__)[:NUM_SAMPLES]


def _sample(base: EvaluationSample, policy: EvaluationSample) -> Sample:
    return Sample(
        prompt=base.prompt,
        base_text=base.text,
        policy_text=policy.text,
        base_measures=_sample_measures(base),
        policy_measures=_sample_measures(policy),
    )


def _sample_measures(sample: EvaluationSample) -> dict[Measure, float]:
    detected: dict[Measure, float] = (
        {} if sample.detected is None else {"detector_rate": float(sample.detected)}
    )
    return {"contrast": sample.contrast, **detected, "reward": sample.reward}


def _policy_steps(history: Sequence[Json]) -> tuple[PolicyStep, ...]:
    names = [field.name for field in fields(PolicyStep)]
    # Keys are absent where they do not apply to a phase.
    rows: list[Json] = [{name: row.get(name) for name in names} for row in history]
    return tuple(PolicyStep(**row) for row in rows)


def _template_checks(shifts: Sequence[Json], settings: PromptsSection) -> tuple[TemplateCheck, ...]:
    checks = []
    for shift in shifts:
        rise = shift["contrast_shown"] - shift["contrast_not_shown"]
        # The stage goes by the contrast alone; the detector's rates are there to be looked at.
        judged: dict[Measure, bool | None] = {
            "contrast": rise >= settings.min_trait_shift,
            "detector_rate": None,
        }
        for measure, ok in judged.items():
            key = measure.removesuffix("_rate")
            if shift[f"{key}_shown"] is not None:
                checks.append(
                    TemplateCheck(
                        trait_id=shift["trait_id"],
                        measure=measure,
                        shown=shift[f"{key}_shown"],
                        not_shown=shift[f"{key}_not_shown"],
                        num_responses=shift["num_responses"],
                        ok=ok,
                    )
                )
    return tuple(checks)


def _ranker_checks(summary: Json, settings: RankingsSection) -> tuple[RankerCheck, ...]:
    return tuple(
        RankerCheck(
            ranker=quality["ranker"],
            accuracy=quality["accuracy"] if quality["num_pairs"] else None,
            ci_low=quality["ci_low"],
            ci_high=quality["ci_high"],
            num_pairs=quality["num_pairs"],
            is_chosen=quality["ranker"] == summary["ranker"],
            reason=_ranker_reason(quality, summary["ranker"], settings),
        )
        for quality in summary["ranker_check"]
    )


def _ranker_reason(quality: Json, chosen: str, settings: RankingsSection) -> str:
    if quality["failure"] and not quality["num_pairs"]:
        return f"gave no answer: {quality['failure']}"
    if settings.ranker != "auto":
        return f"the run asks for {settings.ranker}"
    if quality["ranker"] == "contrast":
        return "no judge is good enough" if chosen == "contrast" else "a judge is good enough"
    if quality["ranker"] == chosen:
        return "the first judge that is good enough"
    if quality["ci_low"] >= settings.min_judge_accuracy:
        return "another judge comes first"
    return f"auto wants an interval that begins at {settings.min_judge_accuracy} or above"


def _prompt_counts(prompts: Sequence[Prompt]) -> tuple[PromptCount, ...]:
    counts = Counter(
        (None if p.trait_id == NO_TRAIT else p.trait_id, p.family, p.kind, p.split) for p in prompts
    )
    return tuple(
        PromptCount(trait_id=trait_id, family=family, kind=kind, split=split, count=count)
        for wanted in _SPLITS
        for (trait_id, family, kind, split), count in counts.items()
        if split == wanted
    )


def _label_strength(work: Work) -> tuple[HistogramBin, ...]:
    directory, manifest = work.inputs["pairs"]
    probabilities = [
        value
        for entry in manifest.table("pairs")
        for value in directory.read_table(entry.name, ["probability"])["probability"].to_pylist()
    ]
    counts, edges = np.histogram(probabilities, bins=_NUM_STRENGTH_BINS, range=(0.5, 1.0))
    bins = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    return tuple(HistogramBin(low=low, high=high, count=count) for low, high, count in bins)


def _stage_view(name: str, manifest: Manifest) -> StageView:
    has_rejects = name not in _STAGES_WITHOUT_REJECTS
    return StageView(
        name=name,
        num_rows=manifest.rows.get("samples" if name == "evaluation" else name),
        size_note=_size_note(manifest),
        num_rejects=sum(manifest.rejects.values()) if has_rejects else None,
        wall_seconds=manifest.wall_seconds,
        state="ran",
        fingerprint=manifest.fingerprint[:12],
    )


def _size_note(manifest: Manifest) -> str | None:
    """Steps and size of a stage that trains."""
    summary = manifest.summary
    members = summary.get("training", {"policy": summary})
    if not all("history" in values for values in members.values()):
        return None
    num_mb = sum(entry.size_bytes for entry in manifest.files) / 1e6
    num_steps = sum(len(values["history"]) for values in members.values())
    of_models = f" of {len(members)} models" if len(members) > 1 else ""
    note = f"{num_steps} steps{of_models}, {num_mb:,.0f} MB"
    difference = summary.get("sync_difference")
    if difference is None:
        return note
    return f"{note}, sampler within {difference:.2g} nats of the trainer after every update"
