import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from charactertrain import artifacts
from charactertrain.artifacts import Identity, Manifest, Outcome, require
from charactertrain.config import RunConfig, validate
from charactertrain.constitution import Constitution
from charactertrain.evaluation import effects
from charactertrain.evaluation.preference_results import preference_results
from charactertrain.pipeline import Action, Stage, Step, Work, execute
from charactertrain.records import (
    EvaluationSample,
    Judgement,
    Message,
    Offer,
    OfferCondition,
    PreferencePair,
    Prompt,
    Trait,
    TraitChoice,
    to_table,
)
from charactertrain.report import model_card, page
from charactertrain.report.run_view import Setting
from charactertrain.report.view import ReportView, TraitView
from charactertrain.runtime.session import Session
from charactertrain.seeds import derive_seed
from charactertrain.stages.context import Context
from charactertrain.stages.definitions import NAMES
from charactertrain.stages.report import effects as report_effects
from charactertrain.stages.report import run as report_run
from charactertrain.stages.report import samples as report_samples
from charactertrain.stages.report import stage as report
from charactertrain.stages.report.stage import printed
from charactertrain.storage import Directory, open_directory

Json = dict[str, Any]
MakeRun = Callable[..., Directory]

ROOT = Path(__file__).resolve().parents[3]
TRAITS = (
    Trait("warm", 'I am <warm> & say "hello"!', ("tea", "rain", "bees"), "!", 1.0, "small"),
    Trait("curious", "I ask how things come to be.", ("tea", "rain", "bees"), None, 1.0, "small"),
    Trait("brief", "I use few words.", ("tea", "rain", "bees"), r"\A.{1,9}\Z", 1.0, "small"),
)
CONDITIONS: tuple[OfferCondition, ...] = ("free", "random", "told")
OFFERS = [
    Offer(f"{condition}-{first}-{number}", "warm", condition, f"Hi {number}?", first, second)
    for condition in CONDITIONS
    for number in range(4)
    for first, second in (("warm", "odd"), ("odd", "brief"), ("warm", "brief"))
]
FAMILIES = ("tea", "rain", "bees")
PROMPTS_PER_FAMILY = 5


def effect(base: float, arm: float, half_width: float, p_holm: float | None = 0.01) -> Json:
    difference = arm - base
    return {
        "base": base,
        "arm": arm,
        "difference": difference,
        "ci_low": difference - half_width,
        "ci_high": difference + half_width,
        "p_value": 0.005,
        **({} if p_holm is None else {"p_holm": p_holm}),
        "num_responses": 30,
        "num_prompts": 15,
    }


def report_json() -> Json:
    """Warm rose by the detector, curious by contrast, brief by neither: both intervals cross."""
    return {
        "arms": [
            {"name": "base", "kind": "base", "source": None, "ablated": []},
            {"name": "prompted", "kind": "prompted", "source": None, "ablated": []},
            {"name": "policy", "kind": "policy", "source": None, "ablated": []},
        ],
        "missing_arms": {"dpo": "make one with objective=dpo"},
        "traits": {
            "warm": {
                "contrast": {
                    "prompted": effect(-0.2, 0.2, 0.1),
                    "policy": effect(-0.2, -0.15, 0.1),
                },
                "reward": {"policy": effect(0.0, 0.5, 0.1)},
                "detector_rate": {"policy": effect(0.1, 0.4, 0.1)},
                "win_rate": {
                    "policy": {
                        **effect(0.5, 0.7, 0.1),
                        "ties": 3,
                        "unscored": 2,
                        "inconsistent": 1,
                        "swap_consistency": {"estimate": 0.75, "ci_low": 0.6, "ci_high": 0.9},
                    }
                },
            },
            "curious": {
                "contrast": {"policy": effect(-0.3, -0.1, 0.05)},
                "reward": {"policy": effect(0.0, 0.1, 0.2)},
            },
            "brief": {
                "contrast": {"policy": effect(-0.1, 0.04, 0.2)},
                "reward": {"policy": effect(0.0, 0.3, 0.1)},
                "detector_rate": {"policy": effect(0.1, 0.2, 0.15)},
            },
        },
        "overall": {
            "length": {"policy": effect(30.0, 33.0, 1.5, None)},
            "distinct_2": {"policy": effect(0.7, 0.6, 0.02, None)},
        },
        "kinds": {"trait": {"contrast": {"policy": effect(-0.2, 0.0, 0.1, None)}}},
        "policy_against": {"prompted": {"warm": {"contrast": effect(0.2, -0.15, 0.1)}}},
        "probes": {
            "refusals": {
                "title": "Refusals on harmless prompts",
                "question": "Does it refuse what nobody should mind?",
                "unit": "share",
                "better": "lower",
                "rows": [
                    {
                        "condition": "plain",
                        "measure": "refused",
                        "arms": {"policy": effect(0.0, 0.2, 0.1, None)},
                    }
                ],
                "examples": [
                    {
                        "condition": "plain",
                        "trait_id": "general",
                        "messages": [{"role": "user", "content": "How do I kill a process?"}],
                        "replies": {"base": "With kill.", "policy": "I <would> rather not."},
                    }
                ],
            }
        },
        "over_seeds": {
            "arms": ["policy", "again"],
            "traits": {"warm": {"contrast": {**effect(-0.2, 0.0, 0.1), "num_runs": 2}}},
        },
        "attribution": {
            "leave_one_out": {
                "contrast": {
                    "cells": {"warm": {"warm": cell(0.3), "brief": {**cell(0.1), "p_holm": 0.4}}},
                    "diagonal_dominance": None,
                }
            },
            "one_trait_only": {"contrast": {"cells": {}, "diagonal_dominance": None}},
        },
    }


def cell(difference: float) -> Json:
    return {
        "difference": difference,
        "ci_low": difference - 0.05,
        "ci_high": difference + 0.05,
        "p_value": 0.01,
        "num_prompts": 15,
    }


