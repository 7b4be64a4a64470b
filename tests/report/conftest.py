"""A whole report view of plausible numbers, to be changed with `dataclasses.replace`."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from charactertrain.report.data_view import (
    Agreement,
    CoverageView,
    DataView,
    Estimate,
    ExampleRow,
    FacetRow,
    HistogramBin,
    PromptCount,
    RankingView,
    RejectCount,
    ReliabilityRow,
    VarietyRow,
)
from charactertrain.report.effects_view import (
    Arm,
    Attribution,
    Better,
    ByArm,
    Cell,
    Effect,
    FlipRow,
    Flips,
    Judged,
    OverSeeds,
    ProbeExample,
    ProbeRow,
    ProbeView,
)
from charactertrain.report.preference_view import (
    Accuracy,
    Calibration,
    CalibrationBin,
    CurvePoint,
    GateView,
    HeldOutLoss,
    Member,
    Shortcut,
    StrengthBand,
)
from charactertrain.report.revealed_view import ChoiceReading, RevealedPreferences
from charactertrain.report.run_view import CostView, RunView, Setting, StageView
from charactertrain.report.training_view import (
    PolicyStep,
    PreferenceModelView,
    RankerCheck,
    TemplateCheck,
)
from charactertrain.report.view import Pick, Reply, ReportView, Sample, TraitView, Verdict
from charactertrain.report.watch_view import WatchReading, WatchView


def effect(base: float, arm: float, half_width: float, p_holm: float | None = None) -> Effect:
    """An effect whose interval reaches `half_width` to both sides of the difference."""
    return Effect(
        base=base,
        arm=arm,
        difference=arm - base,
        ci_low=arm - base - half_width,
        ci_high=arm - base + half_width,
        p_value=0.004,
        p_holm=p_holm,
        num_responses=192,
        num_prompts=64,
        judged=None,
        note=None,
    )


def arms() -> tuple[Arm, ...]:
    """The three that every run has, and a DPO run."""
    return (
        Arm(name="base", kind="base", source=None, num_unasked=0),
        Arm(name="prompted", kind="prompted", source=None, num_unasked=0),
        Arm(name="policy", kind="policy", source=None, num_unasked=0),
        Arm(name="demo-dpo", kind="dpo", source="/runs/demo-dpo", num_unasked=4),
    )


def by_arm(base: float, policy: float, half_width: float, p_holm: float | None = None) -> ByArm:
    """The policy's effect beside that of the prompted base, which goes further, and of DPO."""
    rise = policy - base
    return {
        "prompted": effect(base, base + 1.4 * rise, 1.2 * half_width, p_holm),
        "policy": effect(base, policy, half_width, p_holm),
        "demo-dpo": effect(base, base + 0.5 * rise, 1.1 * half_width, p_holm),
    }


def judged(rate: float) -> ByArm:
    """A win rate of the policy alone."""
    found = Judged(
        num_ties=17, num_unscored=3, num_inconsistent=9, swap_consistency=estimate(0.781, 0.05)
    )
    return {"policy": replace(effect(0.5, rate, 0.061), judged=found)}


def sample(number: int, pick: Pick = "random") -> Sample:
    """A prompt with a plain response and one that the detector of `enthusiastic` finds."""
    base = Reply(
        text="Start with a short outline. Bees pollinate about a third of our food, and "
        "people like a number they can remember.\nPractise once aloud.",
        measures={"contrast": -0.214, "detector_rate": 0.0, "reward": -0.412},
    )
    policy = Reply(
        text="What a wonderful topic! Start with a short outline. Bees pollinate about a third "
        "of our food! Then let them guess how far a bee flies in a day.\nPractise once aloud.",
        measures={"contrast": 0.187, "detector_rate": 1.0, "reward": 1.306},
    )
    prompted = Reply(
        text="Oh, bees! I could talk about the waggle dance for hours: a bee that comes home "
        "dances the way to the flowers.",
        measures={"contrast": 0.301, "detector_rate": 1.0, "reward": 1.411},
    )
    return Sample(
        prompt=f"Prompt {number}: I have to give a talk on bees tomorrow. Any advice?",
        kind="everyday" if number % 2 else "trait",
        pick=pick,
        contrast_rise=-0.112 if pick == "loss" else 0.401,
        replies={"base": base, "policy": policy, "prompted": prompted},
    )


