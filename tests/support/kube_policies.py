"""What every pod must be, and what KubeRay and Kubernetes refuse: each as a list of problems."""

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from kube_manifests import Manifest, Pod, quantity, ray_spec

SCHEMAS = Path(__file__).resolve().parents[1] / "kube" / "crds"
SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY)", re.IGNORECASE)
MAX_JOB_NAME, MAX_CLUSTER_NAME = 47, 53
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def pod_problems(pod: Pod) -> list[str]:
    """What is wrong with a pod by this project's rules."""
    found = [*_pod_security(pod.spec), *(_shared_memory(pod) if pod.is_ray_node else ())]
    for container in [*pod.spec["containers"], *pod.spec.get("initContainers", [])]:
        found += [f"{container['name']}: {problem}" for problem in _container_problems(container)]
    return [f"{pod.group}: {problem}" for problem in found]


def _pod_security(spec: Manifest) -> Iterator[str]:
    security = spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"has {key}"
    if any("hostPath" in volume for volume in spec.get("volumes", ())):
        yield "mounts a path of its machine"
    if spec.get("enableServiceLinks") is not False:
        yield "has every service of its namespace in its environment"


def _shared_memory(pod: Pod) -> Iterator[str]:
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    memory = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
    if memory.get("medium") != "Memory" or "sizeLimit" not in memory:
        yield "has no shared memory of a given size"
    elif quantity(memory["sizeLimit"]) >= pod.limit("memory"):
        yield "has more shared memory than memory"


def _container_problems(container: Manifest) -> Iterator[str]:
    image, _, tag = container["image"].rpartition(":")
    if not image or tag == "latest" or "/" in tag:
        yield f"image {container['image']} has no tag that stays"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        if {"cpu", "memory"} - resources.get(kind, {}).keys():
            yield f"has no {kind}"
    yield from security_problems(container.get("securityContext", {}))
    for variable in container.get("env", ()):
        if SECRET_NAME.search(variable["name"]) and "value" in variable:
            yield f"{variable['name']} is written out"


def security_problems(security: Manifest) -> Iterator[str]:
    """What a container's security context lacks."""
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its root file system"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"


def kuberay_problems(document: Manifest) -> list[str]:
    """What KubeRay 1.7 refuses beyond its schema (validation.go), of what is used here."""
    cluster, metadata, spec = ray_spec(document), document["metadata"], document["spec"]
    if cluster is None:
        return []
    longest = MAX_JOB_NAME if document["kind"] == "RayJob" else MAX_CLUSTER_NAME
    found = [*_autoscaler_problems(cluster), *_group_problems(cluster)]
    if len(metadata["name"]) > longest or not DNS_LABEL.fullmatch(metadata["name"]):
        found.append(f"name {metadata['name']!r} is no DNS label of at most {longest} characters")
    if document["kind"] == "RayJob" and not spec.get("shutdownAfterJobFinishes"):
        found += [
            f"{key} without shutdown"
            for key in ("suspend", "ttlSecondsAfterFinished")
            if spec.get(key)
        ]
    if cluster.get("gcsFaultToleranceOptions") and "redis-password" in str(
        cluster["headGroupSpec"]
    ):
        found.append("redis-password beside gcsFaultToleranceOptions")
    return found


def _autoscaler_problems(cluster: Manifest) -> Iterator[str]:
    is_v2 = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    has_autoscaler = cluster.get("enableInTreeAutoscaling", False)
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]
    if not (has_autoscaler and is_v2) and any("idleTimeoutSeconds" in group for group in groups):
        yield "idleTimeoutSeconds of a group without autoscaler v2"
    policies = {group["template"]["spec"].get("restartPolicy", "Never") for group in groups}
    if has_autoscaler and is_v2 and policies != {"Never"}:
        yield "restartPolicy other than Never under autoscaler v2"


def _group_problems(cluster: Manifest) -> Iterator[str]:
    told = {"num-cpus", "num-gpus", "memory", "resources"}
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]:
        name = group.get("groupName", "head")
        if group.get("resources") and told & group["rayStartParams"].keys():
            yield f"{name}: resources both in rayStartParams and beside it"
        if (
            not group.get("minReplicas", 0)
            <= group.get("replicas", 0)
            <= group.get("maxReplicas", 0)
        ):
            yield f"{name}: replicas are not between the fewest and the most"
        if any(key.startswith("ray.io/") for key in group.get("labels", {})):
            yield f"{name}: labels that are Ray's own"


def schema_problems(document: Manifest) -> list[str]:
    """What a CRD's schema refuses, unknown fields among it."""
    return [
        f"{error.json_path}: {error.message}"
        for error in _validator(document["kind"]).iter_errors(document)
    ]


@cache
def _validator(kind: str) -> Any:
    text = gzip.decompress((SCHEMAS / f"{kind.lower()}.v1.json.gz").read_bytes())
    keyed = extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _repeated_keys})
    return keyed(_closed(json.loads(text)))


def _closed(node: Any) -> Any:
    """The schema as the API server reads it when it is asked to be strict."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    if node.get("x-kubernetes-int-or-string"):
        closed["type"] = ["integer", "string"]
    return closed


def _repeated_keys(
    _: Any, keys: list[str], items: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    defaults = {key: value.get("default") for key, value in schema["items"]["properties"].items()}
    seen = [tuple(item.get(key, defaults[key]) for key in keys) for item in items]
    for key in sorted({key for key in seen if seen.count(key) > 1}, key=str):
        yield ValidationError(f"{key} is there more than once")