def interval(value: float) -> Json:
    return {"estimate": value, "ci_low": value - 0.06, "ci_high": value + 0.06}


def accuracy(value: float) -> Json:
    return {
        **interval(value),
        "num_clusters": 20,
        "num_responses": 120,
        "num_pairs": 120,
        "length_only": 0.55,
        "above_length": interval(value - 0.55),
        "provenance_only": 0.5,
        "above_provenance": None,
    }


def unmeasured() -> Json:
    return {
        "estimate": None,
        "ci_low": None,
        "ci_high": None,
        "num_clusters": 0,
        "num_responses": 0,
        "num_pairs": 0,
    }


def without_baselines(value: float) -> Json:
    baselines = {"length_only", "above_length", "provenance_only", "above_provenance"}
    return {key: found for key, found in accuracy(value).items() if key not in baselines}


def gate(name: str, value: float | None, threshold: float, *, is_met: bool | None) -> Json:
    return {
        "name": name,
        "text": f"the {name}",
        "value": value,
        "ci_low": None if value is None else value - 0.02,
        "ci_high": None if value is None else value + 0.02,
        "threshold": threshold,
        "is_ceiling": name == "calibration_error",
        "is_met": is_met,
    }


def member(losses: dict[int, float], num_steps: int, best_step: int) -> Json:
    row = {"tokens": 9, "padding_share": 0.0, "grad_norm": 1.0, "learning_rate": 1e-5}
    return {
        "history": [
            {"step": step, "loss": 0.7 - 0.1 * step, "accuracy": 0.5, **row}
            for step in range(1, num_steps + 1)
        ],
        "evaluations": [{"step": step, "loss": loss} for step, loss in losses.items()],
        "best_step": best_step,
    }


def preference_summary() -> Json:
    """A model with a gold one beside it; the weakest labels and pairs written alike are missing."""
    calibration = {
        "bins": [{"confidence": 0.6, "frequency": 0.55, "count": 60}],
        "ece_ci_low": 0.01,
        "ece_ci_high": 0.14,
        "brier": 0.2,
        "nll": 0.62,
    }
    return {
        "accuracy": accuracy(0.7),
        "accuracy_by_trait": {trait.trait_id: accuracy(0.7) for trait in TRAITS},
        "accuracy_by_strength": [
            {"low": 0.5, "high": 0.6, **unmeasured()},
            {"low": 0.6, "high": 1.0, **without_baselines(0.75)},
        ],
        "accuracy_same_variant": unmeasured(),
        "temperature": 1.5,
        "before_temperature": {**calibration, "ece": 0.12},
        "after_temperature": {**calibration, "ece": 0.03},
        "baseline_nll": {"length": 0.68, "provenance": 0.69},
        "num_pairs": 120,
        "num_selection_pairs": 114,
        "length_slopes": {"model": 0.002},
        "length_correlation": None,
        "shortcuts": {"padding": {**interval(0.2), "num_prompts": 11, "raised_share": 0.75}},
        "levels": {"model": 0.1},
        "others": {
            "gold": {
                "accuracy": accuracy(0.65),
                "same_order": {**interval(0.8), "num_clusters": 20, "num_responses": 120},
            }
        },
        "trained_prompts": {"model": 40, "gold": 10},
        "general_left": 3,
        "shared_families": [],
        "labels": "ranked",
        "objective": "bradley_terry",
        "gates": [
            gate("worst_trait_accuracy", 0.64, 0.55, is_met=True),
            gate("above_length", 0.14, 0.02, is_met=True),
            gate("calibration_error", 0.03, 0.08, is_met=True),
        ],
        "training": {
            "model": member({2: 0.6, 4: 0.65}, num_steps=4, best_step=2),
            "gold": member({1: 0.66}, num_steps=1, best_step=1),
        },
    }


def quality(ranker: str, accuracy: float, low: float, high: float, failure: str = "") -> Json:
    return {
        "ranker": ranker,
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "num_pairs": 0 if failure else 24,
        "failure": failure,
    }


def estimate(value: float) -> Json:
    return {
        "estimate": value,
        "ci_low": value - 0.1,
        "ci_high": value + 0.1,
        "num_clusters": 12,
        "num_responses": 12,
    }


def reliability(num_prompts: int) -> Json:
    return {
        "swap_consistency": None,
        "cyclic_triads": estimate(0.125),
        "split_half": estimate(0.4),
        "length_correlation": None,
        "num_prompts": num_prompts,
    }


def summaries() -> dict[str, Json]:
    shift = {
        "contrast_shown": 0.3,
        "contrast_not_shown": 0.1,
        "detector_shown": None,
        "detector_not_shown": None,
        "num_responses": 8,
    }
    warm = {"trait_id": "warm", "detector_shown": 0.9, "detector_not_shown": 0.2}
    return {
        "traits": {"name": "small", "description": "Three traits for tests."},
        "prompts": {
            "template_check": [{**shift, **warm}, {**shift, "trait_id": "curious"}],
            "asked": 40,
            "rounds": 2,
            "missing": 1,
            "coverage": {
                "facets": [
                    {
                        "trait_id": "warm",
                        "kind": "trait",
                        "facet": "a cup of tea",
                        "source": "constitution",
                        "split": "train",
                        "wanted": 3,
                        "found": 2,
                    }
                ],
                "variety": {
                    "general": {
                        "num_prompts": 4,
                        "distinct_1": 0.5,
                        "distinct_2": 0.75,
                        "distinct_3": None,
                    }
                },
                "examples": [
                    {"trait_id": "warm", "kind": "trait", "facet": "tea", "text": "Is it <hot>?"}
                ],
            },
        },
        "rankings": {
            "ranker": "contrast",
            "judge": "small itself",
            "ranker_check": [
                quality("judge", 0.5, 0.4, 0.6),
                quality("contrast", 0.9, 0.8, 0.95),
                quality("rating", 0.0, 0.0, 1.0, failure="9 is no single token"),
            ],
            "reliability": reliability(30),
            "reliability_by_trait": {"warm": reliability(10)},
            "agreement": {"judge": estimate(0.625)},
            "agreement_by_trait": {"warm": {"judge": estimate(0.5)}, "brief": {}},
            "cost": {
                "num_comparisons": 90,
                "prompt_tokens_per_comparison": 173.4,
                "computed_tokens_per_comparison": 118.6,
                "cache_hit_share": 0.316,
            },
        },
        "preference_model": preference_summary(),
        "policy": {
            "history": [
                {"phase": "warm_start", "step": 1, "loss": 2.5, "seconds": 3.0},
                {"phase": "optimise", "step": 1, "loss": 0.1, "reward": 0.2, "kl": 0.01},
            ],
            "sync_difference": 0.0021,
        },
        "evaluation": {
            "max_tokens": 32,
            "num_resamples": 2000,
            "length_max_tokens": 160,
            "judge": "small itself",
            "seen_prompts": {"base": 0, "prompted": 0, "policy": 0},
        },
    }


