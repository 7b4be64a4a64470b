"""A Kubernetes API server by its official client: what is asked of it, and its errors in words."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import yaml

from charactertrain.artifacts import Json
from charactertrain.exceptions import ConfigError
from launch.clusters import ClusterError, UnreachableError
from launch.kuberay.errors import refused

try:
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.dynamic import DynamicClient
    from kubernetes.dynamic.exceptions import DynamicApiError, ResourceNotFoundError
    from urllib3.exceptions import HTTPError
except ImportError as error:
    raise ConfigError(
        "the Python client of Kubernetes is not installed, and RayJobs are submitted with it: pip "
        f"install --no-deps -r requirements/kube.txt ({error})"
    ) from error

FIELD_MANAGER = "charactertrain"
"""By which the API server remembers what was applied from here."""
_TIMEOUT_SECONDS = (10.0, 60.0)
"""To connect, and to be answered."""


class _ImpatientClient(DynamicClient):  # type: ignore[misc]  # untyped
    """Waits so long for every answer, also to what it asks by itself: what a cluster serves."""

    def request(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        params.setdefault("_request_timeout", _TIMEOUT_SECONDS)
        return super().request(method, path, body, **params)


class KubernetesApi:
    """One namespace of a cluster; `connect` makes it."""

    def __init__(self, dynamic: DynamicClient, namespace: str) -> None:
        """What has a namespace is looked for in this one."""
        self._dynamic = dynamic
        self.namespace = namespace
        self.address = f"{dynamic.configuration.host} (namespace {namespace})"

    @classmethod
    @asynccontextmanager
    async def connect(cls, context: str | None, namespace: str) -> AsyncIterator[Self]:
        """The cluster of a kubeconfig's context, or that which this process runs in.

        Raises:
            ConfigError: There is no kubeconfig, or it has no such context.
            ClusterError: The cluster cannot be reached, or does not take the credentials.
        """
        configuration = _configuration(context)
        # The client remembers what a cluster serves in a file; its own choice is a name in the
        # temporary directory that others can guess, and that outlives what is installed meanwhile.
        with tempfile.TemporaryDirectory() as directory:
            make = partial(
                _ImpatientClient,
                client.ApiClient(configuration),
                cache_file=str(Path(directory) / "served.json"),
            )
            api = cls(await _ask("what it serves", configuration.host, make), namespace)
            # Now, so that a server that fails later is not taken for one without KubeRay.
            for api_version, kind in (("ray.io/v1", "RayJob"), ("v1", "Pod"), ("v1", "Event")):
                await api._resource(api_version, kind)
            yield api

    async def apply(self, document: Json, *, dry_run: bool) -> None:
        """Apply a manifest on the server's side; a dry run checks it and changes nothing.

        Raises:
            ClusterError: It is not valid, not allowed, or another manager has set it otherwise.
        """
        metadata = document["metadata"]
        what = f"{document['kind']} {metadata['name']}"
        resource = await self._resource(document["apiVersion"], document["kind"])
        send = partial(
            resource.server_side_apply,
            body=document,
            name=metadata["name"],
            namespace=metadata.get("namespace"),
            field_manager=FIELD_MANAGER,
            query_params=[("fieldValidation", "Strict")],
            dry_run="All" if dry_run else None,
            serializer=_plain,
        )
        await self._ask(what, send)

    async def find(self, api_version: str, kind: str, name: str) -> Json | None:
        """One object; None where there is none of that name."""
        resource = await self._resource(api_version, kind)
        path = resource.path(name=name, namespace=self.namespace)
        found: Json | None = await self._ask(f"{kind} {name}", partial(self._found, path))
        return found

    async def select(
        self, api_version: str, kind: str, *, labels: str = "", fields: str = ""
    ) -> list[Json]:
        """The objects of a kind that have these labels and fields."""
        resource = await self._resource(api_version, kind)
        path = resource.path(namespace=self.namespace)
        selectors = [("labelSelector", labels), ("fieldSelector", fields)]
        query = [(key, value) for key, value in selectors if value]
        answer = await self._ask(f"a look at {resource.name}", partial(self._get, path, query))
        items: list[Json] = answer.get("items") or []
        return items

    async def delete(self, api_version: str, kind: str, name: str) -> None:
        """Delete an object, and later what it owns; nothing happens where there is none."""
        resource = await self._resource(api_version, kind)
        path = resource.path(name=name, namespace=self.namespace)
        await self._ask(f"{kind} {name}", partial(self._deleted, path))

    async def pod_log(self, pod: str, container: str, since: str | None) -> str:
        """What a container has printed, each line after its time; empty before it starts.

        Args:
            pod: Its name.
            container: Which of the pod's.
            since: An RFC 3339 time, of which the server takes whole seconds.
        """
        resource = await self._resource("v1", "Pod")
        path = f"{resource.path(name=pod, namespace=self.namespace)}/log"
        query = [("container", container), ("timestamps", "true")]
        query += [] if since is None else [("sinceTime", since)]
        text: str = await self._ask(f"a look at the log of {pod}", partial(self._text, path, query))
        return text

    async def _resource(self, api_version: str, kind: str) -> Any:
        # Without the prefix, the client would ask what every group of the cluster serves.
        prefix = "apis" if "/" in api_version else "api"
        look = partial(
            self._dynamic.resources.get, prefix=prefix, api_version=api_version, kind=kind
        )
        return await self._ask(f"{kind} of {api_version}", look)

    async def _ask(self, what: str, ask: Callable[[], Any]) -> Any:
        return await _ask(what, self.address, ask)

    def _get(self, path: str, query: list[tuple[str, str]]) -> Any:
        return self._dynamic.request("get", path, query_params=list(query), serializer=_plain)

    def _found(self, path: str) -> Any:
        try:
            return self._get(path, [])
        except DynamicApiError as error:
            if error.status != 404:
                raise
            return None

    def _deleted(self, path: str) -> None:
        try:
            self._dynamic.request("delete", path, serializer=_plain)
        except DynamicApiError as error:
            if error.status != 404:
                raise

    def _text(self, path: str, query: list[tuple[str, str]]) -> str:
        try:
            answer = self._dynamic.request("get", path, query_params=list(query), serialize=False)
        except DynamicApiError as error:
            # The pod is gone, or its container has not started.
            if error.status not in (400, 404):
                raise
            return ""
        return str(answer.data.decode(errors="replace"))


def _plain(_: Any, values: Any) -> Any:
    """In place of the client's objects with attributes."""
    return values