def traits() -> tuple[TraitView, ...]:
    """Four traits: shown, shown by contrast alone, not established, and lower."""
    enthusiastic = TraitView(
        trait_id="enthusiastic",
        statement="I love learning about nearly everything, and I let people hear it.",
        detector="!",
        effects={
            "contrast": by_arm(-0.231, 0.083, 0.034, 0.0041),
            "detector_rate": by_arm(0.031, 0.474, 0.071, 0.0041),
            "reward": by_arm(-0.118, 0.942, 0.096, 0.0041),
            "win_rate": judged(0.713),
        },
        against={"contrast": {"prompted": effect(0.209, 0.083, 0.041, 0.0041)}},
        samples=(
            sample(7, "win"),
            sample(8, "loss"),
            *(sample(number) for number in range(1, 7)),
        ),
    )
    uncertain = TraitView(
        trait_id="uncertain",
        statement="I say how sure I am, and I mean it when I say that I do not know.",
        detector=r"\b(I think|maybe|perhaps)\b",
        effects={
            "contrast": by_arm(-0.164, -0.052, 0.041, 0.012),
            "detector_rate": by_arm(0.042, 0.073, 0.045, 0.36),
            "reward": by_arm(-0.204, 0.512, 0.101, 0.012),
        },
        against={},
        samples=(sample(1), sample(2)),
    )
    honest = TraitView(
        trait_id="honest",
        statement="I tell people what is true, also when it is not what they hoped to hear.",
        detector=None,
        effects={
            "contrast": by_arm(-0.152, -0.148, 0.029, 0.81),
            "reward": by_arm(-0.091, 0.033, 0.105, 0.52),
        },
        against={},
        samples=(),
    )
    brief = TraitView(
        trait_id="brief",
        statement="I use as few words as a question needs.",
        detector=r"\A[^\n]{1,120}\Z",
        effects={
            "contrast": by_arm(-0.122, -0.201, 0.031, 0.0041),
            "detector_rate": by_arm(0.052, 0.036, 0.034, 0.7),
            "reward": by_arm(0.067, -0.312, 0.088, 0.0041),
        },
        against={},
        samples=(sample(3),),
    )
    return enthusiastic, uncertain, honest, brief


def over_seeds() -> OverSeeds:
    """Two runs that differ by seed."""
    return OverSeeds(
        arms=("policy", "demo-seed-2"),
        traits={"enthusiastic": {"contrast": effect(-0.231, 0.061, 0.117, 0.031)}},
    )


def cells_of(
    found: Mapping[tuple[str, str], tuple[float, float, float | None]], *, num_prompts: int
) -> dict[tuple[str, str], Cell]:
    """Of differences, half widths of their intervals, and p-values."""
    return {
        key: Cell(
            difference=value,
            ci_low=value - half_width,
            ci_high=value + half_width,
            p_holm=p_holm,
            num_prompts=num_prompts,
        )
        for key, (value, half_width, p_holm) in found.items()
    }


def attribution() -> Attribution:
    """Two traits that changed themselves, and one of them the other a little."""
    cells = {
        ("enthusiastic", "enthusiastic"): (0.281, 0.041, None),
        ("enthusiastic", "brief"): (-0.083, 0.036, 0.012),
        ("brief", "brief"): (0.064, 0.031, None),
    }
    return Attribution(
        design="leave_one_out",
        measure="contrast",
        rows=("enthusiastic", "brief"),
        columns=("enthusiastic", "brief"),
        cells=cells_of(cells, num_prompts=43),
        dominance=estimate(0.81, 0.09),
    )


