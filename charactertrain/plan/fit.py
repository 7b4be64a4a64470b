"""What a run holds on each GPU, what of it does not fit, and what to change."""

from collections.abc import Sequence
from dataclasses import dataclass

from charactertrain.config import RunConfig
from charactertrain.config.training import PolicySection, PreferenceModelSection
from charactertrain.plan.hours import engines_of, step_time, training_section
from charactertrain.plan.layout import Layout
from charactertrain.plan.speeds import GIB, Speeds
from charactertrain.plan.training_work import has_reference, of_section
from charactertrain.plan.work import Online, StageWork
from charactertrain.sizing.memory import (
    EngineMemory,
    TrainerMemory,
    Training,
    engine_memory,
    trainer_memory,
)


@dataclass(frozen=True)
class Held:
    """On one GPU of a kind."""

    trainers: dict[str, TrainerMemory]
    """By stage."""
    engine: EngineMemory
    """Of all GPUs of an engine."""
    problems: tuple[str, ...]
    """What does not fit, each with what to change."""
    advice: tuple[str, ...]
    """What fits, and leaves GPUs idle or texts waiting."""


def held(config: RunConfig, work: dict[str, StageWork], layout: Layout, speeds: Speeds) -> Held:
    """The memory of training workers and engines, against that of a GPU."""
    trainers = {
        stage: trainer_memory(
            of_section(speeds.architecture, section),
            _training(stage, section, config, layout, work),
        )
        for stage in ("preference_model", "policy")
        if (section := training_section(stage, config)) is not None
    }
    engines = engines_of(config, layout.engines)
    engine = engine_memory(
        speeds.architecture,
        allowed_bytes=engines.memory_fraction * engines.gpus * speeds.device.memory_bytes,
        reserve_bytes=engines.gpus * speeds.section.engine_reserve_gib * GIB,
    )
    problems = [
        *_trainer_problems(trainers, config, layout, speeds),
        *_engine_problems(engine, config, speeds),
    ]
    advice = [
        *_idle(config, layout),
        *_waiting(engine, config, work),
        *_scoring(work["policy"].online, config, layout, speeds),
    ]
    return Held(trainers, engine, tuple(problems), tuple(advice))


def _training(
    stage: str,
    section: PreferenceModelSection | PolicySection,
    config: RunConfig,
    layout: Layout,
    work: dict[str, StageWork],
) -> Training:
    """A row is as long as the budget, or as its longest group."""
    steps = [part.step for part in work[stage].trained if part.learns]
    online = work[stage].online
    if online is not None:
        steps.append(online.trained)
    longest = max((step.tokens_per_group for step in steps), default=0.0)
    tokens = max(section.resources.tokens_per_microbatch, round(longest))
    predicted = max((step.predicted_share for step in steps), default=0.0)
    return Training(
        workers=layout.workers,
        zero_stage=section.deepspeed.stage,
        is_offloaded=section.deepspeed.offload,
        adapter_rank=None if section.lora is None else section.lora.rank,
        has_reference=stage == "policy" and has_reference(config),
        recomputes=section.resources.recompute_activations,
        tokens_per_microbatch=tokens,
        predicted_tokens=round(predicted * tokens),
    )


def _trainer_problems(
    trainers: dict[str, TrainerMemory], config: RunConfig, layout: Layout, speeds: Speeds
) -> list[str]:
    room = speeds.device.memory_bytes - speeds.section.trainer_reserve_gib * GIB
    return [
        f"{stage}: a training worker needs {memory.total / GIB:.0f} GiB, and a "
        f"{speeds.section.gpu.name} has {room / GIB:.0f} beside a reserve of "
        f"{speeds.section.trainer_reserve_gib:g}: {_relief(stage, memory, config)}"
        for stage, memory in trainers.items()
        if memory.total > room
    ]