def _configuration(context: str | None) -> Any:
    configuration = client.Configuration()
    # A cluster that does not answer is said to be so at once; who follows tries again.
    configuration.retries = False
    path = os.environ.get("KUBECONFIG") or None
    is_inside = "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        has_file = path is not None or (Path.home() / ".kube" / "config").is_file()
        # A context is of a file: where one is asked for and there is none, that is said.
        if is_inside and context is None and not has_file:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(
                config_file=path, context=context, client_configuration=configuration
            )
    except (ConfigException, OSError, yaml.YAMLError) as error:
        raise ConfigError(
            f"no cluster is named: {str(error).rstrip('.')}. Expected a kubeconfig in "
            f"{path or '~/.kube/config'} (KUBECONFIG names another), with the context "
            f"{context or 'that is current'}; kubectl config get-contexts shows those that it has."
        ) from error
    return configuration


async def _ask(what: str, address: str, ask: Callable[[], Any]) -> Any:
    """The answer; errors of the client become ours. It blocks, hence the thread."""
    try:
        return await asyncio.to_thread(ask)
    except ResourceNotFoundError as error:
        raise ClusterError(
            f"{address} does not serve {what}. Of ray.io: KubeRay and its CRDs are not installed "
            "there, or are of another version; kube/README.md says what the cluster needs."
        ) from error
    except DynamicApiError as error:
        raise refused(what, address, error.status, error.body or error.reason) from error
    except HTTPError as error:
        raise UnreachableError(
            f"the API server {address} cannot be reached: {error}. Check the kubeconfig's context, "
            "the VPN or tunnel to it, and that kubectl reaches it."
        ) from error
