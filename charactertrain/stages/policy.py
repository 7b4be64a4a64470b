"""policy: the base model, optimised against the preference model with no trait in its prompt."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray

from charactertrain import chat
from charactertrain.artifacts import Outcome, iter_rows, read_rows
from charactertrain.config.objective import DpoSection, PolicyGradientSection
from charactertrain.config.training import PolicySection
from charactertrain.exceptions import ConfigError
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.pipeline import Work
from charactertrain.records import NO_TRAIT, PreferencePair, Prompt, Ranking, Response, Trait
from charactertrain.runtime import training
from charactertrain.runtime.sampling import SamplerSource
from charactertrain.stages.context import Context, response_settings
from charactertrain.stages.dpo import DpoTask, with_sampled_tokens
from charactertrain.stages.dpo import train as train_on_pairs
from charactertrain.stages.ensemble import EnsembleReward, LengthBand
from charactertrain.stages.ledger import LedgerSettings
from charactertrain.stages.policy_loop import Sampling, train
from charactertrain.stages.policy_monitor import BEST
from charactertrain.stages.policy_objective import PolicyGradient
from charactertrain.stages.policy_task import OptimiseTask, PolicyTask, WarmStartTask, WatchTask
from charactertrain.stages.policy_watch import watch_prompts, watch_settings
from charactertrain.stages.preference_data import read_examples
from charactertrain.stages.preference_gates import check_gates, require_gates
from charactertrain.stages.preference_model import (
    GOLD,
    ensemble_members,
    worker_settings,
    zero_settings,
)
from charactertrain.stages.prompt_stream import PromptStream
from charactertrain.stages.rollout_buffer import BufferSettings, Gold, RolloutBuffer
from charactertrain.stages.rollouts import RolloutSettings
from charactertrain.templates import plain_conversation


def run(work: Work, context: Context) -> Outcome:
    """Warm start on the top-ranked responses, then steps of the objective."""
    objective = context.config.policy.objective
    if not isinstance(objective, DpoSection):
        _check_gates(work, context)
    if not work.directory.exists("optimise.json"):
        context.session.make_room()
        if isinstance(objective, DpoSection):
            _train_on_pairs(work, context, objective.beta)
        else:
            _train_on_rewards(work, context)
    work.directory.delete("checkpoints")
    history = json.loads(work.directory.read_bytes("optimise.json"))
    files = ["optimise.json", *work.directory.files("model")]
    warm_start: list[dict[str, Any]] = []
    if context.config.policy.warm_start.epochs > 0:
        warm_start = json.loads(work.directory.read_bytes("warm_start.json"))
        files += ["warm_start.json", *work.directory.files("warm_start")]
    work.directory.write_bytes("model/README.md", _model_card(work, context).encode())
    watch: dict[str, Any] = {}
    if is_watched(context.config.policy):
        watch = {"watch": json.loads(work.directory.read_bytes("watch.json"))}
        work.directory.delete(BEST)
        files.append("watch.json")
    summary = {
        **watch,
        "history": [*warm_start, *history],
        "sync_difference": history[0].get("sync_difference"),
    }
    return Outcome(files=tuple({*files, "model/README.md"}), summary=summary)


def _train_on_pairs(work: Work, context: Context, beta: float) -> None:
    context.session.connect()
    config = context.config.policy
    tokenizer: Any = loading.load_tokenizer(context.model_directory)
    pairs = (
        pair
        for batch in iter_rows(*work.inputs["pairs"], "pairs", PreferencePair)
        for pair in batch
        if pair.split == "train" and pair.trait_id != NO_TRAIT
    )
    examples, _ = read_examples(
        pairs, tokenizer, context_tokens=context.config.model.context_tokens
    )
    token_ids = {
        response.response_id: response.token_ids
        for batch in iter_rows(*work.inputs["responses"], "responses", Response)
        for response in batch
    }
    end = [tokenizer.eos_token_id] if config.ending == "natural" else []
    dpo = DpoTask(
        prompts=tuple(with_sampled_tokens(examples, token_ids, end)),
        prompts_per_step=config.prompts_per_step,
        beta=beta,
    )
    training.fit(
        train_on_pairs,
        {"task": _task(work, context), "dpo": dpo},
        workers=worker_settings(context),
        storage=work.directory,
        on_metrics=lambda values: context.session.metrics.log("policy", values),
    )


def _train_on_rewards(work: Work, context: Context) -> None:
    config, session = context.config.policy, context.session
    model = str(context.model_directory)
    source, manifest = work.inputs["preference_model"]
    with ExitStack() as stack:
        members = [
            str(stack.enter_context(source.child(name).on_local_disk()))
            for name in ensemble_members(manifest)
        ]
        engines = session.sampler(model, model)
        rewards = [session.sampler(member, member, kind="reward") for member in members]
        gold = None
        if is_watched(config) and GOLD in manifest.summary["levels"]:
            directory = str(stack.enter_context(source.child(GOLD).on_local_disk()))
            gold = Gold(
                session.sampler(directory, directory, kind="reward"), _reward([GOLD], work, context)
            )
        # Of the driver, so that it outlives an attempt; Ray starts it again should it die.
        buffer: Any = (
            ray.remote(RolloutBuffer)
            .options(num_cpus=0, max_restarts=-1)
            .remote(_buffer_settings(work, context, rewards, gold), model)
        )
        try:
            training.fit(
                train,
                {
                    "task": _task(work, context),
                    "sampling": Sampling(engines, config.resources.engines, buffer),
                },
                workers=worker_settings(context),
                storage=work.directory,
                on_metrics=lambda values: session.metrics.log("policy", values),
            )
        finally:
            ray.kill(buffer)


def is_watched(config: PolicySection) -> bool:
    """Whether the policy is read while it is trained."""
    return config.watch.every > 0 and isinstance(config.objective, PolicyGradientSection)


def _buffer_settings(
    work: Work, context: Context, rewards: Sequence[SamplerSource], gold: Gold | None
) -> BufferSettings:
    config, seed = context.config.policy, context.config.seed
    resources = context.config.sampler.resources
    # The starting policy alone is asked where nothing is sent.
    is_online = config.objective.kind == "policy_gradient"
    return BufferSettings(
        ledger=LedgerSettings(
            per_step=config.prompts_per_step,
            max_staleness=config.max_staleness if is_online else config.num_steps,
            max_refills=config.max_refills,
        ),
        rollouts=RolloutSettings(
            sampling=response_settings(
                temperature=1.0, max_tokens=config.max_tokens, ending=config.ending
            ),
            group_size=config.group_size,
            seed=seed,
        ),
        prompts=_prompt_stream(work, context),
        reward=_reward(ensemble_members(work.inputs["preference_model"][1]), work, context),
        rewards=tuple(rewards),
        gold=gold,
        # Enough that the next is there when one ends, and few enough to be shared out evenly.
        groups_per_engine=-(-2 * resources.max_num_seqs // config.group_size),
    )


def _prompt_stream(work: Work, context: Context) -> PromptStream:
    share = context.config.policy.general_share
    prompts = [
        prompt
        for prompt in read_rows(*work.inputs["prompts"], "prompts", Prompt)
        if prompt.split == "train"
    ]
    general = [prompt for prompt in prompts if prompt.kind == "general"]
    if share > 0 and not general:
        raise ConfigError(
            f"policy.general_share is {share}, and the prompts artifact has no general prompts for "
            "training: give prompts.kinds.general a weight, or general_share 0"
        )
    traits = [prompt for prompt in prompts if prompt.kind != "general"]
    return PromptStream(traits, general, general_share=share, seed=context.config.seed)


def _reward(members: Sequence[str], work: Work, context: Context) -> EnsembleReward:
    config = context.config.policy.reward
    _, manifest = work.inputs["preference_model"]
    band = config.length
    return EnsembleReward(
        levels=tuple(manifest.summary["levels"][name] for name in members),
        length_slopes=tuple(manifest.summary["length_slopes"][name] for name in members),
        reference_tokens=context.config.policy.max_tokens,
        aggregate=config.aggregate,
        disagreement_coef=config.disagreement_coef,
        length=None if band is None else LengthBand(band.shortest, band.longest, band.cost),
    )


def _check_gates(work: Work, context: Context) -> None:
    """Raise TrainingError for a preference model that does not pass, unless told to go on."""
    _, manifest = work.inputs["preference_model"]
    gates = check_gates(manifest.summary, context.config.preference_model.gates)
    if not context.config.policy.despite_gates:
        require_gates(gates)


def _task(work: Work, context: Context) -> PolicyTask:
    config = context.config.policy
    optimise = OptimiseTask(
        objective=_policy_gradient(config),
        num_steps=config.num_steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
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
        watch=_watch(work, context) if is_watched(config) else None,
        seed=context.config.seed,
        output=work.directory,
    )


def _watch(work: Work, context: Context) -> WatchTask:
    config = context.config.policy.watch
    prompts = read_rows(*work.inputs["prompts"], "prompts", Prompt)
    traits = read_rows(*work.inputs["traits"], "traits", Trait)
    return WatchTask(
        settings=watch_settings(config),
        prompts=watch_prompts(prompts, config.prompts),
        detectors={t.trait_id: t.detector for t in traits if t.detector is not None},
    )


def _policy_gradient(config: PolicySection) -> PolicyGradient | None:
    objective = config.objective
    if not isinstance(objective, PolicyGradientSection):
        return None
    return PolicyGradient(
        advantages=objective.advantages,
        baseline_decay=objective.baseline_decay,
        loss=objective.loss,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        dual_clip=objective.dual_clip,
        aggregate=objective.aggregate,
        correction=objective.correction.kind,
        correction_level=objective.correction.level,
        cap=objective.correction.cap,
        kl_coef=config.kl.coef,
        kl_place=config.kl.place,
        kl_estimator=config.kl.estimator,
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