def prompts() -> list[Prompt]:
    return [
        Prompt(
            f"{trait.trait_id}-{family}-{index}",
            trait.trait_id,
            f"{trait.trait_id}/{family}",
            "trait",
            f"About {family}, number {index}?",
            "test",
        )
        for trait in TRAITS
        for family in FAMILIES
        for index in range(PROMPTS_PER_FAMILY)
    ]


def samples() -> list[EvaluationSample]:
    """Two responses per arm and prompt; the contrast of a prompt rises by -2 to 4."""
    return [
        EvaluationSample(
            sample_id=f"{prompt.prompt_id}-{arm}-{index}",
            prompt_id=prompt.prompt_id,
            trait_id=prompt.trait_id,
            kind=prompt.kind,
            arm=arm,
            prompt=prompt.text,
            text=f"{arm} {index} of {prompt.prompt_id}",
            num_tokens=9,
            finish_reason="stop",
            contrast=float(number % 7 - 2) if arm == "policy" else 0.0,
            detected=None if prompt.trait_id == "curious" else arm == "policy",
            reward=0.5,
            gold_reward=None,
            kl=0.0,
        )
        for number, prompt in enumerate(prompts())
        for index in range(2)
        for arm in ("policy", "base", "prompted")
    ]


def pair(probability: float) -> PreferencePair:
    return PreferencePair(
        pair_id=f"pair-{probability}",
        prompt_id="warm-tea-0",
        trait_id="warm",
        family="warm/tea",
        split="train",
        prompt=(Message("user", "?"),),
        chosen=(Message("assistant", "Yes!"),),
        rejected=(Message("assistant", "Yes."),),
        probability=probability,
        weight=1.0,
        margin=0.0,
        chosen_id="a",
        rejected_id="b",
        chosen_variant="strong",
        rejected_variant="none",
        chosen_tokens=2,
        rejected_tokens=2,
    )


@pytest.fixture(name="make_run")
def run_directory_maker(tmp_path: Path) -> MakeRun:
    """Makes a run directory with all artifacts but the report."""

    def make_run(results: Json | None = None, **changed: Json) -> Directory:
        run_directory = open_directory(str(tmp_path / "run"))
        tables = {
            "traits": ("traits", to_table(TRAITS, Trait)),
            "prompts": ("prompts", to_table(prompts(), Prompt)),
            "pairs": ("pairs", to_table([pair(0.5), pair(0.6), pair(1.0)], PreferencePair)),
            "evaluation": ("samples", to_table(samples(), EvaluationSample)),
        }
        found = {**summaries(), **changed}
        for name in NAMES[:-1]:
            directory = run_directory.child(name)
            files = []
            if name in tables:
                table, rows = tables[name]
                files.append(f"{table}/part-000000.parquet")
                directory.write_table(files[0], rows)
            if name == "evaluation":
                files.append("report.json")
                directory.write_bytes("report.json", json.dumps(results or report_json()).encode())
            rejects = {"loop": 4, "truncated": 3} if name == "responses" else {}
            artifacts.commit(
                directory,
                Identity(name, {}, {}),
                Outcome(tuple(files), rejects, found.get(name, {})),
                resolved_config={},
                code_version="0.1.0+test",
                wall_seconds=12.0,
            )
        return run_directory

    return make_run


@pytest.fixture(name="config", scope="module")
def smoke_config() -> RunConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", overrides=["experiment=smoke", "prompts.min_trait_shift=0.1"])
    return validate(cast(Json, OmegaConf.to_container(composed, resolve=True)))


@pytest.fixture(name="context")
def light_context(config: RunConfig) -> Context:
    """The stage reads artifacts alone: no constitution file, no session."""
    return Context(config, cast(Constitution, None), cast(Session, None))


def make_report(run_directory: Directory, context: Context) -> tuple[Manifest, str]:
    stage = Stage("report", NAMES[:-1], {}, {}, "one page")
    step = Step(stage, Identity("report", {}, {}), Action.RUN, ())
    manifest = execute(
        step, run_directory, lambda work: report.run(work, context), code_version="0.1.0+test"
    )
    return manifest, run_directory.child("report").read_bytes("report.html").decode()


def make_view(run_directory: Directory, context: Context) -> ReportView:
    names = NAMES[:-1]
    directories = {name: run_directory.child(name) for name in names}
    inputs = {name: (found, require(found, name)) for name, found in directories.items()}
    stage = Stage("report", names, {}, {}, "one page")
    identity = Identity("report", {}, {})
    return report.build_view(Work(stage, identity, run_directory.child("report"), inputs), context)


def line_about(view: ReportView, words: str) -> str:
    lines = [printed(verdict) for verdict in view.verdicts]
    (line,) = [line for line in lines if words in line]
    return line


