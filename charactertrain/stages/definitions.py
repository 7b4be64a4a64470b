"""The nine stages in order: what each reads, what decides its result, and where it is written.

This file is light; a stage's module is imported when the stage runs.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from charactertrain import reviews
from charactertrain.artifacts import Json
from charactertrain.config import RunConfig, Section, identity
from charactertrain.constitution import Constitution
from charactertrain.pipeline import Stage
from charactertrain.probes.file import fingerprints
from charactertrain.stages import row_files
from charactertrain.stages.counts import Counts, count
from charactertrain.stages.evaluation.arms import OWN_ARMS, compared_policies
from charactertrain.stages.evaluation.size import replies_at_most

NAMES = (
    "traits",
    "prompts",
    "responses",
    "rankings",
    "pairs",
    "preference_model",
    "policy",
    "evaluation",
    "report",
)

REVIEWS_KEY = "contents of pairs.reviews"
"""Of the pairs' identity: the checksum of the reviews that they were made with."""

_OF_GRADIENTS = ("kl", "max_staleness", "watch")
_NO_EFFECT = {
    "policy_gradient": (),
    "best_of_n": _OF_GRADIENTS,
    "dpo": (
        *_OF_GRADIENTS,
        "general_share",
        "group_size",
        "max_refills",
        "max_tokens",
        "reward",
    ),
}
"""Settings of the policy that its kind of objective does without."""


def define(
    config: RunConfig,
    constitution: Constitution,
    identify: Callable[[str], Mapping[str, str]],
) -> list[Stage]:
    """The stages of a run of `config`; `identify` names a model by its path."""
    model = {
        "weights": dict(identify(config.model.path)),
        "precision": config.model.precision,
        "context_tokens": config.model.context_tokens,
        "sampler": config.sampler.kind,
    }
    asked = model | {
        "trait_placement": config.model.trait_placement,
        "traits_shown": config.model.traits_shown,
    }

    def judge(path: str | None) -> Json | None:
        return None if path is None else dict(identify(path))

    sizes = _sizes(config, constitution)
    # The report's verdicts hang on them, and no row of the evaluation.
    gates = config.evaluation.gates.model_dump()
    character = {"constitution": constitution.model_dump(mode="json")}
    return [
        _stage("traits", (), character, {}, sizes),
        *_data_stages(config, asked, judge(config.rankings.judge_model), sizes),
        *_training_stages(config, model, sizes),
        _evaluation(config, asked, judge(config.evaluation.judge.judge_model), sizes),
        _stage("report", NAMES[:-1], {"gates": gates}, {}, sizes),
    ]


def _data_stages(
    config: RunConfig, asked: Json, judge: Json | None, sizes: Mapping[str, str]
) -> list[Stage]:
    """Prompts to pairs. `asked`: the model and how it is shown the character."""
    seed = {"seed": config.seed}
    synthesis = {
        "prompt_synthesis": config.model.prompt_synthesis,
        "messages_per_call": config.model.messages_per_call,
    }
    # The template check draws responses as the responses stage does.
    drawn = config.responses.model_dump(include={"temperature", "max_tokens", "ending"})
    prompts = {
        **seed,
        "model": asked | synthesis,
        "responses": drawn,
        "contents of prompts.file": _contents(config.prompts.file, "prompts.file"),
    }
    # The seed draws the splits that a file does not name.
    pairs = {
        **seed,
        "ablate": sorted(config.ablate),
        "contents of pairs.file": _contents(config.pairs.file, "pairs.file"),
        REVIEWS_KEY: _reviews(config.pairs.reviews),
    }
    return [
        _stage("prompts", ("traits",), prompts, {"prompts": config.prompts}, sizes),
        _stage(
            "responses",
            ("traits", "prompts"),
            {**seed, "model": asked},
            {"responses": config.responses},
            sizes,
        ),
        _stage(
            "rankings",
            ("traits", "prompts", "responses"),
            {**seed, "model": asked, "judge": judge},
            {"rankings": config.rankings},
            sizes,
        ),
        _stage("pairs", _inputs_of_pairs(config), pairs, {"pairs": config.pairs}, sizes),
    ]


def _contents(file: str | None, setting: str) -> str | None:
    return None if file is None else row_files.checksum(file, setting=setting)


def _reviews(location: str | None) -> str | None:
    return None if location is None else reviews.checksum(location)


def _inputs_of_pairs(config: RunConfig) -> tuple[str, ...]:
    if config.pairs.file_use == "replace":
        return ("traits",)
    if config.pairs.file is None:
        return ("traits", "responses", "rankings")
    # Prompts for the splits of their families, which the file's pairs may be of too.
    return ("traits", "prompts", "responses", "rankings")


