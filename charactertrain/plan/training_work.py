"""The training stages: the preference model's steps and the policy's."""

import math

from charactertrain.config import RunConfig
from charactertrain.config.training import PolicySection, PreferenceModelSection
from charactertrain.plan.lengths import Length, Lengths
from charactertrain.plan.work import Job, Online, StageWork, Trained, reading
from charactertrain.sizing.architecture import Architecture
from charactertrain.sizing.roofline import Passes, Step, training_passes
from charactertrain.stages.counts import Counts
from charactertrain.stages.policy.watch import reading_steps


def of_section(
    architecture: Architecture, section: PreferenceModelSection | PolicySection
) -> Architecture:
    """The model that a section trains, of the run's."""
    is_policy = isinstance(section, PolicySection)
    return architecture if is_policy else architecture.with_scalar_head()


def trained_parameters(
    architecture: Architecture, section: PreferenceModelSection | PolicySection
) -> int:
    """All of the section's model, or those of the adapters."""
    if section.lora is not None:
        return architecture.adapter_parameters(section.lora.rank)
    return of_section(architecture, section).parameters


def passes(section: PreferenceModelSection | PolicySection, *, has_reference: bool) -> Passes:
    """Of a training section's steps."""
    return training_passes(
        has_adapters=section.lora is not None,
        recomputes=section.resources.recompute_activations,
        has_reference=has_reference,
    )


def num_gold(config: RunConfig) -> int:
    """Gold models: one or none."""
    return int(config.preference_model.gold_share > 0)


def is_watched(config: RunConfig) -> bool:
    """Whether the policy is read while it is trained."""
    return config.policy.watch.every > 0 and config.policy.objective.kind == "policy_gradient"


def has_reference(config: RunConfig) -> bool:
    """Whether a frozen model reads what the policy is trained on."""
    policy = config.policy
    is_pulled = policy.objective.kind == "policy_gradient" and policy.kl.coef > 0
    is_dpo = policy.objective.kind == "dpo"
    return is_dpo or is_pulled or is_watched(config) or policy.ending == "fixed"


def preference_model(config: RunConfig, counts: Counts, lengths: Lengths) -> StageWork:
    """Steps of every model, and what is held out read by each: a prompt with all its responses."""
    section = config.preference_model
    reply = _candidate(config, lengths)
    group = lengths.plain().shown + counts.candidates * reply
    prompts = _trained_prompts(config, counts)
    parts = {"model": prompts * (1 - section.gold_share), "gold": prompts * section.gold_share}
    trained: list[Trained] = []
    for name, num_models in (("model", section.ensemble), ("gold", num_gold(config))):
        if num_models == 0:
            continue
        steps = section.epochs * math.ceil(parts[name] / section.prompts_per_step)
        step = Step(
            groups=parts[name] * section.epochs / max(steps, 1),
            tokens_per_group=group,
            # A head of one output is no layer to speak of.
            predicted_share=0.0,
            context=lengths.plain().shown + reply / 2,
            passes=passes(section, has_reference=False),
        )
        trained.append(Trained(name, num_models * steps, step))
    # One half chooses, at every evaluation; in the end all are scored. Edits of 200 responses,
    # which are scored too, are left aside.
    readings = section.evaluations / 2 + 1
    forward = Step(readings * counts.validated, group, 0.0, group / 2, FORWARD)
    trained.append(Trained("held out", section.ensemble + num_gold(config), forward))
    return StageWork(trained=tuple(trained))


FORWARD = Passes(trained=1.0, recomputed=0.0, frozen=0.0)


def _candidate(config: RunConfig, lengths: Lengths) -> float:
    section = config.responses
    return lengths.reply(section.max_tokens, is_fixed=section.ending == "fixed")


def _trained_prompts(config: RunConfig, counts: Counts) -> float:
    """Without those of traits that are left out."""
    return counts.trained * (1 - len(config.ablate) / counts.traits)


def policy(config: RunConfig, counts: Counts, lengths: Lengths) -> StageWork:
    """The warm start, and the steps of the objective."""
    section = config.policy
    trained = []
    prompts = _trained_prompts(config, counts)
    if section.warm_start.epochs > 0:
        steps = section.warm_start.epochs * math.ceil(prompts / section.warm_start.prompts_per_step)
        groups = prompts * section.warm_start.epochs / max(steps, 1)
        reply = _candidate(config, lengths)
        fixed = section.ending == "fixed"
        step = _step(groups, lengths, 1, reply, passes(section, has_reference=fixed))
        trained.append(Trained("warm start", steps, step))
    if section.objective.kind == "dpo":
        reply = _candidate(config, lengths)
        every = passes(section, has_reference=True)
        step = _step(section.prompts_per_step, lengths, counts.candidates, reply, every)
        trained.append(Trained("steps", section.num_steps, step))
        return StageWork(trained=tuple(trained))
    return StageWork(trained=tuple(trained), online=_online(config, lengths))


def _step(groups: float, lengths: Lengths, responses: int, reply: float, every: Passes) -> Step:
    prompt = lengths.plain().shown
    tokens = prompt + responses * reply
    return Step(groups, tokens, responses * reply / tokens, prompt + reply / 2, every)


def _online(config: RunConfig, lengths: Lengths) -> Online:
    section = config.policy
    is_gradient = section.objective.kind == "policy_gradient"
    reply = lengths.reply(section.max_tokens, is_fixed=section.ending == "fixed")
    number = section.prompts_per_step * section.group_size
    plain = lengths.plain()
    # A group's responses follow one prompt.
    shared = lengths.message * (1 - 1 / section.group_size)
    sampled = Job("rollouts", number, Length(plain.shown, shared), reply, section.max_tokens)
    scored = reading("rewards", number, Length(plain.shown + reply, shared), "reward")
    responses = section.group_size if is_gradient else 1
    step = _step(
        section.prompts_per_step,
        lengths,
        responses,
        reply,
        passes(section, has_reference=has_reference(config)),
    )
    read: tuple[Job, ...] = ()
    readings = 0
    if is_watched(config):
        readings = len(reading_steps(section.num_steps, section.watch.every))
        replies = section.watch.prompts * section.watch.responses_per_prompt
        whole = Length(plain.shown + reply, 0.0)
        read = (
            Job("watched", replies, plain, reply, section.max_tokens),
            reading("watched rewards", replies * scorers(config), whole, "reward"),
        )
    return Online(
        steps=section.num_steps,
        sampled=sampled,
        scored=scored,
        trained=step,
        sends_weights=is_gradient,
        is_ahead=section.max_staleness > 0 or not is_gradient,
        read=read,
        readings=readings,
        scorers=config.preference_model.ensemble,
    )


def scorers(config: RunConfig) -> int:
    """Engines of reward models while the policy is trained, each of one model."""
    gold = num_gold(config) if is_watched(config) else 0
    return config.preference_model.ensemble + gold