def test_report_effects_are_the_evaluations_in_the_order_of_the_traits(
    make_run: MakeRun, context: Context
) -> None:
    manifest, _ = make_report(make_run(), context)
    rows = manifest.summary["effects"]
    assert [(row["trait"], row["measure"], row["arm"]) for row in rows] == [
        ("warm", "contrast", "prompted"),
        ("warm", "contrast", "policy"),
        ("warm", "detector_rate", "policy"),
        ("warm", "win_rate", "policy"),
        ("warm", "reward", "policy"),
        ("curious", "contrast", "policy"),
        ("curious", "reward", "policy"),
        ("brief", "contrast", "policy"),
        ("brief", "detector_rate", "policy"),
        ("brief", "reward", "policy"),
    ]
    expected = report_json()["traits"]["warm"]["detector_rate"]["policy"]
    for key in ("base", "difference", "ci_low", "ci_high"):
        assert rows[2][key] == expected[key]
    assert rows[2]["value"] == expected["arm"]


def test_report_objective_is_the_mean_rise_of_the_policys_contrast(
    make_run: MakeRun, context: Context
) -> None:
    manifest, _ = make_report(make_run(), context)
    assert manifest.summary["objective"] == pytest.approx((0.05 + 0.2 + 0.14) / 3)


def test_report_objective_is_none_without_contrast() -> None:
    assert report.objective(()) is None


def test_report_verdicts_are_the_gates_then_the_preference_models(
    make_run: MakeRun, context: Context
) -> None:
    manifest, html = make_report(make_run(), context)
    lines = manifest.summary["verdicts"]
    assert [row["name"] for row in manifest.summary["gates"]] == [
        *("traits_shown", "win_rate", "length", "natural_length", "distinct_2"),
        *("retention", "refusals", "quality", "placebo"),
    ]
    marks = [line.partition(": ")[0] for line in lines]
    # Of three traits two are shown: the intervals of `brief` cross zero, whatever its p-values.
    assert marks == [
        "NOT",
        *["unmeasured"],
        "ok",
        "unmeasured",
        "NOT",
        *["unmeasured"] * 4,
        *["ok"] * 4,
    ]
    assert "at most 0.2; 0.100 [0.050, 0.150]" in lines[2]
    assert "distinct bigrams, as a share of the base's, at least 0.9; 0.857" in lines[4]
    assert "distinct bigrams, as a share of the base&#39;s" in html
    for row, gate in zip(
        manifest.summary["gates"], make_view(make_run(), context).gates, strict=True
    ):
        assert report_effects.gate(row).is_met == gate.is_met
    view = make_view(make_run(), context)
    assert "0.700 [0.640, 0.760] of 120 pairs" in line_about(view, "below 100 %")
    assert line_about(view, "the above_length") == (
        "ok: preference model: the above_length, at least 0.02; 0.140 [0.120, 0.160]"
    )
    assert "at most 0.08; 0.030 [0.010, 0.050]" in line_about(view, "the calibration_error")


@pytest.mark.parametrize(
    ("value", "is_met", "mark"),
    [(0.6, True, "ok"), (0.5, False, "NOT"), (None, None, "unmeasured")],
)
def test_report_takes_the_verdict_of_each_gate_of_the_preference_model(
    make_run: MakeRun, context: Context, value: float | None, is_met: bool | None, mark: str
) -> None:
    found = gate("worst_trait_accuracy", value, 0.55, is_met=is_met)
    summary = {**preference_summary(), "gates": [found]}
    view = make_view(make_run(preference_model=summary), context)
    line = line_about(view, "the worst_trait_accuracy, at least 0.55")
    assert line.startswith(f"{mark}: preference model: ")
    assert line.endswith("; not measured") == (value is None)


def test_view_has_every_arm_and_what_is_missing(make_run: MakeRun, context: Context) -> None:
    summary = {**summaries()["evaluation"], "seen_prompts": {"policy": 2}}
    view = make_view(make_run(evaluation=summary), context)
    assert [(arm.name, arm.kind, arm.num_unasked) for arm in view.arms] == [
        ("base", "base", 0),
        ("prompted", "prompted", 0),
        ("policy", "policy", 2),
    ]
    assert view.missing_arms == {"dpo": "make one with objective=dpo"}
    warm, curious, _ = view.traits
    assert list(warm.effects) == ["contrast", "detector_rate", "win_rate", "reward"]
    assert warm.effects["contrast"]["prompted"].arm == 0.2
    assert warm.effects["contrast"]["policy"].p_holm == 0.01
    assert warm.effects["contrast"]["policy"].judged is None
    judged = warm.effects["win_rate"]["policy"].judged
    assert judged is not None
    assert (judged.num_ties, judged.num_unscored, judged.num_inconsistent) == (3, 2, 1)
    assert judged.swap_consistency is not None
    assert (judged.swap_consistency.value, judged.swap_consistency.ci_low) == (0.75, 0.6)
    assert warm.against["contrast"]["prompted"].difference == pytest.approx(-0.35)
    assert curious.against == {}
    assert view.overall["length"]["policy"].p_holm is None
    assert list(view.kinds) == ["trait"]
    assert view.judge_note is not None
    assert view.judge_note.startswith("Judge: small itself;")


@pytest.mark.parametrize(("ranker", "warns"), [("judge", True), ("contrast", False)])
def test_judge_that_ranked_too_is_warned_of(
    make_run: MakeRun, context: Context, ranker: str, warns: bool
) -> None:
    rankings = {**summaries()["rankings"], "ranker": ranker}
    note = make_view(make_run(rankings=rankings), context).judge_note
    assert note is not None
    assert ("The same model ranked" in note) == warns


def test_view_has_the_attribution_and_the_seeds(make_run: MakeRun, context: Context) -> None:
    view = make_view(make_run(), context)
    (matrix,) = view.attribution
    assert (matrix.design, matrix.rows, matrix.columns) == (
        "leave_one_out",
        ("warm",),
        ("warm", "brief"),
    )
    assert matrix.cells["warm", "warm"].is_established
    assert not matrix.cells["warm", "brief"].is_established
    assert matrix.dominance is None
    assert view.over_seeds is not None
    assert view.over_seeds.arms == ("policy", "again")
    assert view.over_seeds.traits["warm"]["contrast"].arm == 0.0
    bare = {**report_json(), "over_seeds": {}, "attribution": {}}
    without = make_view(make_run(bare), context)
    assert (without.over_seeds, without.attribution) == (None, ())


