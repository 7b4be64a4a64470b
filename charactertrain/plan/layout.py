"""How GPUs are shared out: as a run's settings have it, or so that its policy steps take least."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from charactertrain.config import RunConfig
from charactertrain.config.plan import PlanSection
from charactertrain.exceptions import ConfigError
from charactertrain.plan.training_work import scorers


@dataclass(frozen=True)
class Layout:
    """Engines and workers of a run."""

    engines: int
    """Of the data stages and the evaluation."""
    gpus_per_engine: float
    """0 on CPUs."""
    policy_engines: int
    """That sample while the policy is trained."""
    reward_engines: int
    """Beside them."""
    workers: int
    gpus_per_worker: float

    @property
    def sampler_gpus(self) -> float:
        """While the policy is trained."""
        return (self.policy_engines + self.reward_engines) * self.gpus_per_engine

    @property
    def trainer_gpus(self) -> float:
        """While anything is trained."""
        return self.workers * self.gpus_per_worker

    @property
    def gpus(self) -> float:
        """The most that are held at a time."""
        return max(self.engines * self.gpus_per_engine, self.sampler_gpus + self.trainer_gpus)

    def settings(self) -> dict[str, str]:
        """The overrides that make a run so."""
        return {
            "sampler.resources.num_engines": f"[{self.engines},{self.engines}]",
            "policy.resources.engines": str(self.policy_engines),
            "cluster.num_workers": str(self.workers),
        }


def configured(config: RunConfig) -> Layout:
    """As the settings have it; the most, where they give a range."""
    workers = config.cluster.num_workers
    return Layout(
        engines=config.sampler.resources.num_engines[1],
        gpus_per_engine=config.sampler.resources.gpus_per_engine,
        policy_engines=config.policy.resources.engines,
        reward_engines=_reward_engines(config),
        workers=workers if isinstance(workers, int) else workers[1],
        gpus_per_worker=config.cluster.gpus_per_worker,
    )


def _reward_engines(config: RunConfig) -> int:
    return 0 if config.policy.objective.kind == "dpo" else scorers(config)


def proposed(
    config: RunConfig, section: PlanSection, step_seconds: Callable[[Layout], float]
) -> Layout:
    """`plan.num_gpus` shared out: of all divisions the one whose policy steps take least.

    Args:
        config: Of the run, for engines and workers as they are.
        section: Of the plan.
        step_seconds: Of the policy, under a layout.

    Raises:
        ConfigError: The run is on CPUs, or there are too few GPUs for one of each.
    """
    total, per_engine = section.num_gpus, config.sampler.resources.gpus_per_engine
    assert total is not None, "there is something to share out"
    if config.cluster.gpus_per_worker != 1 or per_engine < 1:
        raise ConfigError(
            f"plan.num_gpus is {total}, and engines and workers have "
            f"{per_engine:g} and {config.cluster.gpus_per_worker:g} GPUs; give cluster=ray "
            "sampler=vllm_gpu, with cluster.gpus_per_worker=1"
        )
    rewards = _reward_engines(config)
    samples = config.policy.objective.kind != "dpo"
    left = total - int(rewards * per_engine)
    most = int((left - 1) // per_engine) if samples else 0
    if left < 1 or (samples and most < 1):
        needed = int((rewards + samples) * per_engine) + 1
        raise ConfigError(
            f"plan.num_gpus is {total}, and the policy needs {needed}: an engine that samples, "
            f"{rewards} for reward models, and a training worker; give more, or a config with "
            "preference_model.gold_share=0 or a smaller ensemble"
        )
    layouts = [
        Layout(
            engines=max(1, int(total // per_engine)),
            gpus_per_engine=per_engine,
            policy_engines=max(1, number),
            reward_engines=rewards,
            workers=left - int(number * per_engine),
            gpus_per_worker=1,
        )
        for number in range(1 if samples else 0, most + 1)
    ]
    return min(layouts, key=step_seconds)


def laid_out(config: RunConfig, layout: Layout) -> RunConfig:
    """The config with a layout's engines and workers."""
    engines = {"num_engines": (layout.engines, layout.engines)}
    changes = {
        "sampler": {"resources": engines},
        "cluster": {"num_workers": layout.workers},
        "policy": {"resources": {"engines": layout.policy_engines}},
    }
    found: RunConfig = _updated(config, changes)
    return found


def _updated(section: Any, changes: Mapping[str, Any]) -> Any:
    values = {
        name: _updated(getattr(section, name), value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return section.model_copy(update=values)
