"""What no pod may do, in any overlay, and what the hardened one closes around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kube_manifests import GPU, OVERLAYS, Manifest, Pod, one, pods, ray_spec
from kube_policies import pod_problems, security_problems

Build = Callable[[Path | str], list[Manifest]]

DIRECTORIES = [*(f"overlays/{name}" for name in OVERLAYS), "export"]


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_no_pod_breaks_a_rule(build: Build, directory: str) -> None:
    found = pods(build(directory))
    assert found
    assert [problem for pod in found for problem in pod_problems(pod)] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_autoscaler_beside_the_head_breaks_none(build: Build, name: str) -> None:
    for document in build(f"overlays/{name}"):
        spec = ray_spec(document)
        if spec is None or not spec.get("enableInTreeAutoscaling"):
            continue
        options = spec["autoscalerOptions"]
        assert list(security_problems(options["securityContext"])) == []
        assert options["resources"]["limits"] == options["resources"]["requests"]
        # Its root file system is read-only, and pods write below these.
        mounted = {mount["mountPath"] for mount in options["volumeMounts"]}
        assert mounted == {"/tmp", "/home/charactertrain"}


def container(pod: Pod) -> Any:
    return pod.container


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p: p.spec["securityContext"].update(runAsNonRoot=False), "may run as root"),
        (lambda p: p.spec["securityContext"].update(runAsUser=0), "may run as root"),
        (lambda p: p.spec["securityContext"].pop("seccompProfile"), "has no seccomp profile"),
        (lambda p: p.spec.update(hostNetwork=True), "has hostNetwork"),
        (lambda p: p.spec.pop("enableServiceLinks"), "has every service"),
        (
            lambda p: p.spec["volumes"].append({"name": "a", "hostPath": {"path": "/"}}),
            "mounts a path of its machine",
        ),
        (lambda p: container(p).update(image="charactertrain:latest"), "no tag that stays"),
        (lambda p: container(p).update(image="charactertrain"), "no tag that stays"),
        (lambda p: container(p).update(image="host:5000/charactertrain"), "no tag that stays"),
        (lambda p: container(p)["resources"].pop("limits"), "has no limits"),
        (lambda p: container(p)["resources"]["requests"].pop("memory"), "has no requests"),
        (lambda p: container(p).pop("securityContext"), "may gain privileges"),
        (
            lambda p: container(p)["securityContext"].update(readOnlyRootFilesystem=False),
            "may write to its root",
        ),
        (
            lambda p: container(p)["securityContext"].update(capabilities={"add": ["SYS_ADMIN"]}),
            "keeps capabilities",
        ),
        (
            lambda p: container(p)["env"].append({"name": "HF_TOKEN", "value": "hf_x"}),
            "HF_TOKEN is written out",
        ),
        (
            lambda p: p.spec["volumes"].remove(
                next(volume for volume in p.spec["volumes"] if volume["name"] == "dshm")
            ),
            "has no shared memory",
        ),
        (
            lambda p: next(volume for volume in p.spec["volumes"] if volume["name"] == "dshm")[
                "emptyDir"
            ].update(sizeLimit="300Gi"),
            "more shared memory than memory",
        ),
    ],
)
def test_a_pod_that_breaks_a_rule_is_found_out(
    build: Build, change: Callable[[Pod], object], problem: str
) -> None:
    pod = next(pod for pod in pods(build("overlays/multi-node")) if pod.group == "samplers")
    change(pod)
    assert any(problem in found for found in pod_problems(pod))


@pytest.mark.parametrize("name", OVERLAYS)
def test_secrets_go_to_the_driver_alone(build: Build, name: str) -> None:
    for pod in pods(build(f"overlays/{name}")):
        secrets = [
            v for v in pod.container.get("env", ()) if "secretKeyRef" in v.get("valueFrom", {})
        ]
        assert bool(secrets) == (pod.group in ("head", "driver"))


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_ray_node_is_probed(build: Build, name: str) -> None:
    for pod in pods(build(f"overlays/{name}")):
        if pod.is_ray_node:
            for probe in ("livenessProbe", "readinessProbe"):
                assert pod.container[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_an_autoscaler_may_ask_the_api_server(build: Build, name: str) -> None:
    documents = build(f"overlays/{name}")
    (cluster,) = (spec for spec in map(ray_spec, documents) if spec is not None)
    has_autoscaler = cluster.get("enableInTreeAutoscaling", False)
    for pod in pods(documents):
        is_scaling = pod.group == "head" and has_autoscaler
        assert pod.spec["automountServiceAccountToken"] is is_scaling


@pytest.mark.parametrize("name", ["multi-node", "spot", "kueue", "gcs-ft", "hardened"])
def test_whole_nodes_with_gpus_are_taken_by_those_who_need_them(build: Build, name: str) -> None:
    for pod in pods(build(f"overlays/{name}")):
        if not pod.is_ray_node:
            continue
        terms = pod.spec["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]["nodeSelectorTerms"]
        wanted = "In" if pod.limit(GPU) else "NotIn"
        for term in terms:
            expression = {"key": "nvidia.com/gpu.present", "operator": wanted, "values": ["true"]}
            assert expression in term["matchExpressions"]
        assert pod.spec["priorityClassName"].startswith("charactertrain-")


def test_priorities_that_pods_name_are_defined(build: Build) -> None:
    defined = {document["metadata"]["name"] for document in build("cluster")}
    for name in OVERLAYS:
        named = {pod.spec.get("priorityClassName") for pod in pods(build(f"overlays/{name}"))}
        assert named - {None} <= defined


def test_spot_machines_are_for_samplers_alone(build: Build) -> None:
    before, after = (
        {pod.group: pod.spec for pod in pods(build(f"overlays/{name}"))}
        for name in ("multi-node", "spot")
    )
    changed = {group for group in before if before[group] != after[group]}
    assert changed == {"samplers"}
    # Google's notice, of which Kubernetes keeps some.
    assert after["samplers"]["terminationGracePeriodSeconds"] <= 25


def test_nothing_of_a_queued_run_scales(build: Build) -> None:
    job = one(build("overlays/kueue"), "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"] and job["spec"]["shutdownAfterJobFinishes"]
    spec = job["spec"]["rayClusterSpec"]
    assert not spec["enableInTreeAutoscaling"] and "autoscalerOptions" not in spec
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] > 0


def test_the_driver_is_not_on_the_head_whose_loss_is_survived(build: Build) -> None:
    spec = one(build("overlays/gcs-ft"), "RayJob")["spec"]
    options = spec["rayClusterSpec"]["gcsFaultToleranceOptions"]
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"]
    assert "value" not in options["redisPassword"]
    assert spec["entrypointResources"] == '{"driver": 1}'
    driver = spec["rayClusterSpec"]["workerGroupSpecs"][-1]
    # No CPU for work: neither engines nor workers come here.
    assert driver["resources"] == {"CPU": "0", "driver": "1"}
