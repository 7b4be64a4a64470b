"""A whole plan: the work of a run, the GPUs that share it, and what follows from both."""

from dataclasses import dataclass

from charactertrain.config import RunConfig
from charactertrain.config.plan import PlanSection, RatesFile
from charactertrain.constitution import Constitution
from charactertrain.exceptions import ConfigError
from charactertrain.models.configs import read_config
from charactertrain.plan.fit import Held, held
from charactertrain.plan.hours import StageTime, stage_time, step_time
from charactertrain.plan.layout import Layout, configured, laid_out, proposed
from charactertrain.plan.measured import read_rates
from charactertrain.plan.speeds import Speeds, device_of
from charactertrain.plan.storage import Stored, models_stored, stored
from charactertrain.plan.work import StageWork
from charactertrain.plan.workload import lengths, workload
from charactertrain.sizing.architecture import from_config
from charactertrain.stages.counts import count
from charactertrain.stages.report.run import gpus_held


@dataclass(frozen=True)
class Plan:
    """What a run takes."""

    config: RunConfig
    """With the layout's engines and workers."""
    section: PlanSection
    speeds: Speeds
    layout: Layout
    is_proposed: bool
    """Whether the layout is the plan's own, and not that of the settings."""
    work: dict[str, StageWork]
    times: dict[str, StageTime] | None
    """By stage; None where no rate is known."""
    gpus: dict[str, float]
    """That each stage may hold."""
    held: Held | None
    """None on CPUs."""
    rows: dict[str, float]
    """Bytes of artifacts of rows."""
    models: dict[str, Stored]
    """Bytes of artifacts of models."""
    notes: tuple[str, ...]


def make_plan(config: RunConfig, constitution: Constitution, section: PlanSection) -> Plan:
    """Size a run; raises ConfigError where the plan's own settings contradict one another."""
    if config.policy.resources.colocated is not None:
        raise ConfigError(
            "policy.resources.colocated: engines and training workers share GPUs, and a plan gives "
            "each its own; plan it with placement@policy.resources=separate, whose memory of a "
            "training worker and of an engine are what one GPU would have to hold"
        )
    architecture = from_config(read_config(config.model.path), config.model.path)
    measured = None if section.rates is None else read_rates(section.rates)
    speeds = Speeds(architecture, device_of(section.gpu, section), section, measured)
    work = workload(config, constitution, section)
    layout = configured(config)
    if section.num_gpus is not None:
        layout = proposed(config, section, lambda each: _step_seconds(work, config, each, speeds))
    config = laid_out(config, layout)
    counts, found = count(config, constitution), lengths(config, constitution, section)
    has_gpus = layout.gpus > 0
    times = None
    if has_gpus or _is_whole(measured):
        times = {
            name: stage_time(name, each, config, layout, speeds) for name, each in work.items()
        }
    return Plan(
        config=config,
        section=section,
        speeds=speeds,
        layout=layout,
        is_proposed=section.num_gpus is not None,
        work=work,
        times=times,
        gpus={name: gpus_held(name, config) for name in work},
        held=held(config, work, layout, speeds) if has_gpus else None,
        rows=stored(config, section, counts, found, work),
        models=models_stored(config, architecture),
        notes=tuple(_notes(config, measured, has_times=times is not None)),
    )


def _is_whole(measured: RatesFile | None) -> bool:
    """Whether nothing is left to the rooflines, which are of GPUs."""
    if measured is None:
        return False
    return None not in (
        measured.write_tokens_per_second,
        measured.read_tokens_per_second,
        measured.train_tokens_per_second,
    )


def _step_seconds(
    work: dict[str, StageWork], config: RunConfig, layout: Layout, speeds: Speeds
) -> float:
    """Of a policy step; of a policy that samples nothing, of its training."""
    online = work["policy"].online
    if online is not None:
        return step_time(online, config, layout, speeds).seconds.middle
    return stage_time("policy", work["policy"], config, layout, speeds).seconds.middle


def _notes(config: RunConfig, measured: RatesFile | None, *, has_times: bool) -> list[str]:
    """What the numbers leave out."""
    notes = []
    if not has_times:
        notes.append(
            "engines and workers are on CPUs, of which no rates are assumed: for hours give "
            "plan.rates=<a finished run on such a machine>, or cluster=ray sampler=vllm_gpu"
        )
    if config.cluster.gpus_per_worker == 0:
        notes.append("storage is of weights in bf16: a CPU that computes in fp32 writes twice that")
    if config.rankings.ranker == "auto":
        notes.append(
            "rankings.ranker=auto is counted as the judge, the one that reads most of those that "
            "it may take: ranker=contrast plans the least"
        )
    files = {"prompts.file": config.prompts.file, "pairs.file": config.pairs.file}
    for key, file in files.items():
        if file is not None:
            notes.append(f"{key}: its rows are not counted, and those that it replaces are")
    for key, judge in (
        ("rankings.judge_model", config.rankings.judge_model),
        ("evaluation.judge.judge_model", config.evaluation.judge.judge_model),
    ):
        if judge is not None:
            notes.append(f"{key}: counted as if it were of the trained model's size")
    if measured is not None:
        notes.append(
            "measured rates are of the GPUs (or cores) that they were measured on, and scaled by "
            f"parameters from {measured.parameters:,}"
        )
    return notes
