"""evaluation: every arm on held-out prompts, measured and compared with the base."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from charactertrain.artifacts import Outcome, read_rows
from charactertrain.evaluation import effects, shown_traits
from charactertrain.evaluation.gates import OUTCOME_MEASURES
from charactertrain.pipeline import Work
from charactertrain.records import EvaluationSample, Judgement, Prompt, Trait
from charactertrain.stages.context import Context
from charactertrain.stages.evaluation import arms as arms_of
from charactertrain.stages.evaluation import probe_scripts
from charactertrain.stages.evaluation.passes import Passes
from charactertrain.stages.rankings.judge_source import judge_name
from charactertrain.storage import open_directory


def run(work: Work, context: Context) -> Outcome:
    """Sample all arms, measure every reply, and compare."""
    section = context.config.evaluation
    traits = {t.trait_id: t for t in read_rows(*work.inputs["traits"], "traits", Trait)}
    prompts = _held_out(work, "prompts")
    arms = arms_of.find(section.compare, open_directory(context.config.run.dir))
    ablations = arms_of.ablations(arms, traits)
    asked = {arm.name: arms_of.unseen(arm, prompts) for arm in arms}
    with ExitStack() as opened:
        passes = Passes(work, context, traits, opened)
        for arm in arms:
            passes.reply(arm, asked[arm.name])
        natural = passes.natural_lengths(arms, asked)
        passes.show_each(_chosen(prompts, traits, per_trait=section.attribution_prompts))
        passes.score()
        passes.reward()
        passes.judge()
        probed = _unseen_by_all(arms, [*prompts, *_held_out(work, "general")])
        passes.probe(arms, probed)
        passes.choose([arm for arm in arms if arm.kind != "prompted"])
    samples = passes.rows("samples", EvaluationSample)
    judgements = passes.rows("judgements", Judgement)
    shown = passes.rows("shown_samples", EvaluationSample)
    bootstrap = effects.Bootstrap(section.num_resamples, context.config.seed)
    report = {
        "arms": arms_of.described(arms),
        "missing_arms": arms_of.missing(arms),
        **effects.results(samples, judgements, natural, bootstrap),
        "over_seeds": effects.over_seeds(
            samples, ["policy", *(arm.name for arm in arms if arm.kind == "seed")]
        ),
        "probes": passes.probe_report(),
        "revealed_preferences": passes.choice_report(),
        "attribution": effects.attributed(samples, ablations, bootstrap, by=OUTCOME_MEASURES)
        | shown_traits.matrices(samples, shown, list(traits), bootstrap),
    }
    work.directory.write_bytes(
        "report.json", json.dumps(report, indent=2, allow_nan=False).encode()
    )
    return passes.outcome(
        "report.json",
        {
            "max_tokens": section.max_tokens,
            "length_max_tokens": section.length_max_tokens,
            "num_resamples": section.num_resamples,
            "judge": judge_name(context, section.judge) if judgements else None,
            "seen_prompts": {arm.name: len(prompts) - len(asked[arm.name]) for arm in arms},
            "missing_replies": _missing(samples, asked, section.responses_per_prompt),
            "probe_prompts": len(probed),
        },
    )


def _held_out(work: Work, table: str) -> list[Prompt]:
    rows = read_rows(*work.inputs["prompts"], table, Prompt)
    return [prompt for prompt in rows if prompt.split == "test"]


def _chosen(prompts: list[Prompt], traits: Mapping[str, Trait], *, per_trait: int) -> list[Prompt]:
    return probe_scripts.choose(prompts, list(traits.values()), per_trait=per_trait)


def _unseen_by_all(arms: Sequence[arms_of.Arm], prompts: list[Prompt]) -> list[Prompt]:
    """Probes have the same scripts for all arms."""
    for arm in arms:
        prompts = arms_of.unseen(arm, prompts)
    return prompts


def _missing(
    samples: Sequence[EvaluationSample], asked: Mapping[str, Sequence[Prompt]], count: int
) -> dict[str, int]:
    """By arm, the replies that were asked for and are not measured: rejects hold the reasons."""
    found = Counter(sample.arm for sample in samples)
    return {arm: count * len(prompts) - found[arm] for arm, prompts in asked.items()}