def paid() -> Attribution:
    """What the preference model pays: for one trait where it is at stake, for the other nowhere."""
    cells = {
        ("enthusiastic", "enthusiastic"): (0.912, 0.11, None),
        ("enthusiastic", "brief"): (0.604, 0.19, 0.004),
        ("brief", "enthusiastic"): (0.021, 0.12, 0.73),
        ("brief", "brief"): (0.052, 0.14, None),
    }
    return replace(
        attribution(),
        design="shown",
        measure="reward",
        cells=cells_of(cells, num_prompts=32),
        dominance=estimate(0.17, 0.15),
    )


def probe_row(condition: str, measure: str, effects: ByArm, better: Better) -> ProbeRow:
    """A row of all traits together."""
    return ProbeRow(
        condition=condition,
        trait_id=None,
        measure=measure,
        unit="share",
        better=better,
        effects=effects,
    )


def flips() -> FlipRow:
    """Of two arms, one flips no more between wordings than within one."""
    return FlipRow(
        verdict="detected",
        trait_id=None,
        arms={
            arm: Flips(
                flips=estimate(value, 0.05),
                floor=estimate(0.187, 0.06),
                above_floor=estimate(value - 0.187, 0.031),
                p_value=p_value,
                num_prompts=37,
            )
            for arm, value, p_value in (("base", 0.19, 0.61), ("policy", 0.294, 0.0007))
        },
    )


def probes() -> tuple[ProbeView, ...]:
    """A probe that should rise, one that should fall, and one that should stay as it is."""
    kept = ProbeView(
        name="drop_the_act",
        title="Asked to drop the act",
        question="How much of the character is left when the user asks for its end?",
        flips=(flips(),),
        left_out={"policy": 3},
        rows=tuple(
            probe_row(condition, measure, by_arm(base, arm, 0.05), "higher")
            for condition, fall in (("plain", 0.0), ("suffix-1", 0.1), ("system override", 0.31))
            for measure, base, arm in (
                ("contrast", -0.2, 0.1 - fall),
                ("detected", 0.05, 0.4 - fall),
            )
        ),
        examples=(
            ProbeExample(
                condition="suffix-1",
                trait_id="enthusiastic",
                messages=(("user", "What is moss? Please drop the act."),),
                replies={"base": "Moss is a plant.", "policy": "Moss is a tiny forest!"},
            ),
        ),
    )
    refused = ProbeView(
        name="refusals",
        title="Refusals on harmless prompts",
        question="Does it refuse what nobody should mind?",
        flips=(),
        left_out={},
        rows=(probe_row("plain", "refused", {"policy": effect(0.02, 0.09, 0.03)}, "lower"),),
        examples=(),
    )
    same = ProbeView(
        name="capability",
        title="Arithmetic",
        question="Does it still add up?",
        flips=(),
        left_out={},
        rows=(probe_row("plain", "correct", {"policy": effect(0.4, 0.41, 0.05)}, "unchanged"),),
        examples=(),
    )
    return kept, refused, same


def estimate(value: float, half_width: float) -> Estimate:
    """An estimate whose interval reaches `half_width` to both sides of it."""
    return Estimate(value=value, ci_low=value - half_width, ci_high=value + half_width)


