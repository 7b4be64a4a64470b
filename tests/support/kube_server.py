"""A Kubernetes API server with KubeRay on loopback, for what clients say and do.

It serves what this project's manifests hold. Of server-side apply it has the managers of fields and
their conflicts, dry runs and strict validation of RayJobs; a RayJob is only said to run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from aiohttp import web
from kube_policies import schema_problems

Document = dict[str, Any]

RUN = (
    "--kuberay",
    "--overlay",
    "cpu-demo",
    "experiment=smoke",
    "run.dir=/shared/runs/first",
)
"""A run that an overlay holds in a pod, and a client plans in an instant."""
CLAIM = "charactertrain-demo"
"""What is beside it."""
TOKEN = "a-token-of-this-test-alone"
SERVED = {
    "v1": {
        "namespaces": "Namespace",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "events": "Event",
        "resourcequotas": "ResourceQuota",
        "limitranges": "LimitRange",
    },
    "ray.io/v1": {"rayjobs": "RayJob", "rayclusters": "RayCluster"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
}
_START = datetime(2026, 1, 1, tzinfo=UTC)
_OVER = ("Complete", "Failed", "ValidationFailed")


@dataclass
class Line:
    """Of a pod's log."""

    second: int
    """Since the pod started."""
    text: str
    is_whole: bool = True
    """Whether its line feed was printed."""

    @property
    def time(self) -> datetime:
        """When it was printed."""
        return _START + timedelta(seconds=self.second)


