"""How long each stage takes under a layout, and what most of it waits for."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from charactertrain.config import RunConfig
from charactertrain.config.training import PolicySection, PreferenceModelSection
from charactertrain.plan.layout import Layout
from charactertrain.plan.speeds import Engines, Speeds
from charactertrain.plan.storage import checkpoint_bytes
from charactertrain.plan.training_work import of_section, trained_parameters
from charactertrain.plan.work import Online, StageWork
from charactertrain.sizing.ranges import NOTHING, Range, later
from charactertrain.sizing.roofline import Workers

_STARTS = {"prompts": 1, "preference_model": 1, "policy": 2, "evaluation": 2}
"""Starts of engines or workers that nothing runs beside. Engines outlive data stages; the policy
starts engines, then workers; the evaluation starts the model's engines, then the preference
model's."""


@dataclass(frozen=True)
class StageTime:
    """Of one stage, in seconds."""

    parts: dict[str, Range]
    """By what is waited for; they add up."""

    @property
    def seconds(self) -> Range:
        """In all."""
        return total(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """What takes most of it; empty for a stage that takes no time."""
        longest = max(self.parts, key=lambda name: self.parts[name].middle)
        return longest if self.parts[longest].high > 0 else ""


def total(ranges: Iterable[Range]) -> Range:
    """Of one after another."""
    found = NOTHING
    for each in ranges:
        found += each
    return found


def stage_time(
    stage: str, work: StageWork, config: RunConfig, layout: Layout, speeds: Speeds
) -> StageTime:
    """Of a stage: starts, engines, workers and checkpoints, one after another."""
    starts = speeds.section.start_seconds
    parts = {"starting": Range(*starts).times(_STARTS.get(stage, 0))}
    engines = engines_of(config, layout.engines)
    parts["writing"] = total(speeds.write(job, engines) for job in work.jobs)
    parts["reading"] = total(speeds.read(job, engines) for job in work.jobs)
    section = training_section(stage, config)
    if section is not None:
        workers = workers_of(section, layout, speeds)
        parts["training"] = total(
            speeds.train(part.step, workers)[1].times(part.steps) for part in work.trained
        )
        parts["checkpoints"] = _checkpoints(section, work, speeds)
    if work.online is not None:
        parts = _added(parts, online_parts(work.online, config, layout, speeds))
    return StageTime(parts)


def _added(parts: dict[str, Range], more: dict[str, Range]) -> dict[str, Range]:
    names = [*parts, *(name for name in more if name not in parts)]
    return {name: parts.get(name, NOTHING) + more.get(name, NOTHING) for name in names}


def training_section(
    stage: str, config: RunConfig
) -> PreferenceModelSection | PolicySection | None:
    """The section of a stage that trains."""
    if stage == "preference_model":
        return config.preference_model
    return config.policy if stage == "policy" else None


def engines_of(config: RunConfig, count: int) -> Engines:
    """So many engines of the run."""
    resources = config.sampler.resources
    return Engines(
        count=count,
        gpus=max(1, math.ceil(resources.gpus_per_engine)),
        max_num_seqs=resources.max_num_seqs,
        memory_fraction=resources.memory_fraction,
        context_tokens=config.model.context_tokens,
    )


def workers_of(
    section: PreferenceModelSection | PolicySection, layout: Layout, speeds: Speeds
) -> Workers:
    """Those that share a step of a section."""
    return Workers(
        count=layout.workers,
        per_node=speeds.section.gpus_per_node,
        zero_stage=section.deepspeed.stage,
        tokens_per_microbatch=section.resources.tokens_per_microbatch,
        parameters=of_section(speeds.architecture, section).parameters,
        trained=trained_parameters(speeds.architecture, section),
    )


def _checkpoints(
    section: PreferenceModelSection | PolicySection, work: StageWork, speeds: Speeds
) -> Range:
    """Every so many steps all workers' state is written, and nothing else is done."""
    every = section.resources.checkpoint_every
    parts = [part.steps for part in work.trained if part.learns]
    if work.online is not None:
        parts.append(work.online.steps)
    # Not after the last step of each part.
    number = sum(math.ceil(steps / every) - 1 for steps in parts if steps > 0)
    slow, fast = speeds.section.storage_gb_per_second
    size = checkpoint_bytes(speeds.architecture, section) / 1e9
    return Range(size / fast, size / slow).times(number)


@dataclass(frozen=True)
class StepTime:
    """Of one policy step, in seconds."""

    rollouts: Range
    rewards: Range
    """Of the reward models, each on one engine, beside the rollouts."""
    training: Range
    weights: Range
    is_ahead: bool

    @property
    def sampling(self) -> Range:
        """Until all groups are made and scored."""
        return later(self.rollouts, self.rewards)

    @property
    def seconds(self) -> Range:
        """Of the step: engines that write ahead do so while the step before is trained."""
        if self.is_ahead:
            return later(self.sampling, self.training) + self.weights
        return self.sampling + self.training + self.weights

    def parts(self) -> dict[str, Range]:
        """What is waited for."""
        sampler = "rollouts" if self.rollouts.middle >= self.rewards.middle else "rewards"
        if not self.is_ahead:
            return {
                sampler: self.sampling,
                "training": self.training,
                "weights": self.weights,
            }
        is_training = self.training.middle >= self.sampling.middle
        name = "training" if is_training else sampler
        return {name: later(self.sampling, self.training), "weights": self.weights}


def step_time(online: Online, config: RunConfig, layout: Layout, speeds: Speeds) -> StepTime:
    """Of one policy step."""
    workers = workers_of(config.policy, layout, speeds)
    weights = NOTHING
    if online.sends_weights:
        is_one_node = layout.sampler_gpus + layout.trainer_gpus <= workers.per_node
        weights = speeds.send_weights(is_one_node=is_one_node)
    return StepTime(
        rollouts=speeds.job(online.sampled, engines_of(config, layout.policy_engines)),
        rewards=speeds.read(online.scored, engines_of(config, 1)),
        training=speeds.train(online.trained, workers)[1],
        weights=weights,
        is_ahead=online.is_ahead,
    )


def online_parts(
    online: Online, config: RunConfig, layout: Layout, speeds: Speeds
) -> dict[str, Range]:
    """Of all policy steps, and of the readings between them."""
    step = step_time(online, config, layout, speeds)
    parts = {name: part.times(online.steps) for name, part in step.parts().items()}
    samplers = {"model": engines_of(config, layout.policy_engines), "reward": engines_of(config, 1)}
    read = total(speeds.job(job, samplers[job.reader]) for job in online.read)
    return parts | {"watching": read.times(online.readings)}