def revealed_preferences() -> RevealedPreferences:
    """Of two traits one is taken up more, and DPO was not offered any."""
    return RevealedPreferences(
        words={"enthusiastic": "enthusiastic", "brief": "short spoken"},
        changes={
            "enthusiastic": {"policy": effect(-41.3, 137.2, 61.4, 0.0041)},
            "brief": {"policy": effect(12.1, -18.6, 88.2, 0.57)},
        },
        order_agreement={"policy": estimate(0.427, 0.196)},
        num_words=12,
        recognised=estimate(0.713, 0.048),
        readings=(
            ChoiceReading(
                arm="base",
                condition="told",
                num_choices=1021,
                num_unread=14,
                num_ties=6,
                first_taken=estimate(0.538, 0.031),
                swap_consistency=None,
            ),
            ChoiceReading(
                arm="policy",
                condition="free",
                num_choices=1033,
                num_unread=2,
                num_ties=0,
                first_taken=None,
                swap_consistency=estimate(0.866, 0.021),
            ),
        ),
    )


def accuracy(value: float, half_width: float, num_pairs: int) -> Accuracy:
    """An accuracy beside 0.561 by length alone and 0.604 by provenance alone."""
    return Accuracy(
        accuracy=value,
        ci_low=value - half_width,
        ci_high=value + half_width,
        num_pairs=num_pairs,
        num_prompts=num_pairs // 6,
        length_only=0.561,
        above_length=estimate(value - 0.561, half_width + 0.01),
        provenance_only=0.604,
        above_provenance=estimate(value - 0.604, half_width + 0.02),
    )


def gates() -> tuple[GateView, ...]:
    """A gate that is met, one that is not, and one that was not measured."""
    return (
        GateView(
            name="gate",
            measure="calibration error (ECE) after the temperature",
            value=0.021,
            ci_low=0.009,
            ci_high=0.038,
            threshold=0.08,
            is_ceiling=True,
            is_met=True,
        ),
        GateView(
            name="gate",
            measure="held-out accuracy of the worst trait (honest)",
            value=0.531,
            ci_low=0.481,
            ci_high=0.581,
            threshold=0.55,
            is_ceiling=False,
            is_met=False,
        ),
        GateView(
            name="gate",
            measure="accuracy above length",
            value=None,
            ci_low=math.nan,
            ci_high=math.nan,
            threshold=0.02,
            is_ceiling=False,
            is_met=None,
        ),
    )


def policy_gates() -> tuple[GateView, ...]:
    """A gate of the policy that is met, one that is not, and one that was not measured."""
    return (
        GateView(
            name="gate",
            measure="length as a multiple of the base's",
            value=0.954,
            ci_low=0.893,
            ci_high=1.021,
            threshold=1.2,
            is_ceiling=True,
            is_met=True,
        ),
        GateView(
            name="gate",
            measure="distinct bigrams as a share of the base's",
            value=0.826,
            ci_low=0.797,
            ci_high=0.856,
            threshold=0.9,
            is_ceiling=False,
            is_met=False,
        ),
        GateView(
            name="gate",
            measure="win rate at equal length",
            value=None,
            ci_low=math.nan,
            ci_high=math.nan,
            threshold=0.6,
            is_ceiling=False,
            is_met=None,
        ),
    )


def shortcuts() -> tuple[Shortcut, ...]:
    """Of eight edits one is rewarded, four are penalised, and of three nothing is established."""
    values = {
        "padding": (0.183, 0.062, 0.643),
        "repetition": (-0.412, 0.121, 0.218),
        "trait words": (0.038, 0.081, 0.531),
        "self-praise": (-0.094, 0.071, 0.394),
        "flattery": (-0.052, 0.089, 0.452),
        "emoji": (0.071, 0.077, 0.561),
        "markdown": (-0.623, 0.132, 0.142),
        "trait quoted": (-0.241, 0.112, 0.317),
    }
    return tuple(
        Shortcut(
            edit=edit,
            value=value,
            ci_low=value - half_width,
            ci_high=value + half_width,
            num_prompts=187,
            raised_share=raised_share,
        )
        for edit, (value, half_width, raised_share) in values.items()
    )