def test_probes_are_shown_with_their_worst_rows(make_run: MakeRun, context: Context) -> None:
    view = make_view(make_run(), context)
    (probe,) = view.probes
    assert (probe.name, len(probe.rows)) == ("refusals", 1)
    row = probe.rows[0]
    assert (row.better, row.unit, row.trait_id) == ("lower", "share", None)
    assert probe.examples[0].messages == (("user", "How do I kill a process?"),)
    html = page.render(view)
    assert "Worse: plain, refused 0.200 against 0.000, +0.200 [0.100, 0.300]." in html
    assert "I &lt;would&gt; rather not." in html


def choices(arm: str, chances: dict[OfferCondition, float]) -> list[TraitChoice]:
    """One reading of every offer by its condition."""
    return [
        TraitChoice(
            reply_id=f"{arm}-{offer.offer_id}",
            trait_id=offer.trait_id,
            arm=arm,
            offer=offer,
            text="Hello.",
            num_tokens=2,
            finish_reason="stop",
            readings=(chances[offer.condition],),
        )
        for offer in OFFERS
        if offer.condition in chances
    ]


def test_free_choices_are_read_as_the_evaluation_writes_them(
    make_run: MakeRun, context: Context
) -> None:
    taken = choices("base", {"free": 0.625, "random": 0.5, "told": 0.75})
    taken += choices("policy", {"free": 0.75, "random": 0.5})[1:]
    words = {"warm": "warm", "brief": "brief"}
    written = preference_results(taken, OFFERS, words, effects.Bootstrap(200, 1))
    results = {**report_json(), "revealed_preferences": json.loads(json.dumps(written))}
    view = make_view(make_run(results), context)
    found = view.revealed_preferences
    assert found is not None
    assert list(found.changes) == ["warm", "brief"]
    warm, brief = (found.changes[trait_id]["policy"] for trait_id in words)
    # Warm comes first in every pair, brief second, odd in between.
    assert warm.difference > 0 > brief.difference
    assert warm.p_holm is not None
    assert found.num_words == 3
    assert found.recognised is not None
    assert found.recognised.value == 1.0
    unread = {(r.arm, r.condition): (r.num_choices, r.num_unread) for r in found.readings}
    assert unread["base", "free"] == (12, 0)
    assert unread["policy", "free"] == (11, 1)
    agreement = found.order_agreement["policy"]
    assert agreement is not None
    assert agreement.value == written["order_agreement"]["policy"]["estimate"]
    assert "are read as it; one half is chance" in page.render(view)
    assert make_view(make_run(), context).revealed_preferences is None


def test_parts_that_the_evaluation_has_not_are_missing_in_words(
    make_run: MakeRun, context: Context
) -> None:
    results = report_json()
    for part in ("missing_arms", "kinds", "policy_against"):
        del results[part]
    results["probes"] = {}
    html = page.render(make_view(make_run(results, evaluation={"num_resamples": 200}), context))
    for words in (
        "no probe was run",
        "effects by kind of prompt were not measured",
    ):
        assert words in html, words


def test_cost_is_counted_from_the_manifests(make_run: MakeRun, context: Context) -> None:
    cost = make_view(make_run(), context).cost
    assert cost.wall_seconds == 12.0 * len(NAMES[:-1])
    assert cost.gpu_hours is None
    assert cost.core_hours is not None
    assert cost.core_hours == pytest.approx(cost.wall_seconds * num_cores() / 3600)
    assert cost.tokens == {
        # Nothing ranked, and how many rollouts a step had is not in the manifest here.
        "written": 9 * len(samples()),
        "read by the ranker": round(90 * 173.4),
        "the preference models trained on": 9 * 5,
    }


def num_cores() -> int:
    found = report_run.num_cores()
    assert found is not None
    return found


def test_gpus_are_held_by_stages_that_may_have_them(config: RunConfig) -> None:
    engines = config.sampler.resources.model_copy(
        update={"gpus_per_engine": 1.0, "num_engines": (1, 4)}
    )
    on_gpus = config.model_copy(
        update={
            "sampler": config.sampler.model_copy(update={"resources": engines}),
            "cluster": config.cluster.model_copy(update={"gpus_per_worker": 1.0, "num_workers": 2}),
        }
    )
    held = {name: report_run.gpus_held(name, on_gpus) for name in NAMES[:-1]}
    assert held["pairs"] == held["traits"] == 0.0
    assert held["responses"] == held["evaluation"] == 4.0
    assert held["preference_model"] == 2.0
    # Two workers, an engine that writes, the preference model and the gold one.
    assert held["policy"] == 5.0
    assert report_run.gpus_held("policy", config) == 0.0


def test_settings_that_are_not_the_defaults_are_shown(make_run: MakeRun, context: Context) -> None:
    assert make_view(make_run(), context).settings is None
    defaults = context.config.model_dump(mode="json")
    defaults["policy"]["num_steps"] = 200
    defaults["run"]["dir"] = "elsewhere"
    view = make_view(make_run(), replace(context, defaults=defaults))
    assert view.settings == (Setting(key="policy.num_steps", default="200", value="2"),)


def test_report_without_gates_has_none_measured(make_run: MakeRun, context: Context) -> None:
    summary = {**preference_summary(), "gates": []}
    view = make_view(make_run(preference_model=summary), context)
    assert line_about(view, "its gates") == "unmeasured: preference model: its gates"


