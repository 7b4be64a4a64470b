"""Runs as RayJobs: rendered from an overlay, applied, and what is deleted again."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property

from charactertrain.artifacts import Json
from charactertrain.exceptions import ConfigError
from launch.clusters import ClusterError, DuplicateError, Reach
from launch.kuberay.cluster import RayJobs, connect, reach
from launch.kuberay.overlays import (
    Overlay,
    as_yaml,
    head_image,
    merged,
    rayjob,
    read_overlay,
    repository,
    with_run,
)
from launch.kuberay.rayjobs import API_VERSION, KIND, job_of, rayjob_name, rayjob_patch
from launch.runs import Run
from launch.submission import passed_variables


@dataclass(frozen=True)
class RayJobSettings:
    """How the RayJobs of this invocation are made."""

    overlay: str | None
    """A name of kube/overlays, or the path of a directory."""
    image: str | None
    """In place of the overlay's; None: that one."""
    namespace: str | None
    """In place of the overlay's; None: that one."""
    context: str | None
    """Of the kubeconfig; None: the current one."""
    variables: tuple[str, ...]
    """Names of environment variables of this process that the run gets; no others are passed."""
    is_alone: bool
    """Whether what the overlay has beside the RayJob is there, and is not applied."""
    keeps_cluster: bool = False
    """Whether the Ray cluster stays when the run is over, until the RayJob is deleted."""


class KubeRayTarget:
    """A cluster with KubeRay, and how runs are RayJobs on it."""

    def __init__(self, settings: RayJobSettings) -> None:
        """Nothing is read yet."""
        self._settings = settings

    @property
    def reach(self) -> Reach:
        """The cluster, for those who only look."""
        return reach(self._settings.context, self._namespace)

    @property
    def _namespace(self) -> str:
        return self._settings.namespace or self._overlay.namespace

    @cached_property
    def _overlay(self) -> Overlay:
        return read_overlay(self._settings.overlay)

    def overrides(self, given: Sequence[str]) -> list[str]:
        """The overlay's, where none of the given takes their place, and the given."""
        return merged(self._overlay.overrides, given)

    def prepare(self) -> None:
        """Look for the overlay and the variables, and at the image's name."""
        if self._settings.image is not None:
            _image(self._overlay.image, self._settings.image)
        _variables(self._settings.variables)

    def plan(self, run: Run) -> list[str]:
        """What would be applied for a run."""
        documents = self.render(run, 1)
        job = rayjob(documents, self._overlay.directory)
        others = [
            f"{document['kind']} {document['metadata']['name']}"
            for document in documents
            if document is not job
        ]
        return [
            f"RayJob         {job['metadata']['name']} in {job['metadata']['namespace']}",
            f"command        {run.entrypoint}",
            f"image          {head_image(job)}",
            f"variables      {', '.join(self._settings.variables) or 'none'}",
            f"beside it      {', '.join(others) or 'nothing'}",
        ]

    def render(self, run: Run, attempt: int) -> list[Json]:
        """The manifests of an attempt at a run, the RayJob last; needs kubectl and no cluster.

        Raises:
            ConfigError: They do not build, or something that was asked for has no effect.
        """
        settings, overlay = self._settings, self._overlay
        environment: Json = {}
        if passed := _variables(settings.variables):
            variables = {**overlay.runtime_env.get("env_vars", {}), **passed}
            environment = {**overlay.runtime_env, "env_vars": variables}
        patch = rayjob_patch(run, attempt, environment, keeps_cluster=settings.keeps_cluster)
        kustomization: Json = {
            "namespace": self._namespace,
            "patches": [
                {
                    "target": {"kind": KIND},
                    "options": {"allowNameChange": True},
                    "patch": as_yaml(patch),
                }
            ],
        }
        if settings.image is not None:
            kustomization["images"] = [_image(overlay.image, settings.image)]
        documents = with_run(overlay, kustomization)
        job = rayjob(documents, overlay.directory)
        if settings.keeps_cluster and job["spec"].get("suspend"):
            raise ConfigError(
                "--keep cluster: Kueue, which the overlay leaves the run to, suspends a RayJob "
                "only where its cluster ends with it"
            )
        others = [document for document in documents if document is not job]
        return [job] if settings.is_alone else [*others, job]

    @asynccontextmanager
    async def connect(self) -> "AsyncIterator[RayJobSubmitter]":
        """The cluster, to submit to."""
        async with connect(self._settings.context, self._namespace) as cluster:
            yield RayJobSubmitter(cluster, self)


def _variables(names: Sequence[str]) -> dict[str, str]:
    """The variables to pass; raises ConfigError for what would not arrive as it is."""
    variables = passed_variables(names)
    expanded = [name for name, value in variables.items() if "$" in value or "`" in value]
    if expanded:
        raise ConfigError(
            "variables to be passed to the job hold $ or `, which a shell of KubeRay's expands: "
            f"{', '.join(expanded)}. Name a Secret in the overlay instead (kube/README.md)."
        )
    return variables


def _image(name: str, given: str) -> Json:
    """Kustomize's entry that puts an image in another's place."""
    digest, new_name = given.partition("@")[2], repository(given)
    tag = given.partition("@")[0].removeprefix(new_name).lstrip(":")
    if not tag and not digest:
        raise ConfigError(
            f"--image {given}: expected a tag that stays or a digest, as in {given}:0.1.0-gpu"
        )
    mark = {"digest": digest} if digest else {"newTag": tag}
    return {"name": name, "newName": new_name, **mark}


class RayJobSubmitter:
    """Applies runs as RayJobs."""

    def __init__(self, cluster: RayJobs, target: KubeRayTarget) -> None:
        """`target` renders what is applied."""
        self.cluster = cluster
        self._target = target
        self._has_surroundings = False

    def submission_id(self, run: Run, attempt: int) -> str:
        """The RayJob's name."""
        return rayjob_name(run, attempt)

    async def submit(self, run: Run, attempt: int) -> None:
        """Apply the manifests, once the server has checked all of them.

        What is beside the RayJob serves every run of the namespace, and is applied once.
        """
        *others, job = self._target.render(run, attempt)
        await self._check_free(job)
        api = self.cluster.api
        if not self._has_surroundings:
            namespaces = [document for document in others if document["kind"] == "Namespace"]
            # Before the others can be checked, for they are in it.
            for document in namespaces:
                await api.apply(document, dry_run=False)
            others = [document for document in others if document not in namespaces]
            for document in [*others, job]:
                await api.apply(document, dry_run=True)
            for document in others:
                await api.apply(document, dry_run=False)
            self._has_surroundings = True
        await api.apply(job, dry_run=False)
        self.cluster.remember(job)

    async def _check_free(self, job: Json) -> None:
        """Raise DuplicateError or ClusterError where a RayJob of this name is there."""
        name = job["metadata"]["name"]
        there = await self.cluster.api.find(API_VERSION, KIND, name)
        if there is None:
            return
        ours, theirs = job_of(job).metadata, job_of(there).metadata
        if all(ours[key] == theirs.get(key) for key in ("run_name", "fingerprint")):
            raise DuplicateError(f"the RayJob {name} is there already")
        raise ClusterError(
            f"a RayJob {name} is there already and is another run: {theirs.get('run_name')!r}, and "
            f"this is {ours['run_name']!r}. Give this one another name (--name)."
        )