def _training_stages(config: RunConfig, model: Json, sizes: Mapping[str, str]) -> list[Stage]:
    """The preference model and the policy."""
    seed = {"seed": config.seed}
    learnt_from = "pairs" if config.policy.objective.kind == "dpo" else "preference_model"
    return [
        _stage(
            "preference_model",
            ("traits", "pairs"),
            {**seed, "model": model, "candidates": config.responses.per_prompt},
            {"preference_model": config.preference_model},
            sizes,
        ),
        _stage(
            "policy",
            ("traits", "prompts", "responses", "rankings", learnt_from),
            {**seed, "model": model, "ablate": sorted(config.ablate)},
            {"policy": config.policy},
            sizes,
            without=_NO_EFFECT[config.policy.objective.kind],
        ),
    ]


def _evaluation(
    config: RunConfig, asked: Json, judge: Json | None, sizes: Mapping[str, str]
) -> Stage:
    """`asked`: the model and how it is shown the trait; `judge`: who judges, if another."""
    return _stage(
        "evaluation",
        ("traits", "prompts", "preference_model", "policy"),
        {
            "seed": config.seed,
            "model": asked,
            "judge": judge,
            # None of one that is not finished; the run says so before the stage is begun.
            "compared policies": compared_policies(config.evaluation.compare),
            "contents of probes": fingerprints(
                config.evaluation.probes.names, config.evaluation.probes.files
            ),
        },
        {"evaluation": config.evaluation},
        sizes,
    )


def _stage(
    name: str,
    inputs: tuple[str, ...],
    plain: dict[str, Any],
    sections: Mapping[str, Section],
    sizes: Mapping[str, str],
    *,
    without: Collection[str] = (),
) -> Stage:
    """Settings named in `without` have no effect on the stage's result."""
    decisive = {
        section: {key: value for key, value in identity(values).items() if key not in without}
        for section, values in sections.items()
    }
    return Stage(
        name=name,
        inputs=inputs,
        identity_config=plain | decisive,
        resolved_config=plain
        | {key: value.model_dump(mode="json") for key, value in sections.items()},
        size=sizes[name],
    )


def _sizes(config: RunConfig, constitution: Constitution) -> dict[str, str]:
    counts = count(config, constitution)
    is_replaced = config.prompts.file_use == "replace"
    steps = config.policy.num_steps
    rollouts = f"{config.policy.prompts_per_step * config.policy.group_size} responses"
    if config.policy.objective.kind == "dpo":
        rollouts = f"the pairs of {config.policy.prompts_per_step} prompts"
    sizes = {
        "traits": f"{counts.traits} traits",
        "prompts": f"{counts.wanted} prompts wanted",
        "responses": f"up to {counts.responses} responses",
        "rankings": f"up to {counts.answered} rankings",
        "pairs": f"up to {counts.pairs} pairs",
        "preference_model": f"{_models(config)} over up to {counts.pairs} pairs",
        "policy": f"{_warm_start(config)}{steps} steps of {rollouts}",
        "evaluation": _replies(config, constitution, counts),
        "report": "one page",
    }
    if is_replaced:
        sizes |= dict.fromkeys(
            ("prompts", "responses", "rankings", "pairs", "preference_model", "evaluation"),
            "as many as prompts.file has prompts for",
        )
    return sizes | _sizes_with_own_pairs(config, sizes)


def _replies(config: RunConfig, constitution: Constitution, counts: Counts) -> str:
    """All replies of the evaluation, and what for; judgements and other readings are not any."""
    replies = replies_at_most(
        config,
        [trait.id for trait in constitution.traits],
        num_tested=counts.tested,
        num_general=round(counts.general * config.prompts.test_share),
    )
    parts = ", ".join(f"{number} {what}" for what, number in replies.items())
    num_arms = len(OWN_ARMS) + len(config.evaluation.compare)
    return f"up to {sum(replies.values())} replies of {num_arms} arms: {parts}"


def _models(config: RunConfig) -> str:
    """The preference models that are trained, and how long."""
    section = config.preference_model
    gold = " and a gold one" if section.gold_share > 0 else ""
    return f"{_counted(section.ensemble, 'model')}{gold}, {_counted(section.epochs, 'epoch')}"


def _warm_start(config: RunConfig) -> str:
    epochs = config.policy.warm_start.epochs
    return f"{_counted(epochs, 'epoch')} of warm start, " if epochs > 0 else ""


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _sizes_with_own_pairs(config: RunConfig, sizes: Mapping[str, str]) -> dict[str, str]:
    """Sizes that depend on pairs.file."""
    if config.pairs.file is None:
        return {}
    if config.pairs.file_use == "join":
        joined = ("pairs", "preference_model")
        return {name: f"{sizes[name]} and those of pairs.file" for name in joined}
    own = "as many pairs as pairs.file has"
    return {
        "pairs": own,
        "preference_model": f"{_models(config)} over {own}",
    }