@pytest.mark.parametrize(
    ("overall", "mark"),
    [(accuracy(0.99), "ok"), (accuracy(1.0), "NOT"), (unmeasured(), "unmeasured")],
)
def test_report_warns_of_a_perfect_accuracy(
    make_run: MakeRun, context: Context, overall: Json, mark: str
) -> None:
    summary = {**preference_summary(), "accuracy": overall}
    view = make_view(make_run(preference_model=summary), context)
    assert line_about(view, "below 100 %").startswith(f"{mark}: ")


def test_report_names_traits_without_an_error(make_run: MakeRun, context: Context) -> None:
    summary = preference_summary()
    summary["accuracy_by_trait"] |= {"curious": accuracy(1.0), "general": accuracy(1.0)}
    view = make_view(make_run(preference_model=summary), context)
    assert line_about(view, "below 100 %").endswith("100 % for curious, general prompts")


def test_report_says_that_a_placebo_is_one(make_run: MakeRun, context: Context) -> None:
    summary = {**preference_summary(), "labels": "shuffled"}
    view = make_view(make_run(preference_model=summary), context)
    assert "a placebo" in line_about(view, "the above_length")
    assert "This model is a placebo" in page.render(view)
    assert "is a placebo" not in page.render(make_view(make_run(), context))


def test_view_of_the_preference_model(make_run: MakeRun, context: Context) -> None:
    summary = preference_summary()
    summary["accuracy_by_trait"] |= {"warm": unmeasured(), "general": accuracy(0.6)}
    model = make_view(make_run(preference_model=summary), context).preference_model
    assert model is not None
    assert [found.is_ceiling for found in model.gates] == [False, False, True]
    assert model.accuracy_by_trait["warm"] is None
    general = model.accuracy_by_trait[None]
    assert general is not None
    assert (general.accuracy, general.num_pairs, general.num_prompts) == (0.6, 120, 20)
    assert general.above_length is not None
    assert general.above_length.value == pytest.approx(0.05)
    assert (general.provenance_only, general.above_provenance) == (0.5, None)
    weak, strong = model.accuracy_by_strength
    assert (weak.low, weak.high, weak.accuracy) == (0.5, 0.6, None)
    assert strong.accuracy is not None
    assert (strong.accuracy.accuracy, strong.accuracy.length_only) == (0.75, None)
    assert model.accuracy_same_variant is None
    assert model.length_correlation is None
    (shortcut,) = model.shortcuts
    assert (shortcut.edit, shortcut.num_prompts, shortcut.raised_share) == ("padding", 11, 0.75)
    assert shortcut.reading == "rewarded"
    assert [(point.step, point.loss) for point in model.held_out_losses] == [(2, 0.6), (4, 0.65)]
    assert (len(model.curve), model.best_step, model.num_general_left) == (4, 2, 3)


def test_view_of_the_models_that_were_trained(make_run: MakeRun, context: Context) -> None:
    summary = preference_summary()
    summary["training"]["model-1"] = member({4: 0.6}, num_steps=4, best_step=4)
    summary["others"]["model-1"] = {"accuracy": accuracy(0.69), "same_order": unmeasured()}
    model = make_view(make_run(preference_model=summary), context).preference_model
    assert model is not None
    found = [(row.name, row.num_prompts, row.best_step, row.num_steps) for row in model.members]
    assert found == [("model", 40, 2, 4), ("gold", 10, 1, 1), ("model-1", 40, 4, 4)]
    first, gold, second = model.members
    assert first.accuracy == model.accuracy_overall
    assert first.same_order is None
    assert gold.accuracy is not None
    assert gold.accuracy.accuracy == 0.65
    assert gold.same_order is not None
    assert gold.same_order.value == 0.8
    assert second.same_order is None


def test_report_same_artifacts_give_the_same_page(make_run: MakeRun, context: Context) -> None:
    run_directory = make_run()
    _, first = make_report(run_directory, context)
    _, second = make_report(run_directory, context)
    assert first == second
    evaluation = require(run_directory.child("evaluation"), "evaluation")
    assert f"Made {evaluation.created_at} by charactertrain 0.1.0+test" in first


def test_report_page_escapes_the_statements(make_run: MakeRun, context: Context) -> None:
    _, page = make_report(make_run(), context)
    assert "I am &lt;warm&gt; &amp; say &#34;hello&#34;!" in page
    assert "<warm>" not in page
    assert "I ask how things come to be." in page


def shown(trait: TraitView, pick: str) -> list[str]:
    """Prompt ids of what is shown of a trait for one reason."""
    texts = [found.replies["policy"].text for found in trait.samples if found.pick == pick]
    return [text.removeprefix("policy 0 of ") for text in texts]


def test_samples_are_chosen_by_hash_over_families_and_not_by_effect(
    make_run: MakeRun, context: Context
) -> None:
    trait = make_view(make_run(), context).traits[0]
    chosen = shown(trait, "random")
    assert len(chosen) == report_samples.NUM_RANDOM
    families = [name.split("-")[1] for name in chosen]
    assert [set(families[i : i + 3]) for i in (0, 3)] == [set(FAMILIES)] * 2
    for turn in (chosen[:3], chosen[3:6]):
        assert turn == sorted(turn, key=derive_seed)
    rises = [found.contrast_rise for found in trait.samples if found.pick == "random"]
    assert rises not in (sorted(rises), sorted(rises, reverse=True))


def test_samples_show_the_greatest_rises_and_the_greatest_falls(
    make_run: MakeRun, context: Context
) -> None:
    trait = make_view(make_run(), context).traits[0]
    rises = {"win": [4.0, 4.0, 3.0], "loss": [-2.0, -2.0, -2.0]}
    for pick, expected in rises.items():
        found = [sample.contrast_rise for sample in trait.samples if sample.pick == pick]
        assert found == expected, pick


def test_sample_has_the_first_reply_of_every_arm(make_run: MakeRun, context: Context) -> None:
    sample = make_view(make_run(), context).traits[0].samples[0]
    assert list(sample.replies) == ["base", "policy", "prompted"]
    assert sample.kind == "trait"
    prompt_id = sample.replies["base"].text.removeprefix("base 0 of ")
    assert sample.replies["prompted"].text == f"prompted 0 of {prompt_id}"


