"""The run of an overlay fits the overlay's cluster: engines, workers and GPUs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kube_manifests import GPU, OVERLAYS, SHARED, Manifest, Pod, one, overrides, pods

from charactertrain.config import RunConfig, validate
from charactertrain.config.devices import cpus_at_once, engines_at_once, gpus_in_policy
from charactertrain.runtime.placement import GROUP_LABEL

Build = Callable[[Path | str], list[Manifest]]
Compose = Callable[..., dict[str, Any]]

RUNS = [name for name in OVERLAYS if name != "interactive"]


def run_config(documents: Sequence[Manifest], compose: Compose) -> RunConfig:
    """The config that the RayJob's command line composes."""
    return validate(compose(*overrides(one(documents, "RayJob")["spec"]["entrypoint"])))


def nodes(documents: Sequence[Manifest], group: str | None) -> list[Pod]:
    """Ray nodes that work may be placed on, of a node group or any."""
    spec = one(documents, "RayJob")["spec"]["rayClusterSpec"]
    labels = {g["groupName"]: g["labels"][GROUP_LABEL] for g in spec.get("workerGroupSpecs", ())}
    return [
        pod
        for pod in pods(documents)
        if pod.ray_cpus > 0 and group in (None, labels.get(pod.group))
    ]


def places(found: Sequence[Pod], *, cpus: float, gpus: float) -> int:
    """How many processes of this size the nodes have room for, at their most."""
    total = 0
    for pod in found:
        room = [int(pod.ray_cpus // cpus)]
        if gpus > 0:
            room.append(int(pod.limit(GPU) // gpus))
        total += pod.most * min(room)
    return total


def fit_problems(documents: Sequence[Manifest], compose: Compose) -> list[str]:
    """Where the run asks for more than the cluster has, or the cluster for more than the run."""
    config = run_config(documents, compose)
    found = [*head_problems(documents), *storage_problems(documents, config)]
    engines, cluster = config.sampler.resources, config.cluster
    samplers, trainers = (nodes(documents, r.node_group) for r in (engines, cluster))
    engine_places = places(samplers, cpus=engines.cpus_per_engine, gpus=engines.gpus_per_engine)
    worker_places = places(trainers, cpus=cluster.cpus_per_worker, gpus=cluster.gpus_per_worker)
    most = cluster.num_workers if isinstance(cluster.num_workers, int) else cluster.num_workers[1]
    gpus = sum(pod.most * pod.limit(GPU) for pod in trainers)
    is_colocated = config.policy.resources.colocated is not None
    at_once = 1 if is_colocated else engines_at_once(config)
    if engine_places < max(engines.num_engines[1], at_once):
        found.append(f"room for {engine_places} engines")
    if worker_places < most:
        found.append(f"room for {worker_places} workers")
    if most * cluster.gpus_per_worker != gpus:
        found.append(f"{gpus:g} GPUs for {most} workers of {cluster.gpus_per_worker:g}")
    if engines.gpus_per_engine > 0 and engine_places != engines.num_engines[1]:
        found.append(f"{engine_places} places for {engines.num_engines[1]} engines")
    # On GPUs engines make room, unless the policy stage wants both; separate groups hold both.
    if samplers == trainers and cluster.gpus_per_worker == 0:
        cpus, needed = sum(pod.most * pod.ray_cpus for pod in trainers), cpus_at_once(config, most)
        found += [f"{cpus:g} CPUs for {needed:g}"] if cpus < needed else []
    elif samplers == trainers and gpus_in_policy(config) > most * cluster.gpus_per_worker:
        found.append("rollouts want GPUs beside those of the workers")
    return found


def head_problems(documents: Sequence[Manifest]) -> list[str]:
    """A head with workers beside it neither works nor holds a GPU."""
    head = next(pod for pod in pods(documents) if pod.group == "head")
    has_workers = bool(one(documents, "RayJob")["spec"]["rayClusterSpec"].get("workerGroupSpecs"))
    found = ["the head has a GPU"] if head.limit(GPU) else []
    if has_workers == (head.ray_cpus > 0):
        found.append(f"the head has {head.ray_cpus:g} CPUs for work")
    return found


def storage_problems(documents: Sequence[Manifest], config: RunConfig) -> list[str]:
    """All Ray nodes see the run directory, and none is told that it is alone."""
    found = [] if config.cluster.address == "auto" else ["the run starts a cluster of its own"]
    if not config.run.dir.startswith(SHARED):
        found.append(f"run.dir {config.run.dir} is not shared")
    claim = one(documents, "PersistentVolumeClaim")
    ray_nodes = [pod for pod in pods(documents) if pod.is_ray_node]
    for pod in ray_nodes:
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
        named = {
            volume["name"]
            for volume in pod.spec["volumes"]
            if volume.get("persistentVolumeClaim") == {"claimName": claim["metadata"]["name"]}
        }
        if mounts.get(SHARED.rstrip("/")) not in named:
            found.append(f"{pod.group} has no shared storage")
    modes = claim["spec"]["accessModes"]
    if len(ray_nodes) > 1 and modes != ["ReadWriteMany"]:
        found.append(f"{len(ray_nodes)} groups share storage of mode {modes}")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_run_fits_the_cluster(build: Build, compose: Compose, name: str) -> None:
    assert fit_problems(build(f"overlays/{name}"), compose) == []


@pytest.mark.parametrize("name", RUNS)
def test_engines_of_several_gpus_fit_a_node(build: Build, compose: Compose, name: str) -> None:
    documents = build(f"overlays/{name}")
    engines = run_config(documents, compose).sampler.resources
    if engines.gpus_per_engine == 0:
        return
    for pod in nodes(documents, engines.node_group):
        assert pod.limit(GPU) % engines.tensor_parallel_size == 0


SCALED = ["multi-node", "spot", "gcs-ft", "hardened"]


@pytest.mark.parametrize("name", SCALED)
def test_rays_autoscaler_reads_the_groups_as_these_tests_do(build: Build, name: str) -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    documents = build(f"overlays/{name}")
    cluster = one(documents, "RayJob")["spec"]["rayClusterSpec"]
    document = {"metadata": {"name": "a", "namespace": "b"}, "spec": cluster}
    read = autoscaling_config._derive_autoscaling_config_from_ray_cr(document)
    assert read["idle_timeout_minutes"] == cluster["autoscalerOptions"]["idleTimeoutSeconds"] / 60
    specs = {spec["groupName"]: spec for spec in cluster["workerGroupSpecs"]}
    for pod in pods(documents):
        if pod.group in specs:
            found, spec = read["available_node_types"][pod.group], specs[pod.group]
            assert found["resources"]["CPU"] == pod.ray_cpus
            assert found["resources"].get("GPU", 0) == pod.limit(GPU)
            assert found["labels"] == spec["labels"]
            assert found["max_workers"] == pod.most
            assert found.get("idle_timeout_s") == spec.get("idleTimeoutSeconds")


def group(documents: Sequence[Manifest], index: int) -> Any:
    return one(documents, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"][index]


def resources(documents: Sequence[Manifest], index: int) -> Any:
    return group(documents, index)["template"]["spec"]["containers"][0]["resources"]["limits"]


def head(documents: Sequence[Manifest]) -> Any:
    return one(documents, "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]


def told(documents: Sequence[Manifest], override: str) -> None:
    one(documents, "RayJob")["spec"]["entrypoint"] += f" {override}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: group(d, 1).update(maxReplicas=1), "room for 8 workers"),
        (lambda d: group(d, 1).update(maxReplicas=3), "24 GPUs for 16 workers of 1"),
        (lambda d: group(d, 0).update(maxReplicas=1), "room for 8 engines"),
        (lambda d: group(d, 0).update(maxReplicas=5), "40 places for 32 engines"),
        (lambda d: resources(d, 0).update(cpu="31"), "room for 28 engines"),
        (lambda d: resources(d, 1).update(cpu="63"), "room for 14 workers"),
        (lambda d: group(d, 0)["labels"].update({GROUP_LABEL: "others"}), "room for 0 engines"),
        (lambda d: head(d)["rayStartParams"].clear(), "the head has 8 CPUs for work"),
        (
            lambda d: head(d)["template"]["spec"]["containers"][0]["resources"]["limits"].update(
                {GPU: "1"}
            ),
            "the head has a GPU",
        ),
        (lambda d: told(d, "run.dir=/tmp/run"), "run.dir /tmp/run is not shared"),
        (
            lambda d: told(d, "cluster.node_group=null sampler.resources.node_group=null"),
            "rollouts want GPUs beside those of the workers",
        ),
        (
            lambda d: one(d, "PersistentVolumeClaim")["spec"].update(accessModes=["ReadWriteOnce"]),
            "3 groups share storage of mode ['ReadWriteOnce']",
        ),
        (
            lambda d: one(d, "PersistentVolumeClaim")["metadata"].update(name="others"),
            "head has no shared storage",
        ),
        (
            lambda d: group(d, 1)["template"]["spec"]["containers"][0]["volumeMounts"].pop(0),
            "trainers has no shared storage",
        ),
    ],
)
def test_a_run_that_does_not_fit_is_found_out(
    build: Build, compose: Compose, change: Callable[[list[Manifest]], object], problem: str
) -> None:
    documents = build("overlays/multi-node")
    change(documents)
    assert problem in fit_problems(documents, compose)


def test_a_demo_with_too_few_cores_is_found_out(build: Build, compose: Compose) -> None:
    documents = build("overlays/cpu-demo")
    head(documents)["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2"
    assert "2 CPUs for 3" in fit_problems(documents, compose)
