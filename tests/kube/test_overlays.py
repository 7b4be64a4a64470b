"""Every overlay builds, and is what the API server and KubeRay take."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from kube_manifests import KUBE, OVERLAYS, Manifest, one, pods, ray_spec
from kube_policies import kuberay_problems, schema_problems
from kubernetes_validate import ValidationError, validate

Build = Callable[[Path | str], list[Manifest]]
Change = Callable[[Manifest], object]

KUBERNETES = "1.32"
KINDS = ("RayJob", "RayCluster")
DIRECTORIES = [*(f"overlays/{name}" for name in OVERLAYS), "cluster", "export"]


def groups(job: Manifest) -> Any:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"]


def test_every_overlay_that_the_docs_name_is_there() -> None:
    assert OVERLAYS == [
        "cpu-demo",
        "gcs-ft",
        "hardened",
        "interactive",
        "kueue",
        "multi-node",
        "single-gpu",
        "spot",
    ]


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_manifests_are_valid(build: Build, directory: str) -> None:
    for document in build(directory):
        if document["kind"] in KINDS:
            assert schema_problems(document) == []
            assert kuberay_problems(document) == []
        else:
            validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_pods_of_a_cluster_are_valid_pods(build: Build, directory: str) -> None:
    for pod in pods(build(directory)):
        metadata = {"name": "a", **pod.template.get("metadata", {})}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}
        validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_one_run_or_one_cluster_on_our_ray(build: Build, name: str) -> None:
    kind = "RayCluster" if name == "interactive" else "RayJob"
    documents = build(f"overlays/{name}")
    assert [document["kind"] for document in documents if document["kind"] in KINDS] == [kind]
    spec = ray_spec(one(documents, kind))
    assert spec is not None
    assert spec["rayVersion"] == version("ray")


@pytest.mark.parametrize("name", OVERLAYS)
def test_all_that_has_a_namespace_is_in_ours(build: Build, name: str) -> None:
    for document in build(f"overlays/{name}"):
        is_ours = document["metadata"].get("namespace") == "charactertrain"
        assert is_ours or document["kind"] == "Namespace"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda job: job["spec"].update(entryPoint="a"), "entryPoint"),
        (lambda job: job["spec"].update(backoffLimit="2"), "'2' is not of type 'integer'"),
        (lambda job: groups(job)[0].update(replica=1), "replica"),
        (lambda job: groups(job)[0]["template"]["spec"].update(volume=[]), "volume"),
        (lambda job: groups(job)[0].pop("template"), "'template' is a required property"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["autoscalerOptions"].update(version="v3"),
            "'v3' is not one of",
        ),
        (
            lambda job: groups(job)[0]["template"]["spec"]["containers"][0]["ports"].extend(
                [{"containerPort": 1}, {"containerPort": 1, "protocol": "TCP"}]
            ),
            "(1, 'TCP') is there more than once",
        ),
    ],
)
def test_the_schema_refuses_what_the_api_server_would(
    build: Build, change: Change, problem: str
) -> None:
    job = one(build("overlays/multi-node"), "RayJob")
    groups(job)[0]["template"]["spec"]["containers"][0]["ports"] = []
    assert schema_problems(job) == []
    change(job)
    (found,) = schema_problems(job)
    assert problem in found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda job: job["metadata"].update(name="a" * 48), "no DNS label of at most 47"),
        (lambda job: job["metadata"].update(name="1st-run"), "no DNS label of at most 47"),
        (lambda job: job["spec"].pop("shutdownAfterJobFinishes"), "without shutdown"),
        (lambda job: groups(job)[0].update(replicas=9), "samplers: replicas"),
        (
            lambda job: job["spec"]["rayClusterSpec"].pop("enableInTreeAutoscaling"),
            "without autoscaler v2",
        ),
        (
            lambda job: groups(job)[1].update(
                resources={"CPU": "1"}, rayStartParams={"num-cpus": "1"}
            ),
            "trainers: resources both",
        ),
        (
            lambda job: groups(job)[1]["template"]["spec"].update(restartPolicy="Always"),
            "restartPolicy other than Never",
        ),
        (lambda job: groups(job)[1]["labels"].update({"ray.io/a": "b"}), "trainers: labels"),
    ],
)
def test_kuberays_own_rules_are_checked(build: Build, change: Change, problem: str) -> None:
    job = one(build("overlays/multi-node"), "RayJob")
    change(job)
    (found,) = kuberay_problems(job)
    assert problem in found


def test_an_unknown_field_of_a_core_kind_is_refused(build: Build) -> None:
    claim = one(build("overlays/multi-node"), "PersistentVolumeClaim")
    claim["spec"]["accessMode"] = "ReadWriteMany"
    with pytest.raises(ValidationError, match="accessMode"):
        validate(claim, KUBERNETES, strict=True)


def test_interactive_is_the_cluster_of_the_run_on_one_gpu(build: Build) -> None:
    job = one(build("overlays/single-gpu"), "RayJob")
    cluster = one(build("overlays/interactive"), "RayCluster")
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]


def test_every_worker_has_what_the_head_has(build: Build) -> None:
    for name in OVERLAYS:
        head, *others = [pod for pod in pods(build(f"overlays/{name}")) if pod.is_ray_node]
        for pod in others:
            for key in ("image", "securityContext", "volumeMounts", "livenessProbe"):
                assert pod.container[key] == head.container[key], (name, pod.group, key)
            assert pod.spec["securityContext"] == head.spec["securityContext"]


def test_components_go_together(build: Build, tmp_path: Path) -> None:
    # Kustomize takes no absolute paths.
    up = "../" * (len(tmp_path.parts) - 1)
    names = ("spot", "kueue", "gcs-ft", "every-pod", "hardened")
    components = "".join(f"  - {up}{KUBE}/components/{name}\n" for name in names)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources:\n  - {up}{KUBE}/overlays/multi-node\ncomponents:\n{components}"
    )
    job = one(build(tmp_path), "RayJob")
    assert schema_problems(job) == []
    assert kuberay_problems(job) == []
    assert [group["groupName"] for group in groups(job)] == ["samplers", "trainers", "driver"]
    assert job["spec"]["suspend"]
    assert job["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("component", ["spot", "kueue"])
def test_a_component_refuses_groups_that_it_does_not_know(
    build: Build, tmp_path: Path, component: str
) -> None:
    up = "../" * (len(tmp_path.parts) - 1)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources:\n  - {up}{KUBE}/overlays/single-gpu\n"
        f"components:\n  - {up}{KUBE}/components/{component}\n"
    )
    with pytest.raises(AssertionError, match="groupName failed"):
        build(tmp_path)
