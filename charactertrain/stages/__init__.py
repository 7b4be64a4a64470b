"""The nine stages in order: what each reads, what decides its result, and where it is written.

This file is light; a stage's module is imported when the stage runs.
"""

from collections.abc import Callable, Mapping
from typing import Any

from charactertrain.config import RunConfig, Section, identity
from charactertrain.constitution import Constitution
from charactertrain.pipeline import Stage
from charactertrain.stages import prompt_files

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
    asking = {
        "trait_placement": config.model.trait_placement,
        "traits_shown": config.model.traits_shown,
    }
    synthesis = {
        "prompt_synthesis": config.model.prompt_synthesis,
        "messages_per_call": config.model.messages_per_call,
    }
    own_file, judge = config.prompts.file, config.rankings.judge_model
    own_prompts = None if own_file is None else prompt_files.checksum(own_file)
    seed = {"seed": config.seed}
    candidates = config.responses.per_prompt
    sizes = _sizes(config, constitution)
    character = {"constitution": constitution.model_dump(mode="json")}
    return [
        _stage("traits", (), character, {}, sizes),
        _stage(
            "prompts",
            ("traits",),
            {
                **seed,
                "model": {**model, **asking, **synthesis},
                # The template check draws responses as the responses stage does.
                "responses": {
                    "temperature": config.responses.temperature,
                    "max_tokens": config.responses.max_tokens,
                    "ending": config.responses.ending,
                },
                "own_prompts": own_prompts,
            },
            {"prompts": config.prompts},
            sizes,
        ),
        _stage(
            "responses",
            ("traits", "prompts"),
            {**seed, "model": {**model, **asking}},
            {"responses": config.responses},
            sizes,
        ),
        _stage(
            "rankings",
            ("traits", "prompts", "responses"),
            {
                **seed,
                "model": {**model, **asking},
                "judge": None if judge is None else dict(identify(judge)),
            },
            {"rankings": config.rankings},
            sizes,
        ),
        _stage("pairs", ("traits", "responses", "rankings"), {}, {"pairs": config.pairs}, sizes),
        _stage(
            "preference_model",
            ("traits", "pairs"),
            {**seed, "model": model, "candidates": candidates},
            {"preference_model": config.preference_model},
            sizes,
        ),
        _stage(
            "policy",
            ("traits", "prompts", "responses", "rankings", "preference_model"),
            {**seed, "model": model},
            {"policy": config.policy},
            sizes,
        ),
        _stage(
            "evaluation",
            ("traits", "prompts", "preference_model", "policy"),
            {**seed, "model": {**model, **asking}},
            {"evaluation": config.evaluation},
            sizes,
        ),
        _stage("report", NAMES[:-1], {}, {}, sizes),
    ]


def _stage(
    name: str,
    inputs: tuple[str, ...],
    plain: dict[str, Any],
    sections: Mapping[str, Section],
    sizes: Mapping[str, str],
) -> Stage:
    return Stage(
        name=name,
        inputs=inputs,
        identity_config=plain | {key: identity(value) for key, value in sections.items()},
        resolved_config=plain
        | {key: value.model_dump(mode="json") for key, value in sections.items()},
        size=sizes[name],
    )


def _sizes(config: RunConfig, constitution: Constitution) -> dict[str, str]:
    # Without general prompts, which no candidate is sampled for.
    share = 1 - config.prompts.kind_shares.get("general", 0.0)
    wanted = round(len(constitution.traits) * config.prompts.per_trait * share)
    is_replaced = config.prompts.file_use == "replace"
    trained = round(wanted * (1 - config.prompts.test_share))
    tested = wanted - trained
    candidates = config.responses.per_prompt
    pairs = trained * candidates * (candidates - 1) // 2
    steps = config.policy.num_steps
    rollouts = config.policy.prompts_per_step * config.policy.group_size
    sizes = {
        "traits": f"{len(constitution.traits)} traits",
        "prompts": f"{wanted} prompts wanted",
        "responses": f"up to {trained * candidates} responses",
        "rankings": f"up to {trained} rankings",
        "pairs": f"up to {pairs} pairs",
        "preference_model": f"{config.preference_model.epochs} epochs over up to {pairs} pairs",
        "policy": f"{steps} steps of {rollouts} responses",
        "evaluation": f"up to {2 * tested * config.evaluation.responses_per_prompt} responses",
        "report": "one page",
    }
    if is_replaced:
        sizes |= dict.fromkeys(
            ("prompts", "responses", "rankings", "pairs", "preference_model", "evaluation"),
            "as many as prompts.file has prompts for",
        )
    return sizes