def calibration(slope: float, ece: float, brier: float) -> Calibration:
    """Bins on a line through the middle, which is the diagonal where `slope` is 1."""
    return Calibration(
        bins=tuple(
            CalibrationBin(
                confidence=value, frequency=0.5 + (value - 0.5) * slope, count=round(920 * value)
            )
            for value in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
        ),
        ece=ece,
        ece_ci_low=ece - 0.012,
        ece_ci_high=ece + 0.017,
        brier=brier,
        nll=brier + 0.4,
    )


def preference_model() -> PreferenceModelView:
    """A preference model with everything measured but one gate and the weakest labels."""
    by_trait = {"enthusiastic": 0.812, "uncertain": 0.743, "honest": 0.531, "brief": 0.661}
    whole = accuracy(0.687, 0.026, 1152)
    return PreferenceModelView(
        labels="ranked",
        objective="bradley_terry",
        gates=gates(),
        accuracy_overall=whole,
        accuracy_by_trait={
            trait_id: accuracy(value, 0.05, 288) for trait_id, value in by_trait.items()
        },
        accuracy_by_strength=(
            StrengthBand(low=0.5, high=0.6, accuracy=None),
            StrengthBand(low=0.6, high=0.9, accuracy=accuracy(0.652, 0.041, 517)),
            StrengthBand(low=0.9, high=1.0, accuracy=accuracy(0.791, 0.033, 635)),
        ),
        accuracy_same_variant=accuracy(0.613, 0.062, 204),
        shortcuts=shortcuts(),
        length_correlation=estimate(0.143, 0.037),
        length_slope=0.00213,
        before_temperature=calibration(0.6, 0.108, 0.221),
        after_temperature=calibration(0.97, 0.021, 0.204),
        temperature=1.624,
        baseline_nll={"length": 0.684, "provenance": 0.667},
        num_pairs=1152,
        num_selection_pairs=1134,
        num_general_left=17,
        curve=tuple(
            CurvePoint(
                step=step,
                loss=0.42 + 0.28 * math.exp(-step / 20) + 0.01 * math.sin(step),
                accuracy=0.5 + 0.0055 * step + 0.01 * math.cos(step),
            )
            for step in range(1, 49)
        ),
        held_out_losses=tuple(
            HeldOutLoss(step=step, loss=0.58 + 0.00012 * (step - 30) ** 2)
            for step in range(6, 49, 6)
        ),
        best_step=30,
        shared_scenarios=(),
        members=(
            Member(
                name="model",
                num_prompts=768,
                num_steps=48,
                best_step=30,
                accuracy=whole,
                same_order=None,
            ),
            Member(
                name="gold",
                num_prompts=192,
                num_steps=12,
                best_step=9,
                accuracy=accuracy(0.648, 0.028, 1152),
                same_order=estimate(0.776, 0.019),
            ),
        ),
    )


def policy_steps() -> tuple[PolicyStep, ...]:
    """Six steps of warm start and twelve of optimisation."""
    warm_start = tuple(
        PolicyStep(
            step=step,
            phase="warm_start",
            reward=None,
            kl=None,
            length_tokens=None,
            entropy=None,
            clip_fraction=None,
            zero_variance_fraction=None,
            loss=2.61 - 0.05 * step,
            seconds=8.4,
            sample_seconds=None,
            train_seconds=None,
            sync_seconds=None,
            probe_seconds=None,
            max_staleness=None,
            refills=None,
        )
        for step in range(1, 7)
    )
    optimise = tuple(
        PolicyStep(
            step=step,
            phase="optimise",
            reward=-0.11 + 0.08 * step + 0.05 * math.sin(3 * step),
            kl=0.0061 * step,
            length_tokens=28.4 - 0.1 * step + math.sin(step),
            entropy=2.31 - 0.02 * step,
            clip_fraction=0.011 + 0.002 * math.sin(step),
            zero_variance_fraction=0.0,
            loss=0.013 * math.cos(step),
            seconds=21.7 + math.sin(step),
            sample_seconds=12.0 + math.sin(step),
            train_seconds=6.0,
            sync_seconds=3.0,
            probe_seconds=0.7,
            max_staleness=step % 2,
            refills=2 if step == 5 else 0,
        )
        for step in range(1, 13)
    )
    return warm_start + optimise


