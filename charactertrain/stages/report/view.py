"""The report's view of a run, assembled from its artifacts: read and renamed, never judged."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np

from charactertrain.artifacts import Json, Manifest, read_rows
from charactertrain.config import PromptsSection, RankingsSection
from charactertrain.evaluation.gates import Thresholds
from charactertrain.pipeline import Work
from charactertrain.records import NO_TRAIT, Prompt, Split, Trait
from charactertrain.report.data_view import (
    DataView,
    HistogramBin,
    PromptCount,
    RejectCount,
)
from charactertrain.report.effects_view import Measure
from charactertrain.report.run_view import StageView
from charactertrain.report.settings import changed_settings
from charactertrain.report.training_view import PolicyStep, RankerCheck, TemplateCheck
from charactertrain.report.view import ReportView, TraitView
from charactertrain.stages.context import Context
from charactertrain.stages.report import data, effects, preference_model, run, samples, watch
from charactertrain.stages.report.samples import Answers

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_NUM_STRENGTH_BINS = 10
_STAGES_WITHOUT_REJECTS = {"traits", "policy"}


def assemble(work: Work, context: Context) -> ReportView:
    """The page's view of all earlier artifacts, without verdicts."""
    config = context.config
    manifests = {name: manifest for name, (_, manifest) in work.inputs.items()}
    directory, evaluation = work.inputs["evaluation"]
    results = json.loads(directory.read_bytes("report.json"))
    prompts = read_rows(*work.inputs["prompts"], "prompts", Prompt)
    families = {prompt.prompt_id: prompt.family for prompt in prompts}
    answers = samples.first_answers(work)
    return ReportView(
        run=run.provenance(work, config),
        stages=tuple(_stage_view(name, manifest) for name, manifest in manifests.items()),
        cost=run.cost(work, config, run.num_cores()),
        settings=None
        if context.defaults is None
        else changed_settings(config.model_dump(mode="json"), context.defaults),
        verdicts=(),
        traits=_trait_views(work, answers, families, results),
        arms=effects.arms(results, evaluation.summary.get("seen_prompts", {})),
        missing_arms=results.get("missing_arms", {}),
        judge_note=_judge_note(evaluation.summary, manifests["rankings"].summary),
        gates=effects.gates(results, Thresholds(**config.evaluation.gates.model_dump())),
        overall={name: effects.by_arm(found) for name, found in results["overall"].items()},
        kinds={kind: effects.by_measure(found) for kind, found in results.get("kinds", {}).items()},
        over_seeds=effects.over_seeds(results),
        attribution=effects.attribution(results),
        probes=effects.probes(results),
        revealed_preferences=effects.revealed_preferences(results),
        interval_note=(
            "Intervals are of 95 %, over prompts as clusters: a bootstrap with "
            f"{evaluation.summary['num_resamples']:,} resamples, and a jackknife for what is "
            "of all replies together, such as distinct bigrams."
        ),
        samples_note=samples.NOTE,
        preference_model=preference_model.preference_model(manifests["preference_model"].summary),
        policy=_policy_steps(manifests["policy"].summary["history"]),
        watch=watch.watch(manifests["policy"].summary),
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
            coverage=data.coverage(manifests["prompts"]),
            ranking=data.ranking(manifests["rankings"].summary),
        ),
    )


def _trait_views(
    work: Work, answers: Mapping[str, Answers], families: Mapping[str, str], results: Json
) -> tuple[TraitView, ...]:
    return tuple(
        TraitView(
            trait_id=trait.trait_id,
            statement=trait.statement,
            detector=trait.detector,
            effects=effects.by_measure(results["traits"].get(trait.trait_id, {})),
            against=effects.against(results, trait.trait_id),
            samples=samples.samples(answers, families, trait.trait_id),
        )
        for trait in read_rows(*work.inputs["traits"], "traits", Trait)
    )


def _judge_note(evaluation: Json, rankings: Json) -> str | None:
    judge = evaluation.get("judge")
    if judge is None:
        return None
    note = f"Judge: {judge}; beside each number, how often it left a comparison open."
    if judge == rankings["judge"] and rankings["ranker"] != "contrast":
        note += (
            " The same model ranked the responses that the preference model learnt from: what it "
            "favours for reasons of its own raises the win rate too."
        )
    return note


def _policy_steps(history: Sequence[Json]) -> tuple[PolicyStep, ...]:
    names = [field.name for field in fields(PolicyStep)]
    # Keys are absent where they do not apply to a phase.
    rows: list[Json] = [{name: row.get(name) for name in names} for row in history]
    return tuple(PolicyStep(**row) for row in rows)


def _template_checks(
    shifts: Sequence[Json] | None, settings: PromptsSection
) -> tuple[TemplateCheck, ...] | None:
    if shifts is None:
        return None
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


def _ranker_checks(summary: Json, settings: RankingsSection) -> tuple[RankerCheck, ...] | None:
    if summary["ranker_check"] is None:
        return None
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
