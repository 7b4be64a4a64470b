"""What the hardened overlay closes around the pods."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from kube_manifests import GPU, Manifest, one, pods, quantity

Build = Callable[[Path | str], list[Manifest]]

DRIVER_CPUS, DRIVER_MEMORY = 4, 16 * 2**30
"""Of the pod that gcs-ft adds, for which the quota leaves room."""


@pytest.fixture(name="hardened")
def hardened_overlay(build: Build) -> list[Manifest]:
    return build("overlays/hardened")


def policies(documents: Sequence[Manifest]) -> dict[str, Any]:
    return {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "NetworkPolicy"}


def test_hardened_denies_what_it_does_not_allow(hardened: list[Manifest]) -> None:
    rules = policies(hardened)
    assert rules.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert rules.pop("within") == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {}}]}],
        "egress": [{"to": [{"podSelector": {}}]}],
    }
    for name, rule in rules.items():
        # Each opens one way, to somebody, on ports that it names.
        (direction,) = rule["policyTypes"]
        (opened,) = rule[direction.lower()]
        assert opened["ports"] and opened["from" if direction == "Ingress" else "to"], name


def test_hardened_lets_every_pod_ask_for_names(hardened: list[Manifest]) -> None:
    rule = policies(hardened)["dns"]
    assert rule["podSelector"] == {}
    ports = {(port["port"], port["protocol"]) for port in rule["egress"][0]["ports"]}
    assert ports == {(53, "UDP"), (53, "TCP")}


def test_hardened_lets_only_drivers_out(hardened: list[Manifest]) -> None:
    rule = policies(hardened)["outside"]
    (expression,) = rule["podSelector"]["matchExpressions"]
    assert expression["values"] == ["head", "driver", "export"]
    (block,) = (to["ipBlock"] for to in rule["egress"][0]["to"])
    assert block["except"] == ["169.254.169.254/32"]
    labelled = one(hardened, "RayJob")["spec"]["rayClusterSpec"]["headGroupSpec"]["labels"]
    assert labelled["charactertrain.dev/group"] == "head"


def test_hardened_asks_for_a_token_by_reference(hardened: list[Manifest]) -> None:
    options = one(hardened, "RayJob")["spec"]["rayClusterSpec"]["authOptions"]
    assert options == {"mode": "token", "secretName": "charactertrain-ray"}


def test_hardened_has_the_strictest_of_kubernetes_own_levels(hardened: list[Manifest]) -> None:
    labels = one(hardened, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_hardened_quota_holds_one_run_at_its_largest(hardened: list[Manifest]) -> None:
    hard = one(hardened, "ResourceQuota")["spec"]["hard"]
    found = pods(hardened)
    autoscaler = one(hardened, "RayJob")["spec"]["rayClusterSpec"]["autoscalerOptions"]
    beside = {r: quantity(q) for r, q in autoscaler["resources"]["limits"].items()}
    cpus = sum(pod.most * pod.limit("cpu") for pod in found) + beside["cpu"] + DRIVER_CPUS
    memory = sum(pod.most * pod.limit("memory") for pod in found) + beside["memory"]
    for kind in ("requests", "limits"):
        assert cpus <= quantity(hard[f"{kind}.cpu"]) <= 1.1 * cpus
        assert memory + DRIVER_MEMORY <= quantity(hard[f"{kind}.memory"]) <= 1.1 * memory
    gpus = sum(pod.most * pod.limit(GPU) for pod in found)
    assert quantity(hard["requests.nvidia.com/gpu"]) == gpus
    assert quantity(hard["pods"]) >= sum(pod.most for pod in found) + 1


def test_hardened_limits_leave_room_for_every_container(hardened: list[Manifest]) -> None:
    (limits,) = one(hardened, "LimitRange")["spec"]["limits"]
    for pod in pods(hardened):
        for resource, most in limits["max"].items():
            assert pod.limit(resource) <= quantity(most)


def test_hardened_keeps_the_head_where_it_is(hardened: list[Manifest]) -> None:
    budget = one(hardened, "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == 1
    assert budget["selector"]["matchLabels"] == {"charactertrain.dev/group": "head"}