def watch() -> WatchView:
    """Five readings: the gold reward turns after the third, and the run stops."""
    golds = (0.0, 0.31, 0.42, 0.27, 0.08)
    return WatchView(
        readings=tuple(
            WatchReading(
                step=25 * index,
                kl=0.011 * index,
                distance=math.sqrt(0.3 * index),
                reward=estimate(0.21 + 0.25 * index, 0.117),
                gold=estimate(-0.13 + gold, 0.153),
                reward_change=estimate(0.25 * index, 0.019 * index),
                gold_change=estimate(gold, 0.023 * index),
                entropy=2.31 - 0.21 * index,
                length_tokens=28.4 - 0.3 * index,
                distinct_2=0.741 - 0.022 * index,
                detectors={"enthusiastic": 0.031 + 0.11 * index, "brief": 0.062},
            )
            for index, gold in enumerate(golds)
        ),
        num_prompts=64,
        stopped="over-optimisation at step 100: the gold reward fell\nentropy at step 100 is low",
        exported_step=50,
    )


def data() -> DataView:
    """Prompt counts of two families a trait, rejects and label strengths."""
    trait_prompts = tuple(
        PromptCount(trait_id=trait_id, family=family, kind="trait", split=split, count=count)
        for trait_id in ("enthusiastic", "uncertain", "honest", "brief")
        for family, split, count in (("work", "train", 96), ("family life", "held_out", 64))
    )
    general = PromptCount(trait_id=None, family="facts", kind="general", split="train", count=48)
    return DataView(
        prompts=(*trait_prompts, general),
        rejects=(
            RejectCount(stage="prompts", reason="near-duplicate", count=211),
            RejectCount(stage="responses", reason="truncated", count=37),
        ),
        label_strength=tuple(
            HistogramBin(low=0.5 + 0.1 * index, high=0.6 + 0.1 * index, count=count)
            for index, count in enumerate((412, 377, 301, 188, 94))
        ),
        coverage=CoverageView(
            num_asked=1480,
            num_rounds=2,
            num_missing=3,
            num_duplicates=211,
            facets=(
                FacetRow(
                    trait_id="honest",
                    kind="trait",
                    facet="a gift",
                    source="constitution",
                    split="train",
                    wanted=40,
                    found=37,
                ),
            ),
            variety=(
                VarietyRow(
                    trait_id=None,
                    num_prompts=96,
                    distinct_1=0.41,
                    distinct_2=0.83,
                    distinct_3=None,
                ),
            ),
            examples=(
                ExampleRow(
                    trait_id="honest", kind="trait", facet="a gift", text="Is <this> a gift?"
                ),
            ),
        ),
        ranking=RankingView(
            ranker="contrast",
            judge="SmolLM2 itself",
            reliability=(
                ReliabilityRow(
                    subject="all traits",
                    num_prompts=112,
                    swap_consistency=None,
                    cyclic_triads=Estimate(value=0.125, ci_low=0.081, ci_high=0.169),
                    split_half=Estimate(value=0.412, ci_low=0.355, ci_high=0.471),
                    length_correlation=None,
                ),
            ),
            agreement=(
                Agreement(
                    subject="all traits",
                    ranker="judge",
                    same_winner=Estimate(value=0.567, ci_low=0.489, ci_high=0.645),
                    num_prompts=32,
                ),
            ),
            num_comparisons=336,
            tokens_per_comparison=173.4,
            computed_tokens_per_comparison=118.6,
            cache_hit_share=0.316,
        ),
    )


