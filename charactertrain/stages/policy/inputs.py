"""What the policy stage hands to its workers and to the buffer: of the config and the inputs."""

from collections.abc import Sequence
from typing import Any

from charactertrain import chat
from charactertrain.artifacts import iter_rows, read_rows
from charactertrain.config.objective import CorrectionSection, PolicyGradientSection
from charactertrain.config.training import PolicySection
from charactertrain.exceptions import ConfigError
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.pipeline import Work
from charactertrain.records import NO_TRAIT, PreferencePair, Prompt, Ranking, Response, Trait
from charactertrain.runtime.sampling import SamplerSource
from charactertrain.stages.context import Context, response_settings
from charactertrain.stages.policy.dpo import DpoTask, with_sampled_tokens
from charactertrain.stages.policy.ledger import LedgerSettings
from charactertrain.stages.policy.objective import Correction, PolicyGradient
from charactertrain.stages.policy.rollout_buffer import BufferSettings, Gold
from charactertrain.stages.policy.rollouts import RolloutSettings
from charactertrain.stages.policy.task import OptimiseTask, PolicyTask, WarmStartTask, WatchTask
from charactertrain.stages.policy.watch import watch_prompts, watch_settings
from charactertrain.stages.preference_model.data import read_examples
from charactertrain.stages.preference_model.ensemble import EnsembleReward, LengthBand
from charactertrain.stages.preference_model.stage import (
    ensemble_members,
    lora_settings,
    zero_settings,
)
from charactertrain.stages.prompts.stream import PromptStream
from charactertrain.templates import plain_conversation

_AHEAD = 2
"""Steps that engines run ahead where no weights are sent: enough to be never waited for."""


def is_watched(config: PolicySection) -> bool:
    """Whether the policy is read while it is trained."""
    return config.watch.every > 0 and isinstance(config.objective, PolicyGradientSection)


def buffer_settings(
    work: Work,
    context: Context,
    prompts: Sequence[Prompt],
    rewards: Sequence[SamplerSource],
    gold: Gold | None,
) -> BufferSettings:
    """What the buffer makes groups of rollouts of, and how."""
    config, seed = context.config.policy, context.config.seed
    resources = context.config.sampler.resources
    # The starting policy alone is asked where nothing is sent, and no token is too old.
    is_online = config.objective.kind == "policy_gradient"
    return BufferSettings(
        ledger=LedgerSettings(
            num_steps=config.num_steps,
            per_step=config.prompts_per_step,
            ahead=config.max_staleness if is_online else _AHEAD,
            max_staleness=config.max_staleness if is_online else config.num_steps,
            max_refills=_max_refills(config),
        ),
        rollouts=RolloutSettings(
            sampling=response_settings(
                temperature=1.0, max_tokens=config.max_tokens, ending=config.ending
            ),
            group_size=config.group_size,
            seed=seed,
        ),
        prompts=_prompt_stream(prompts, context),
        reward=reward_of(ensemble_members(work.inputs["preference_model"][1]), work, context),
        rewards=tuple(rewards),
        gold=gold,
        # Enough that the next is there when one ends, and few enough to be shared out evenly.
        groups_per_engine=-(-2 * resources.max_num_seqs // config.group_size),
    )


def _max_refills(config: PolicySection) -> int:
    """None where equal rewards teach something: against a running mean, or with the KL in them."""
    objective = config.objective
    if isinstance(objective, PolicyGradientSection):
        is_by_group = objective.advantages != "reinforce" and config.kl.place == "loss"
        return config.max_refills if is_by_group else 0
    return config.max_refills


def fitting_prompts(work: Work, context: Context) -> tuple[list[Prompt], int]:
    """The prompts that leave room for a response, and how many do not."""
    tokenizer: Any = loading.load_tokenizer(context.model_directory)
    room = context.config.model.context_tokens - context.config.policy.max_tokens
    # General prompts are in a table of their own.
    prompts = [
        prompt
        for table in ("prompts", "general")
        for prompt in read_rows(*work.inputs["prompts"], table, Prompt)
        if prompt.trait_id not in context.config.ablate
    ]
    fitting = [
        prompt
        for prompt in prompts
        if len(chat.encode(plain_conversation(prompt.text), tokenizer)) <= room
    ]
    return fitting, len(prompts) - len(fitting)


def _prompt_stream(prompts: Sequence[Prompt], context: Context) -> PromptStream:
    share = context.config.policy.general_share
    trained = [prompt for prompt in prompts if prompt.split == "train"]
    general = [prompt for prompt in trained if prompt.kind == "general"]
    traits = [prompt for prompt in trained if prompt.kind != "general"]
    if share > 0 and not general:
        raise ConfigError(
            f"policy.general_share is {share}, and the prompts artifact has no general prompts for "
            "training: give prompts.kinds.general a weight, or general_share 0"
        )
    if not traits:
        raise ConfigError(
            "no training prompt leaves room for policy.max_tokens in model.context_tokens: lower "
            "the one or raise the other"
        )
    return PromptStream(traits, general, general_share=share, seed=context.config.seed)


def reward_of(members: Sequence[str], work: Work, context: Context) -> EnsembleReward:
    """The rewards of a preference model's members, as one."""
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


def policy_task(work: Work, context: Context, watch: WatchTask | None = None) -> PolicyTask:
    """What the workers are given, whatever the objective."""
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
        lora=lora_settings(config),
        zero=zero_settings(config),
        checkpoint_every=config.resources.checkpoint_every,
        watch=watch,
        seed=context.config.seed,
        output=work.directory,
    )


def watch_task(work: Work, context: Context, prompts: Sequence[Prompt]) -> WatchTask:
    """What is read of the policy while it is trained: on prompts for which a trait matters."""
    config = context.config.policy.watch
    traits = read_rows(*work.inputs["traits"], "traits", Trait)
    return WatchTask(
        settings=watch_settings(config),
        prompts=watch_prompts([p for p in prompts if p.kind != "general"], config.prompts),
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
        correction=_correction(objective.correction),
        kl_coef=config.kl.coef,
        kl_target=config.kl.target,
        kl_place=config.kl.place,
        kl_estimator=config.kl.estimator,
    )


def _correction(section: CorrectionSection | None) -> Correction | None:
    return None if section is None else Correction(section.kind, section.level, section.cap)


def _best_responses(work: Work, context: Context) -> list[PromptGroup]:
    """The top-ranked response of every training prompt, after the prompt alone."""
    tokenizer: Any = loading.load_tokenizer(context.model_directory)
    best = {
        ranking.response_ids[0]
        for batch in iter_rows(*work.inputs["rankings"], "rankings", Ranking)
        for ranking in batch
        if ranking.split == "train" and ranking.trait_id not in context.config.ablate
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


def dpo_task(work: Work, context: Context, beta: float) -> DpoTask:
    """The pairs that a policy learns from without a preference model."""
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
    return DpoTask(
        prompts=tuple(with_sampled_tokens(examples, token_ids, end)),
        prompts_per_step=config.prompts_per_step,
        beta=beta,
    )