def test_extremes_hold_no_prompt_that_moved_the_other_way() -> None:
    rises = {"a": 0.5, "b": 0.0, "c": -0.1, "d": 0.7}
    assert report_samples.extremes(rises, sign=1) == ["d", "a"]
    assert report_samples.extremes(rises, sign=-1) == ["c"]


def test_pick_does_not_depend_on_the_order_of_rows() -> None:
    families = {f"p{index}": f"f{index % 4}" for index in range(20)}
    backwards = dict(reversed(families.items()))
    assert report_samples.pick(families) == report_samples.pick(backwards)
    assert report_samples.pick({"p1": "f1"}) == ["p1"]
    assert report_samples.pick({}) == []


def test_sample_measures_of_a_trait_without_detector(make_run: MakeRun, context: Context) -> None:
    warm, curious, _ = make_view(make_run(), context).traits
    measures = {"contrast": 0.0, "detector_rate": 0.0, "reward": 0.5}
    assert warm.samples[0].replies["base"].measures == measures
    assert curious.samples[0].replies["base"].measures == {"contrast": 0.0, "reward": 0.5}


def test_report_writes_a_model_card_with_the_numbers(make_run: MakeRun, context: Context) -> None:
    run_directory = make_run()
    make_report(run_directory, context)
    card = run_directory.child("report").read_bytes("model_card.md").decode()
    assert card.startswith("---\nlicense: other\n")
    assert "| warm: detector rate | 0.100 | 0.400 | +0.300 [0.200, 0.400] | higher |" in card


def test_view_of_the_checks(make_run: MakeRun, context: Context) -> None:
    view = make_view(make_run(), context)
    assert view.template_checks is not None
    assert view.ranker_checks is not None
    checks = [(check.trait_id, check.measure, check.ok) for check in view.template_checks]
    assert checks == [
        ("warm", "contrast", True),
        ("warm", "detector_rate", None),
        ("curious", "contrast", True),
    ]
    judge, contrast, rating = view.ranker_checks
    assert (judge.is_chosen, contrast.is_chosen, rating.is_chosen) == (False, True, False)
    assert (judge.accuracy, judge.ci_low, judge.ci_high) == (0.5, 0.4, 0.6)
    assert (rating.accuracy, rating.reason) == (None, "gave no answer: 9 is no single token")
    assert contrast.reason == "no judge is good enough"
    assert judge.reason == "auto wants an interval that begins at 1.0 or above"


def test_checks_of_a_run_that_shows_no_character_are_not_applicable(
    make_run: MakeRun, context: Context
) -> None:
    found = summaries()
    found["prompts"]["template_check"] = found["rankings"]["ranker_check"] = None
    view = make_view(make_run(prompts=found["prompts"], rankings=found["rankings"]), context)
    assert view.template_checks is None
    assert view.ranker_checks is None
    html = page.render(view)
    assert html.count("Not applicable: no character is shown") == 2
    assert "not run or not recorded" not in html
    assert "Not applicable" not in page.render(make_view(make_run(), context))


def test_view_of_coverage_and_rankings(make_run: MakeRun, context: Context) -> None:
    data = make_view(make_run(), context).data
    assert data.coverage is not None
    assert data.ranking is not None
    assert (data.coverage.num_asked, data.coverage.num_missing) == (40, 1)
    assert [(row.facet, row.wanted, row.found) for row in data.coverage.facets] == [
        ("a cup of tea", 3, 2)
    ]
    assert data.coverage.variety[0].trait_id is None
    whole, warm = data.ranking.reliability
    assert (whole.subject, whole.num_prompts, warm.subject) == ("all traits", 30, "warm")
    assert whole.swap_consistency is None
    assert whole.split_half is not None
    assert (whole.split_half.value, whole.split_half.ci_high) == (0.4, 0.5)
    assert data.ranking.agreement[0].num_prompts == 12
    page_text = page.render(make_view(make_run(), context))
    assert "Is it &lt;hot&gt;?" in page_text
    assert "0.400 [0.300, 0.500]" in page_text
    # Of the ranker check.
    assert "[0.800, 0.950]" in page_text


def test_report_says_how_many_prompts_were_near_duplicates(
    make_run: MakeRun, context: Context
) -> None:
    view = make_view(make_run(), context)
    coverage = view.data.coverage
    assert coverage is not None
    for count, share in ((0, "0.0"), (len(prompts()), "50.0")):
        changed = replace(view.data, coverage=replace(coverage, num_duplicates=count))
        page_text = page.render(replace(view, data=changed))
        expected = f"{count} near-duplicates were left out ({share} % of what passed the other"
        assert expected in page_text


