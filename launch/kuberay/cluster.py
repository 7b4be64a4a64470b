"""The RayJobs of a namespace as jobs: their states, their logs, stopping them."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from charactertrain.artifacts import Json
from launch.clusters import ClusterError, ForbiddenError, Job, Reach
from launch.kuberay.pods import problems
from launch.kuberay.rayjobs import ALL, API_VERSION, KIND, job_of

if TYPE_CHECKING:
    from launch.kuberay.api import KubernetesApi

NAMESPACE = "charactertrain"
"""That of the overlays."""
_POLL_SECONDS = 2.0
_READ_SECONDS = 10.0
"""For which a log is read before the job is looked at again."""


def reach(context: str | None, namespace: str) -> Reach:
    """The RayJobs of a namespace, of the cluster that a kubeconfig's context names."""
    chosen = "" if namespace == NAMESPACE else f" --namespace {namespace}"
    chosen += "" if context is None else f" --context {context}"
    return Reach(partial(connect, context, namespace), f" --kuberay{chosen}")


@asynccontextmanager
async def connect(context: str | None, namespace: str) -> "AsyncIterator[RayJobs]":
    """The RayJobs of a namespace; raises ConfigError without the client's package."""
    # It wants a package that no other command needs.
    from launch.kuberay.api import KubernetesApi

    async with KubernetesApi.connect(context, namespace) as api:
        yield RayJobs(api)


class RayJobs:
    """The RayJobs of one namespace."""

    def __init__(self, api: "KubernetesApi") -> None:
        """Nothing is asked yet."""
        self.api = api
        self.address = api.address
        # A RayJob is stopped by deleting it, and leaves nothing to be asked.
        self._seen: dict[str, Job] = {}

    def remember(self, document: Json) -> None:
        """A RayJob was applied: where it is not found later, it was deleted."""
        self._seen.setdefault(document["metadata"]["name"], job_of(document))

    async def jobs(self) -> list[Job]:
        """All that are there, and those that went away since they were seen."""
        there = [job_of(found) for found in await self.api.select(API_VERSION, KIND, labels=ALL)]
        names = {job.submission_id for job in there}
        gone = [_gone(job) for name, job in self._seen.items() if name not in names]
        self._seen |= {job.submission_id: job for job in [*there, *gone]}
        return sorted([*there, *gone], key=lambda job: (job.start_time or 0, job.submission_id))

    async def job(self, submission_id: str) -> Job:
        """One of them with what stands in its way."""
        document = await self.api.find(API_VERSION, KIND, submission_id)
        if document is None and submission_id not in self._seen:
            raise ClusterError(
                f"no RayJob {submission_id} in {self.address}: it was deleted, which stops it, or "
                "is in another namespace"
            )
        if document is None:
            job = _gone(self._seen[submission_id])
        else:
            job = job_of(document)
            job = job if job.is_over else replace(job, notices=await self._notices(document))
        self._seen[submission_id] = job
        return job

    async def _notices(self, document: Json) -> tuple[str, ...]:
        name = document["metadata"]["name"]
        cluster = (document.get("status") or {}).get("rayClusterName") or ""
        try:
            pods = await self.api.select("v1", "Pod", labels=f"job-name={name}")
            if cluster:
                pods += await self.api.select("v1", "Pod", labels=f"ray.io/cluster={cluster}")
            events = await self.api.select("v1", "Event", fields="type=Warning")
        except ForbiddenError as error:
            return (f"what stands in its way cannot be seen: {error}",)
        return tuple(problems(pods, events, [name, cluster]))

    def log(self, submission_id: str) -> "SubmitterLog":
        """What the driver prints, as the pod that submitted it shows it."""
        return SubmitterLog(self.api, submission_id)

    async def stop(self, submission_id: str) -> None:
        """Delete the RayJob: KubeRay asks the driver to stop, and takes the cluster down."""
        await self.api.delete(API_VERSION, KIND, submission_id)

    def about_stopping(self, job: Job) -> str:
        """What is deleted with it."""
        return (
            f"The RayJob {job.submission_id} is deleted, with its pods and their log; the run "
            "directory stays, and the same submission goes on in it."
        )


def _gone(job: Job) -> Job:
    if job.is_over:
        return job
    return replace(
        job,
        status="STOPPED",
        message="its RayJob was deleted",
        notices=(),
        is_being_deleted=False,
    )


class SubmitterLog:
    """The log of a RayJob's submitter, which follows the driver's; each line is given once.

    It is asked for again and again, each time from the second of the last line on: no connection
    has to last, and none blocks an interrupt.
    """

    def __init__(self, api: "KubernetesApi", job: str) -> None:
        """Nothing is read yet."""
        self._api = api
        self._job = job
        self._pod = ""
        self._since: str | None = None
        self._num_since = 0
        """Whole lines that were given of that second."""
        self._num_characters = 0
        """Given of the line after them, whose end was not printed yet."""
        self._is_forbidden = False

    async def read(self) -> AsyncIterator[str]:
        """What is new, as it comes."""
        end = time.monotonic() + _READ_SECONDS
        while time.monotonic() < end:
            if text := await self.rest():
                yield text
            await asyncio.sleep(_POLL_SECONDS)

    async def rest(self) -> str:
        """What is new, of all that was printed so far."""
        if self._is_forbidden:
            return ""
        try:
            return await self._rest()
        except ForbiddenError as error:
            self._is_forbidden = True
            return f"{error}\n"

    async def _rest(self) -> str:
        pod = await self._last_pod()
        if pod is None:
            return ""
        name = pod["metadata"]["name"]
        if name != self._pod:
            # KubeRay began anew: another pod, whose log has another beginning.
            self._pod, self._since, self._num_since, self._num_characters = name, None, 0, 0
        container = pod["spec"]["containers"][0]["name"]
        text = await self._api.pod_log(name, container, self._since)
        # At line feeds alone: bars of progress are full of carriage returns.
        lines = io.StringIO(text, newline="\n").readlines()
        new = lines[self._num_since :]
        texts = [line.partition(" ")[2] for line in new]
        given = self._num_characters
        if new:
            is_cut = not new[-1].endswith("\n")
            self._since = _second(new[-1])
            whole = lines[:-1] if is_cut else lines
            self._num_since = sum(_second(line) == self._since for line in whole)
            self._num_characters = len(texts[-1]) if is_cut else 0
        return "".join(texts)[given:]

    async def _last_pod(self) -> Json | None:
        pods = await self._api.select("v1", "Pod", labels=f"job-name={self._job}")
        return max(pods, key=_created, default=None)


def _created(pod: Json) -> str:
    time: str = pod["metadata"]["creationTimestamp"]
    return time


def _second(line: str) -> str:
    """The second of a line's time, in RFC 3339."""
    stamp = line.partition(" ")[0]
    return f"{stamp[:19]}Z"
