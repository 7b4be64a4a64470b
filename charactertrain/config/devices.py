"""What the settings ask of devices, and where those of engines and training cannot agree."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from charactertrain.config.run import RunConfig

_SPARE = 0.05
"""Least share of a GPU that is left to the training worker on it."""


def device_problems(config: "RunConfig") -> list[str]:
    """What is wrong with them, each with the ways out."""
    problems = [*_worker_problems(config), *_group_problems(config), *_colocation_problems(config)]
    engines = config.sampler.resources
    if (config.cluster.gpus_per_worker > 0) != (engines.gpus_per_engine > 0):
        problems.append(
            f"cluster.gpus_per_worker is {config.cluster.gpus_per_worker} and sampler.resources."
            f"gpus_per_engine is {engines.gpus_per_engine}: weights go from workers to engines of "
            "the same kind of device; give both GPUs (sampler=vllm_gpu and "
            "cluster.gpus_per_worker=1) or neither"
        )
    if engines.gpus_per_engine >= 1 and engines.gpus_per_engine != engines.tensor_parallel_size:
        problems.append(
            f"sampler.resources: gpus_per_engine {engines.gpus_per_engine} and "
            f"tensor_parallel_size {engines.tensor_parallel_size} differ; an engine takes one GPU "
            "per tensor-parallel rank"
        )
    return problems


def _worker_problems(config: "RunConfig") -> list[str]:
    problems = []
    fewest, most = config.sampler.resources.num_engines
    if fewest > most:
        problems.append(f"sampler.resources.num_engines is ({fewest}, {most}); give (fewest, most)")
    cluster = config.cluster
    workers = cluster.num_workers
    least, largest = (workers, workers) if isinstance(workers, int) else workers
    if least > largest:
        problems.append(f"cluster.num_workers is ({least}, {largest}); give (fewest, most)")
    needed = cpus_at_once(config, least)
    if cluster.address == "local" and cluster.num_cpus is not None and needed > cluster.num_cpus:
        problems.append(
            f"cluster: {least} workers of {cluster.cpus_per_worker:g} CPUs and "
            f"{engines_at_once(config)} engines of "
            f"{config.sampler.resources.cpus_per_engine:g} beside them need {needed:g}, and "
            f"cluster.num_cpus is {cluster.num_cpus}; raise it, or give null"
        )
    return problems


def _group_problems(config: "RunConfig") -> list[str]:
    if config.cluster.address != "local":
        return []
    groups = {
        "cluster.node_group": config.cluster.node_group,
        "sampler.resources.node_group": config.sampler.resources.node_group,
    }
    return [
        f"{key} is {group}, and cluster.address local is one node without a group; use cluster=ray,"
        " or null"
        for key, group in groups.items()
        if group is not None
    ]


def _colocation_problems(config: "RunConfig") -> list[str]:
    shared, cluster = config.policy.resources.colocated, config.cluster
    if shared is None:
        return []
    problems = []
    key, engines = "policy.resources.colocated", config.policy.resources.engines
    if cluster.gpus_per_worker != 1 or config.sampler.resources.tensor_parallel_size != 1:
        problems.append(
            f"{key}: each engine shares one GPU with one worker, and cluster.gpus_per_worker is "
            f"{cluster.gpus_per_worker:g} and sampler.resources.tensor_parallel_size "
            f"{config.sampler.resources.tensor_parallel_size}; give 1 and 1, or colocated=null"
        )
    workers = (
        cluster.num_workers if isinstance(cluster.num_workers, int) else cluster.num_workers[0]
    )
    if engines > workers:
        problems.append(
            f"{key}: policy.resources.engines is {engines}, each on the GPU of one of "
            f"cluster.num_workers={cluster.num_workers}; give {workers} at most"
        )
    rewards = -(-_reward_engines(config) // min(engines, workers))
    taken = shared.memory_fraction + rewards * shared.reward_memory_fraction
    if taken > 1 - _SPARE:
        problems.append(
            f"{key}: an engine of {shared.memory_fraction:g} and {rewards} of "
            f"{shared.reward_memory_fraction:g} take {taken:g} of a GPU, which leaves its training "
            "worker nothing; lower the fractions"
        )
    is_online = config.policy.objective.kind == "policy_gradient"
    if shared.sleep and (config.policy.max_staleness > 0 or not is_online):
        problems.append(
            f"{key}.sleep is true, and engines that write ahead of the step never rest: "
            f"policy.max_staleness is {config.policy.max_staleness} and policy.objective.kind "
            f"{config.policy.objective.kind}; give max_staleness 0 and a policy gradient, or sleep "
            "false"
        )
    return problems


def optimises_policy(config: "RunConfig") -> bool:
    """Whether this invocation may come to the stages that need a policy on engines."""
    chosen = config.run.only or config.run.until
    before = ("traits", "prompts", "responses", "rankings", "pairs", "preference_model")
    return chosen not in before and config.run.only != "report"


def cpus_at_once(config: "RunConfig", num_workers: int) -> float:
    """Logical CPUs that training holds, and the engines beside it."""
    engines = engines_at_once(config) * config.sampler.resources.cpus_per_engine
    return num_workers * config.cluster.cpus_per_worker + engines


def engines_at_once(config: "RunConfig") -> int:
    """Engines that live while workers train, most of them in the policy stage.

    There those of the policy, of each member of the preference model and of the gold model; and in
    either stage the model's own, which is idle on a CPU, and another's that judged.
    """
    judges = int(config.rankings.judge_model is not None)
    if not optimises_policy(config) or config.policy.objective.kind == "dpo":
        return 1 + judges
    return config.policy.resources.engines + _reward_engines(config) + judges


def _reward_engines(config: "RunConfig") -> int:
    model = config.preference_model
    return model.ensemble + (model.gold_share > 0)


def gpus_in_policy(config: "RunConfig") -> float:
    """Most GPUs that workers and engines hold while the policy is optimised."""
    workers = config.cluster.num_workers
    trained = (workers if isinstance(workers, int) else workers[1]) * config.cluster.gpus_per_worker
    resources = config.policy.resources
    if config.policy.objective.kind == "dpo" or resources.colocated is not None:
        return trained
    beside = resources.engines + _reward_engines(config)
    return trained + beside * config.sampler.resources.gpus_per_engine