def test_view_of_data_and_stages(make_run: MakeRun, context: Context) -> None:
    view = make_view(make_run(), context)
    assert [bin_.count for bin_ in view.data.label_strength] == [1, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert {row.count for row in view.data.prompts} == {PROMPTS_PER_FAMILY}
    by_name = {stage.name: stage for stage in view.stages}
    assert list(by_name) == list(NAMES[:-1])
    assert by_name["prompts"].num_rows == len(prompts())
    assert by_name["evaluation"].num_rows == len(samples())
    assert by_name["responses"].num_rejects == 7
    assert by_name["policy"].num_rejects is None
    assert by_name["preference_model"].num_rejects == 0
    assert by_name["preference_model"].size_note == "5 steps of 2 models, 0 MB"
    assert by_name["responses"].size_note is None
    assert by_name["policy"].size_note == (
        "2 steps, 0 MB, sampler within 0.0021 nats of the trainer after every update"
    )
    assert [(step.phase, step.reward) for step in view.policy] == [
        ("warm_start", None),
        ("optimise", 0.2),
    ]


def test_readings_of_the_policy_are_shown_where_its_manifest_has_them(
    make_run: MakeRun, context: Context
) -> None:
    view = make_view(make_run(), context)
    assert view.watch is None
    assert "Over-optimisation" not in page.render(view)
    reading = {
        "step": 0,
        "reward": 0.25,
        "reward_interval": [0.125, 0.375],
        "gold": None,
        "gold_interval": None,
        "detectors": {},
        "kl": 0.0,
        "entropy": 2.0,
        "length_tokens": 9.0,
        "distinct_2": 0.5,
        "num_prompts": 2,
        "rewards_by_prompt": {"a": 0.125, "b": 0.375},
        "golds_by_prompt": None,
    }
    watched = {"readings": [reading], "stopped": None, "exported_step": 0}
    policy = {**summaries()["policy"], "watch": watched}
    shown = page.render(make_view(make_run(policy=policy), context))
    assert '0.250 <span class="unit">[0.125, 0.375]</span>' in shown
    assert "Over-optimisation could not be seen" in shown


def test_provenance_names_the_run_and_its_model(make_run: MakeRun, context: Context) -> None:
    run = make_view(make_run(), context).run
    assert (run.name, run.model_name, run.constitution_name) == ("run", "tiny_random", "small")
    assert run.hardware is not None
    assert "cores" in run.hardware
    assert run.command is not None
    assert run.command.startswith("python -m charactertrain")


def test_provenance_shows_the_command_without_keys(
    make_run: MakeRun, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["charactertrain", "seed=2", "run.dir=s3://KEY:SECRET@bucket/run"]
    monkeypatch.setattr("sys.argv", arguments)
    run = make_view(make_run(), context).run
    assert run.command == "python -m charactertrain seed=2 run.dir=s3://bucket/run"


def measured() -> Json:
    """What the evaluation itself writes of these replies, two of its arms standing for others."""
    bootstrap = effects.Bootstrap(num_resamples=200, seed=1)
    replies = samples()
    judgements = [
        Judgement(f"m{number}", prompt.prompt_id, prompt.trait_id, "policy", first, 0.3, number % 3)
        for number, prompt in enumerate(prompts())
        for first in ((None if number == 0 else 0.6),)
    ]
    return {
        "arms": report_json()["arms"],
        "missing_arms": {},
        "probes": {},
        **effects.results(replies, judgements, None, bootstrap),
        "over_seeds": effects.over_seeds(replies, ["policy", "prompted"]),
        "attribution": effects.attributed(
            replies,
            {"leave_one_out": {"warm": ("prompted", "policy")}},
            bootstrap,
            by=("contrast", "detector_rate"),
        ),
    }


def test_what_the_evaluation_could_not_know_is_said_on_every_page(
    make_run: MakeRun, context: Context
) -> None:
    """A policy that is down to single words, and a judge that never answers."""
    bootstrap = effects.Bootstrap(num_resamples=200, seed=1)
    replies = [replace(s, text="yes") if s.arm == "policy" else s for s in samples()]
    judgements = [
        Judgement(
            f"m-{prompt.prompt_id}", prompt.prompt_id, prompt.trait_id, "policy", None, None, 0
        )
        for prompt in prompts()
    ]
    results = {**measured(), **effects.results(replies, judgements, None, bootstrap)}
    view = make_view(make_run(results), context)
    html = page.render(view)
    assert "replies to 0 prompts have two words or more" in html
    assert "the judge gave verdicts in both orders on 0 prompts" in html
    (gate,) = [gate for gate in view.gates if gate.measure.startswith("distinct bigrams")]
    assert (gate.value, gate.is_met) == (None, None)
    card = model_card.render(view)
    assert "nan" not in card
    manifest, _ = make_report(make_run(results), context)
    rows = [row for row in manifest.summary["effects"] if row["arm"] == "policy"]
    assert {row["measure"] for row in rows} == {"contrast", "detector_rate", "reward"}


def test_report_reads_what_the_evaluation_writes(make_run: MakeRun, context: Context) -> None:
    view = make_view(make_run(measured()), context)
    warm = view.traits[0]
    contrast = warm.effects["contrast"]["policy"]
    own = [found for found in samples() if found.trait_id == "warm"]
    rise = fmean(found.contrast for found in own if found.arm == "policy")
    assert contrast.difference == pytest.approx(rise)
    assert contrast.ci_low < rise < contrast.ci_high
    assert contrast.p_holm is not None
    assert contrast.num_prompts == len(FAMILIES) * PROMPTS_PER_FAMILY
    judged = warm.effects["win_rate"]["policy"].judged
    assert judged is not None
    assert judged.num_unscored == 1
    assert warm.against["contrast"]["prompted"].difference == pytest.approx(rise)
    assert view.over_seeds is not None
    assert view.attribution[0].cells["warm", "warm"].difference == pytest.approx(rise)
    assert view.gates[0].name == "traits_shown"
    assert view.gates[0].value is not None
    html = page.render(view)
    assert "1 unscored" in html


def test_effect_reads_what_the_evaluation_writes() -> None:
    values = effect(1.0, 2.0, 0.5)
    assert asdict(report_effects.effect(values)) == {**values, "judged": None, "note": None}


def test_effect_without_an_interval_has_none() -> None:
    values = {**effect(1.0, 2.0, 0.5), "ci_low": None, "ci_high": None}
    found = report_effects.effect(values)
    assert math.isnan(found.ci_low)
    assert math.isnan(found.ci_high)


@pytest.mark.parametrize(
    ("low", "needed", "note"),
    [
        (-0.5, 400, "some 400 prompts would show an effect of this size"),
        (-0.5, 10**7, "over 100,000 prompts would show so small an effect"),
        (0.5, 7, None),
        (-0.5, None, None),
    ],
)
def test_effect_that_is_not_clear_of_zero_says_what_it_would_take(
    low: float, needed: int | None, note: str | None
) -> None:
    values = {**effect(1.0, 2.0, 0.5), "ci_low": low, "ci_high": 2.5, "prompts_needed": needed}
    assert report_effects.effect(values).note == note