@dataclass
class KubeServer:
    """The API server: what it has, and what it was asked for."""

    step: Callable[["KubeServer", Document], None] = field(default=lambda server, job: None)
    """What KubeRay does to a RayJob that is not over whenever a client asks for it."""
    address: str = ""
    has_kuberay: bool = True
    forbidden: set[str] = field(default_factory=set)
    """Verb and resource, as in `patch rayjobs`."""
    objects: dict[tuple[str, str], Document] = field(default_factory=dict)
    """By resource and name."""
    managers: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    """Of the fields of an object."""
    logs: dict[str, list[Line]] = field(default_factory=dict)
    """Of the containers that have started, by pod."""
    checked: list[str] = field(default_factory=list)
    """Kinds of manifests that were applied on trial."""
    applied: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    num_broken: int = 0
    """Answers that are to be 503."""

    def __post_init__(self) -> None:
        """Have the namespace of the overlays."""
        self.objects["namespaces", "charactertrain"] = {"metadata": {"name": "charactertrain"}}

    @property
    def rayjobs(self) -> dict[str, Document]:
        """By name, the oldest first."""
        return {name: found for (kind, name), found in self.objects.items() if kind == "rayjobs"}

    def print_line(self, job: Document, text: str, *, second: int, pod: str = "1") -> None:
        """Print a line in the log of a submitter of a RayJob, which is made if it is not there."""
        name = f"{job['metadata']['name']}-{pod}"
        self.add_pod(name, {"job-name": job["metadata"]["name"]}, {"phase": "Running"})
        self.logs.setdefault(name, []).append(Line(second, text))

    def add_pod(self, name: str, labels: Mapping[str, str], status: Document) -> None:
        """A pod, unless it is there."""
        created = _START + timedelta(minutes=sum(kind == "pods" for kind, _ in self.objects))
        metadata = {
            "name": name,
            "labels": dict(labels),
            "creationTimestamp": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        spec = {"containers": [{"name": "ray-job-submitter"}]}
        pod = {"metadata": metadata, "spec": spec, "status": status}
        self.objects.setdefault(("pods", name), pod)

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(middlewares=[self._allowed])
        application.add_routes(
            [
                web.get("/version", self._version),
                web.get("/apis", self._groups),
                web.get("/api/v1", self._resources),
                web.get("/apis/{group}/{version}", self._resources),
            ]
        )
        for prefix in ("/api/v1", "/apis/{group}/{version}"):
            inside = prefix + "/namespaces/{namespace}/{resource}"
            application.add_routes(
                [
                    web.patch(prefix + "/namespaces/{name}", self._apply),
                    web.get(inside, self._list),
                    web.get(inside + "/{name}", self._get),
                    web.patch(inside + "/{name}", self._apply),
                    web.delete(inside + "/{name}", self._delete),
                    web.get(inside + "/{name}/log", self._log),
                ]
            )
        return application

    @web.middleware
    async def _allowed(self, request: web.Request, handler: Any) -> Any:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return refused(401, "Unauthorized")
        if self.num_broken:
            self.num_broken -= 1
            return refused(503, "the server is currently unable to handle the request")
        resource = request.match_info.get("resource", "namespaces")
        verb = request.method.lower()
        if "name" not in request.match_info and verb == "get":
            verb = "list"
        if f"{verb} {resource}" in self.forbidden:
            return refused(403, f'{resource} is forbidden: User "me" cannot {verb} "{resource}"')
        return await handler(request)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "32", "gitVersion": "v1.32.0"})

    def _served(self) -> dict[str, dict[str, str]]:
        return {name: kinds for name, kinds in SERVED.items() if name != "ray.io/v1"} | (
            {"ray.io/v1": SERVED["ray.io/v1"]} if self.has_kuberay else {}
        )

    async def _groups(self, _: web.Request) -> web.Response:
        groups = []
        for name in self._served():
            group, _, version = name.rpartition("/")
            if group:
                entry = {"groupVersion": name, "version": version}
                groups.append({"name": group, "versions": [entry], "preferredVersion": entry})
        return web.json_response({"kind": "APIGroupList", "groups": groups})

    async def _resources(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/apis/").removeprefix("/api/")
        kinds = self._served().get(path)
        if kinds is None:
            return refused(404, "the server could not find the requested resource")
        resources = [
            {"name": name, "kind": kind, "namespaced": name != "namespaces", "verbs": ["get"]}
            for name, kind in kinds.items()
        ]
        answer = {"kind": "APIResourceList", "groupVersion": path, "resources": resources}
        return web.json_response(answer)

    def _asked(self, document: Document) -> Document:
        """An object as it is when a client asks."""
        status = document.get("status") or {}
        is_job = document.get("kind") == "RayJob"
        if is_job and status.get("jobDeploymentStatus") not in _OVER:
            self.step(self, document)
        return document

    async def _list(self, request: web.Request) -> web.Response:
        wanted = request.match_info["resource"]
        labels = _pairs(request.query.get("labelSelector", ""))
        fields = _pairs(request.query.get("fieldSelector", ""))
        # The step may add objects.
        found = [
            self._asked(document)
            for (resource, _), document in list(self.objects.items())
            if resource == wanted
            and labels.items() <= document["metadata"].get("labels", {}).items()
            and fields.items() <= document.items()
        ]
        return web.json_response({"kind": "List", "items": found})

    async def _get(self, request: web.Request) -> web.Response:
        key = (request.match_info["resource"], request.match_info["name"])
        if key not in self.objects:
            return refused(404, f'{key[0]} "{key[1]}" not found')
        return web.json_response(self._asked(self.objects[key]))

    async def _apply(self, request: web.Request) -> web.Response:
        if request.content_type != "application/apply-patch+yaml":
            return refused(415, "expected an apply patch")
        body = yaml.safe_load(await request.text())
        resource = request.match_info.get("resource", "namespaces")
        namespace = request.match_info.get("namespace")
        if namespace and ("namespaces", namespace) not in self.objects:
            return refused(404, f'namespaces "{namespace}" not found')
        if body["kind"] == "RayJob" and request.query.get("fieldValidation") == "Strict":
            found = schema_problems(body)
            if found:
                return refused(400, f"strict decoding error: {found[0]}")
        key, manager = (resource, request.match_info["name"]), request.query["fieldManager"]
        causes = self._conflicts(key, body, manager)
        if causes and request.query.get("force") != "true":
            return refused(409, f"Apply failed with {len(causes)} conflicts", causes)
        if request.query.get("dryRun") == "All":
            self.checked.append(body["kind"])
            return web.json_response(body)
        self.apply(resource, body, manager)
        self.applied.append(body["kind"])
        return web.json_response(self.objects[key])

    def apply(self, resource: str, body: Document, manager: str) -> None:
        """Merge a manifest into what is there, in the name of a manager."""
        key = (resource, body["metadata"]["name"])
        there = self.objects.setdefault(key, {})
        _merge(there, body)
        there["metadata"].setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        owned = dict.fromkeys(_leaves(body), manager)
        self.managers.setdefault(key, {}).update(owned)

    def _conflicts(self, key: tuple[str, str], body: Document, manager: str) -> list[Document]:
        there, managers = _leaves(self.objects.get(key, {})), self.managers.get(key, {})
        return [
            {
                "reason": "FieldManagerConflict",
                "field": path,
                "message": f'conflict with "{managers[path]}"',
            }
            for path, value in _leaves(body).items()
            if managers.get(path, manager) != manager and there.get(path) != value
        ]

    async def _delete(self, request: web.Request) -> web.Response:
        key = (request.match_info["resource"], request.match_info["name"])
        if self.objects.pop(key, None) is None:
            return refused(404, f'{key[0]} "{key[1]}" not found')
        self.managers.pop(key, None)
        self.deleted.append(key[1])
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _log(self, request: web.Request) -> web.Response:
        lines = self.logs.get(request.match_info["name"])
        if lines is None:
            return refused(400, "container is waiting to start: ContainerCreating")
        since = request.query.get("sinceTime")
        begin = _START if since is None else datetime.fromisoformat(since)
        stamped = [
            f"{line.time:%Y-%m-%dT%H:%M:%S}.{number:09d}Z {line.text}" + "\n" * line.is_whole
            for number, line in enumerate(lines)
            if line.time >= begin
        ]
        return web.Response(text="".join(stamped))


def refused(status: int, message: str, causes: list[Document] | None = None) -> web.Response:
    """An answer as the API server gives it."""
    body = {"kind": "Status", "status": "Failure", "code": status, "message": message}
    if causes:
        body |= {"reason": "Conflict", "details": {"causes": causes}}
    return web.Response(status=status, text=json.dumps(body), content_type="application/json")


def kubeconfig(address: str, token: str = TOKEN) -> str:
    """A file that names the server."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "users": [{"name": "me", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        }
    )


def set_status(job: Document, deployment: str, ray: str, **more: Any) -> None:
    """What KubeRay writes into a RayJob."""
    job["status"] = {"jobDeploymentStatus": deployment, "jobStatus": ray, **more}


def succeed(_: KubeServer, job: Document) -> None:
    """Each RayJob is over as soon as it is asked for."""
    set_status(job, "Complete", "SUCCEEDED", endTime="2026-01-01T01:00:00Z")


def run_on(_: KubeServer, job: Document) -> None:
    """Each RayJob runs until the test says otherwise."""
    set_status(job, "Running", "RUNNING", rayClusterName=f"{job['metadata']['name']}-abcde")


def fail(code: int | None = None, reason: str = "AppFailed", message: str = "") -> Any:
    """Each RayJob fails: with the driver's exit code, or for another reason of KubeRay's."""
    if code is not None:
        message = f"Job entrypoint command failed with exit code {code}, last available logs: x\ny"

    def step(_: KubeServer, job: Document) -> None:
        set_status(job, "Failed", "FAILED", reason=reason, message=message)

    return step


def _pairs(selector: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in selector.split(",") if part)


def _merge(there: Document, body: Document) -> None:
    for key, value in body.items():
        if isinstance(value, dict) and isinstance(there.get(key), dict):
            _merge(there[key], value)
        else:
            there[key] = value


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _leaves(inner, f"{path}.{key}")
    return found