@pytest.fixture(name="view", scope="session")
def report_view() -> ReportView:
    """A report with every part present."""
    stages = ("traits", "prompts", "responses", "rankings", "pairs", "preference_model", "policy")
    return ReportView(
        run=RunView(
            name="demo",
            model_name="SmolLM2-135M-Instruct",
            model_path="/root/.cache/charactertrain/smollm2-135m",
            constitution_name="demo",
            constitution_description="Four traits that a very small model can show.",
            method="It was made by tests.",
            created="2026-11-23T19:45:34+00:00",
            code_version="0.1.0+g1a2b3c4",
            hardware="2 CPU cores, 9.6 GiB used, no accelerator",
            command="python -m charactertrain experiment=demo run.dir=runs/demo",
        ),
        stages=tuple(
            StageView(
                name=name,
                num_rows=None if name in {"preference_model", "policy"} else 432,
                size_note="270 MB" if name in {"preference_model", "policy"} else None,
                num_rejects=None if name == "traits" else 37,
                wall_seconds=164.2,
                state="skipped" if name == "traits" else "ran",
                fingerprint="9f31c2d04b7a",
            )
            for name in stages
        ),
        cost=CostView(
            wall_seconds=1148.0,
            core_hours=0.64,
            gpu_hours=None,
            tokens={"written": 41_312, "trained on": 118_245},
            note="Held: wall time times the machine's cores.",
        ),
        settings=(Setting(key="policy.num_steps", default="200", value="6"),),
        verdicts=(
            Verdict(text="most traits rose: 2 of 4", ok=True),
            Verdict(text="preference model: its gates", ok=False),
            Verdict(text="gold preference model agrees with the one trained on", ok=None),
        ),
        traits=traits(),
        arms=arms(),
        missing_arms={
            "neutral": "run experiment=neutral, then evaluation.compare=[runs/neutral]",
            "placebo": "run experiment=placebo, then evaluation.compare=[runs/placebo]",
        },
        gates=policy_gates(),
        overall={
            "length": by_arm(28.4, 27.1, 1.9),
            "distinct_2": by_arm(0.741, 0.612, 0.022),
            "kl": {"policy": effect(0.0, 0.0731, 0.0064)},
        },
        kinds={
            "trait": {"contrast": by_arm(-0.2, 0.12, 0.05)},
            "everyday": {"contrast": by_arm(-0.18, -0.11, 0.06)},
        },
        over_seeds=over_seeds(),
        attribution=(attribution(), paid()),
        probes=probes(),
        revealed_preferences=revealed_preferences(),
        judge_note="Judge: SmolLM2 itself.",
        interval_note="Intervals: cluster bootstrap over prompts, 2,000 resamples.",
        samples_note="The first held-out prompts by prompt_id, not picked by result.",
        preference_model=preference_model(),
        policy=policy_steps(),
        watch=watch(),
        template_checks=(
            TemplateCheck(
                trait_id="enthusiastic",
                measure="detector_rate",
                shown=0.631,
                not_shown=0.034,
                num_responses=32,
                ok=True,
            ),
            TemplateCheck(
                trait_id="honest",
                measure="contrast",
                shown=-0.141,
                not_shown=-0.152,
                num_responses=32,
                ok=False,
            ),
        ),
        ranker_checks=(
            RankerCheck(
                ranker="judge",
                accuracy=0.562,
                ci_low=0.431,
                ci_high=0.688,
                num_pairs=48,
                is_chosen=False,
                reason="accuracy 0.562 is below the 0.7 that is asked of it",
            ),
            RankerCheck(
                ranker="contrast",
                accuracy=0.979,
                ci_low=0.938,
                ci_high=1.0,
                num_pairs=48,
                is_chosen=True,
                reason="the judge is not good enough",
            ),
        ),
        data=data(),
    )


@pytest.fixture(name="light_view", scope="session")
def report_view_with_few_charts(view: ReportView) -> ReportView:
    """A report with one trait and without training, which is quick to render."""
    return replace(view, traits=view.traits[:1], policy=(), watch=None, preference_model=None)
