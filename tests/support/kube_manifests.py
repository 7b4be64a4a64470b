"""Manifests as tests read them: the pods that they describe, and what each may use."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
KUBE = ROOT / "kube"
OVERLAYS = sorted(path.parent.name for path in KUBE.glob("overlays/*/kustomization.yaml"))
SHARED = "/shared/"
GPU = "nvidia.com/gpu"

_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 1024**power for power, letter in enumerate("KMGT", start=1)
}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number: bytes, cores, devices."""
    digits = str(text).rstrip("mkKMGTi")
    return float(digits) * _UNITS[str(text)[len(digits) :]]


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest describes."""

    group: str
    """`head`, `submitter`, the name of a group of workers, or that of a Job."""
    template: Manifest
    most: int
    """How many there may be at a time."""
    start_parameters: Manifest | None
    """What `ray start` is told; None where it is not called."""

    @property
    def is_ray_node(self) -> bool:
        """Whether the pod is a node of the Ray cluster."""
        return self.start_parameters is not None

    @property
    def spec(self) -> Manifest:
        """The pod's spec."""
        spec: Manifest = self.template["spec"]
        return spec

    @property
    def container(self) -> Manifest:
        """The first container, which is Ray's."""
        container: Manifest = self.spec["containers"][0]
        return container

    def limit(self, resource: str) -> float:
        """What the first container may use."""
        return quantity(self.container["resources"].get("limits", {}).get(resource, 0))

    @property
    def ray_cpus(self) -> float:
        """Logical CPUs, as KubeRay tells them to `ray start`; 0 where it is not called."""
        if self.start_parameters is None:
            return 0.0
        return float(self.start_parameters.get("num-cpus", self.limit("cpu")))


def ray_spec(document: Manifest) -> Manifest | None:
    """The Ray cluster that a manifest describes, if it does."""
    spec: Manifest = document.get("spec", {})
    return {"RayJob": spec.get("rayClusterSpec"), "RayCluster": spec}.get(document["kind"])


def pods(documents: Sequence[Manifest]) -> list[Pod]:
    """Every pod of the manifests."""
    return [pod for document in documents for pod in _pods_of(document)]


def _pods_of(document: Manifest) -> Iterator[Pod]:
    if document["kind"] == "Job":
        yield Pod(document["metadata"]["name"], document["spec"]["template"], 1, None)
    if document["kind"] == "RayJob":
        yield Pod("submitter", document["spec"]["submitterPodTemplate"], 1, None)
    cluster = ray_spec(document)
    if cluster is None:
        return
    head = cluster["headGroupSpec"]
    yield Pod("head", head["template"], 1, head["rayStartParams"])
    for group in cluster.get("workerGroupSpecs", ()):
        told = dict(group["rayStartParams"])
        if "CPU" in group.get("resources", {}):
            told["num-cpus"] = group["resources"]["CPU"]
        yield Pod(group["groupName"], group["template"], group["maxReplicas"], told)


def one(documents: Sequence[Manifest], kind: str) -> Manifest:
    """The one manifest of a kind."""
    (document,) = (document for document in documents if document["kind"] == kind)
    return document


def overrides(entrypoint: str) -> list[str]:
    """The Hydra overrides of a run's command line."""
    command = shlex.split(entrypoint)
    assert command[:3] == ["python", "-m", "charactertrain"], command
    return command[3:]