def _relief(stage: str, memory: TrainerMemory, config: RunConfig) -> str:
    """Settings that make the greatest parts smaller."""
    section = training_section(stage, config)
    assert section is not None, "a stage that trains"
    ways = []
    state = memory.parameters + memory.gradients + memory.optimizer - memory.on_host
    per_row = memory.activations + memory.logits
    if per_row > state / 4 and not section.resources.recompute_activations:
        ways.append(f"{stage}.resources.recompute_activations=true")
    if per_row > state / 4:
        less = section.resources.tokens_per_microbatch // 2
        ways.append(f"{stage}.resources.tokens_per_microbatch={less}")
    if section.deepspeed.stage < 3:
        ways.append(f"deepspeed@{stage}.deepspeed=zero3")
    elif not section.deepspeed.offload:
        ways.append("more training workers (cluster.num_workers)")
        ways.append(f"deepspeed@{stage}.deepspeed=zero3_offload")
    if section.lora is None:
        ways.append(f"{stage}.lora={{rank: 32, alpha: 64}}")
    return "give " + ", or ".join(ways) if ways else "a smaller model, or GPUs with more memory"


def _engine_problems(engine: EngineMemory, config: RunConfig, speeds: Speeds) -> list[str]:
    context, resources = config.model.context_tokens, config.sampler.resources
    if engine.cache_tokens >= context:
        return []
    name, gpus = speeds.section.gpu.name, max(1, round(resources.gpus_per_engine))
    found = (
        f"an engine's weights are {engine.weights / GIB:.0f} GiB, and {gpus} {name} leave its KV "
        f"cache room for {engine.cache_tokens:.0f} tokens, of model.context_tokens {context}: "
    )
    more = 2 * gpus
    return [
        f"{found}lower model.context_tokens, raise sampler.resources.memory_fraction, give "
        f"sampler.resources.tensor_parallel_size={more} with sampler.resources.gpus_per_engine="
        f"{more}, or GPUs with more memory"
    ]


def _idle(config: RunConfig, layout: Layout) -> list[str]:
    """Workers that have nothing to do, since no group of a step is divided."""
    settings = {
        "preference_model.prompts_per_step": config.preference_model.prompts_per_step,
        "policy.prompts_per_step": config.policy.prompts_per_step,
        "policy.warm_start.prompts_per_step": config.policy.warm_start.prompts_per_step,
    }
    if config.policy.warm_start.epochs == 0:
        del settings["policy.warm_start.prompts_per_step"]
    return [
        f"{key} is {groups}, and of {layout.workers} training workers {layout.workers - groups} "
        f"have nothing to do, since a prompt's responses are not divided: with {layout.workers} "
        "or more all work, on another result (a larger step wants another learning rate)"
        for key, groups in settings.items()
        if groups < layout.workers
    ]


def _scoring(online: Online | None, config: RunConfig, layout: Layout, speeds: Speeds) -> list[str]:
    """Where the one engine of a preference model is slower than all that sample."""
    if online is None:
        return []
    step = step_time(online, config, layout, speeds)
    if step.rewards.middle <= step.rollouts.middle:
        return []
    return [
        f"policy: {layout.policy_engines} engines write a step's responses in "
        f"{step.rollouts.middle:.1f} s, and the preference model's one engine scores them in "
        f"{step.rewards.middle:.1f}: more engines bring nothing"
    ]


def _waiting(engine: EngineMemory, config: RunConfig, work: dict[str, StageWork]) -> list[str]:
    """Texts that wait for room in the KV cache."""
    at_once = config.sampler.resources.max_num_seqs
    jobs: Sequence[float] = [
        job.length.shown + job.written
        for stage in work.values()
        for job in stage.jobs
        if job.written > 1
    ]
    longest = max(jobs, default=0.0)
    if longest == 0 or engine.cache_tokens <= 0 or engine.sequences(longest) >= at_once:
        return []
    return [
        f"sampler.resources.max_num_seqs is {at_once}, and the KV cache has room for "
        f"{engine.sequences(longest):.0f} texts of {longest:.0f} tokens: the others wait"
    ]
