"""policy: the base model, optimised against the preference model with no trait in its prompt."""

import json
from contextlib import ExitStack
from typing import Any

from charactertrain import chat
from charactertrain.artifacts import Outcome, iter_rows, read_rows
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.pipeline import Work
from charactertrain.records import Prompt, Ranking, Response
from charactertrain.runtime import training
from charactertrain.stages.context import Context, response_settings
from charactertrain.stages.ensemble import EnsembleReward
from charactertrain.stages.policy_loop import EngineSources, train
from charactertrain.stages.policy_task import OptimiseTask, PolicyTask, WarmStartTask
from charactertrain.stages.preference_gates import check_gates, require_gates
from charactertrain.stages.preference_model import (
    ensemble_members,
    worker_settings,
    zero_settings,
)
from charactertrain.stages.rollouts import RolloutSettings
from charactertrain.templates import plain_conversation


def run(work: Work, context: Context) -> Outcome:
    """Warm start on the top-ranked responses, then policy steps against the preference model."""
    _check_gates(work, context)
    if not work.directory.exists("optimise.json"):
        context.session.make_room()
        _train(work, context)
    work.directory.delete("checkpoints")
    history = json.loads(work.directory.read_bytes("optimise.json"))
    files = ["optimise.json", *work.directory.files("model")]
    warm_start: list[dict[str, Any]] = []
    if context.config.policy.warm_start.epochs > 0:
        warm_start = json.loads(work.directory.read_bytes("warm_start.json"))
        files += ["warm_start.json", *work.directory.files("warm_start")]
    work.directory.write_bytes("model/README.md", _model_card(work, context).encode())
    summary = {
        "history": [*warm_start, *history],
        "sync_difference": history[0]["sync_difference"],
    }
    return Outcome(files=tuple({*files, "model/README.md"}), summary=summary)


def _train(work: Work, context: Context) -> None:
    model = str(context.model_directory)
    source, manifest = work.inputs["preference_model"]
    with ExitStack() as stack:
        members = [
            str(stack.enter_context(source.child(name).on_local_disk()))
            for name in ensemble_members(manifest)
        ]
        engines = EngineSources(
            policy=context.session.sampler(model, model),
            rewards=tuple(
                context.session.sampler(member, member, kind="reward") for member in members
            ),
        )
        training.fit(
            train,
            {"task": _task(work, context), "engines": engines},
            workers=worker_settings(context),
            storage=work.directory,
            on_metrics=lambda values: context.session.metrics.log("policy", values),
        )


def _check_gates(work: Work, context: Context) -> None:
    """Raise TrainingError for a preference model that does not pass, unless told to go on."""
    _, manifest = work.inputs["preference_model"]
    gates = check_gates(manifest.summary, context.config.preference_model.gates)
    if not context.config.policy.despite_gates:
        require_gates(gates)


def _task(work: Work, context: Context) -> PolicyTask:
    config = context.config.policy
    prompts = read_rows(*work.inputs["prompts"], "prompts", Prompt)
    _, preference_manifest = work.inputs["preference_model"]
    sampling = response_settings(
        temperature=1.0, max_tokens=config.max_tokens, ending=config.ending
    )
    optimise = OptimiseTask(
        prompts=tuple(prompt for prompt in prompts if prompt.split == "train"),
        num_steps=config.num_steps,
        prompts_per_step=config.prompts_per_step,
        rollouts=RolloutSettings(
            sampling=sampling,
            group_size=config.group_size,
            seed=context.config.seed,
        ),
        advantages=config.objective.name,
        clip_low=config.objective.clip_low,
        clip_high=config.objective.clip_high,
        kl_coef=config.objective.kl_coef,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        reward=EnsembleReward(
            levels=tuple(preference_manifest.summary["levels"].values()),
            length_slopes=tuple(preference_manifest.summary["length_slopes"].values()),
            aggregate=config.reward.aggregate,
            disagreement_coef=config.reward.disagreement_coef,
        ),
        sync_tolerance=config.sync_tolerance,
    )
    warm_start = WarmStartTask(
        examples=tuple(_best_responses(work, context)),
        epochs=config.warm_start.epochs,
        prompts_per_step=config.warm_start.prompts_per_step,
        learning_rate=config.warm_start.learning_rate,
    )
    return PolicyTask(
        model_directory=str(context.model_directory),
        precision=context.config.model.precision,
        context_tokens=context.config.model.context_tokens,
        warm_start=warm_start,
        optimise=optimise,
        fixed_ending=config.ending == "fixed",
        token_budget=config.resources.tokens_per_microbatch,
        zero=zero_settings(config),
        checkpoint_every=config.resources.checkpoint_every,
        seed=context.config.seed,
        output=work.directory,
    )


def _best_responses(work: Work, context: Context) -> list[PromptGroup]:
    """The top-ranked response of every training prompt, after the prompt alone."""
    tokenizer: Any = loading.load_tokenizer(context.model_directory)
    best = {
        ranking.response_ids[0]
        for batch in iter_rows(*work.inputs["rankings"], "rankings", Ranking)
        for ranking in batch
        if ranking.split == "train"
    }
    return [
        PromptGroup(
            tuple(chat.encode(plain_conversation(response.prompt), tokenizer)),
            (response.token_ids,),
        )
        for batch in iter_rows(*work.inputs["responses"], "responses", Response)
        for response in batch
        if response.response_id in best
    ]


def _model_card(work: Work, context: Context) -> str:
    constitution = context.constitution
    traits = "\n".join(f"- {trait.id}: {trait.statement}" for trait in constitution.traits)
    return (
        f"# {context.config.model.name}, trained on the constitution {constitution.name!r}\n\n"
        f"Made by charactertrain from `{context.config.model.path}`; artifact fingerprint "
        f"`{work.identity.fingerprint}`. The traits, as trained without showing them:\n\n"
        f"{traits}\n\n"
        "What each trait changed, with intervals, is in the run's report. A trait is a tendency, "
        "measured on held-out prompts of the run; nothing else about this model was evaluated.\n"
    )
