"""The Jobs API of a Ray cluster over HTTP: what a client asks of the head, and its errors in words.

Ray's own client waits for ever on a head that does not answer, lets the environment override the
address that it is given, and has one error for everything; the API that it speaks is public.
"""

import importlib.metadata
import io
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import aiohttp

from charactertrain.storage import without_keys
from launch.clusters import (
    ClusterError,
    DuplicateError,
    Job,
    UnreachableError,
    reason_of,
    shortened,
)
from launch.connection import auth_headers

_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)
_UPLOAD_TIMEOUT = aiohttp.ClientTimeout(total=900, sock_connect=10)
_TAIL_SECONDS = 120.0
"""Of silence after which a log's connection is made anew: a job may say nothing for hours, and a
head that is gone says nothing either. Ray's handler of these connections answers no pings."""


@dataclass(frozen=True)
class JobRequest:
    """A job to be submitted."""

    submission_id: str
    entrypoint: str
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]
    num_cpus: float
    """Logical CPUs that the driver holds; 0: it runs on the head."""
    memory_bytes: int


class JobsApi:
    """One cluster's Jobs API; `connect` makes it."""

    def __init__(self, address: str, session: aiohttp.ClientSession) -> None:
        """Remember both; `address` as of `find_address`."""
        self._url = address
        # For messages: without the password that may stand in front of the host.
        self.address = without_keys(address)
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: str) -> AsyncIterator[Self]:
        """The API of the cluster at `address`, once it has answered with the Ray of this checkout.

        TLS certificates are verified; SSL_CERT_FILE names an authority of one's own.

        Raises:
            ClusterError: It cannot be reached, wants another token, or runs another version.
        """
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
        async with aiohttp.ClientSession(headers=auth_headers(), connector=connector) as session:
            api = cls(address, session)
            await api._check_version()
            yield api

    async def _check_version(self) -> None:
        answer = await self._json("GET", "/api/version")
        found = answer.get("ray_version") if isinstance(answer, dict) else None
        expected = importlib.metadata.version("ray")
        if found != expected:
            raise ClusterError(
                f"{self.address} runs Ray {found}, and this checkout is for {expected}: the job "
                "would run this code with the other one. Use an image with the versions of "
                "requirements/, or the checkout that the cluster was made for."
            )

    async def has_package(self, name: str) -> bool:
        """Whether the package is on the cluster, which then keeps it for a while."""
        async with self._request("GET", f"/api/packages/gcs/{name}", (404,)) as response:
            return response.status != 404

    async def upload_package(self, name: str, data: bytes) -> None:
        """Put a package on the cluster."""
        async with self._request("PUT", f"/api/packages/gcs/{name}", data=io.BytesIO(data)):
            return

    async def submit(self, request: JobRequest) -> None:
        """Submit a job; raises DuplicateError where there is one of its id."""
        body: dict[str, Any] = {
            "entrypoint": request.entrypoint,
            "submission_id": request.submission_id,
            "runtime_env": dict(request.runtime_env),
            "metadata": dict(request.metadata),
        }
        if request.num_cpus:
            body["entrypoint_num_cpus"] = request.num_cpus
        if request.memory_bytes:
            body["entrypoint_memory"] = request.memory_bytes
        await self._json("POST", "/api/jobs/", json=body)

    async def job(self, submission_id: str) -> Job:
        """One job; raises ClusterError where there is none of that id."""
        return _job(await self._json("GET", _path(submission_id)))

    async def jobs(self) -> list[Job]:
        """All submitted jobs that the cluster remembers, the oldest first."""
        found = await self._json("GET", "/api/jobs/")
        jobs = [_job(values) for values in found if values.get("type") == "SUBMISSION"]
        return sorted(jobs, key=lambda job: (job.start_time or 0, job.submission_id))

    async def logs(self, submission_id: str) -> str:
        """All that the job's driver has printed so far."""
        answer = await self._json("GET", f"{_path(submission_id)}/logs")
        return str(answer["logs"])

    async def stop(self, submission_id: str) -> None:
        """Ask the cluster to stop a job; nothing happens to one that is over."""
        await self._json("POST", f"{_path(submission_id)}/stop")

    def about_stopping(self, job: Job) -> str:
        """When Ray stops a job that has not started."""
        if job.status != "PENDING":
            return ""
        return (
            "It has not started, and Ray stops a job when it starts, or gives it up after a while: "
            "15 minutes, unless the head's RAY_JOB_START_TIMEOUT_SECONDS says otherwise."
        )

    def log(self, submission_id: str) -> "JobLog":
        """What the job's driver prints."""
        return JobLog(self, submission_id)

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        """What the driver prints, from its first line on; ends with the job, or after a silence."""
        url = f"{self._url}{_path(submission_id)}/logs/tail"
        timeout = aiohttp.ClientWSTimeout(ws_receive=_TAIL_SECONDS, ws_close=1.0)
        try:
            async with self._session.ws_connect(url, timeout=timeout) as socket:
                with suppress(TimeoutError):
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.TEXT:
                            yield message.data
                if socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
                    raise UnreachableError(f"{self.address}: the connection broke off.")
        except aiohttp.WSServerHandshakeError as error:
            raise self._refused(error.status, error.message) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    async def _json(self, method: str, path: str, **content: Any) -> Any:
        async with self._request(method, path, **content) as response:
            text = await response.text()
        try:
            return json.loads(text)
        except ValueError as error:
            raise ClusterError(
                f"{self.address}{path} answered {shortened(text)!r}, which is no JSON: expected "
                "the dashboard of a Ray cluster's head. Check the address."
            ) from error

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, allowed: tuple[int, ...] = (), **content: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        timeout = _UPLOAD_TIMEOUT if "data" in content else _TIMEOUT
        try:
            async with self._session.request(
                method, f"{self._url}{path}", timeout=timeout, allow_redirects=False, **content
            ) as response:
                if response.status != 200 and response.status not in allowed:
                    raise self._refused(response.status, await response.text())
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClusterError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            return ClusterError(
                f"{self.address}: its certificate is not trusted: {error}. Set SSL_CERT_FILE to "
                "the certificate of the authority that signed it, or check the address."
            )
        reason = str(error) or type(error).__name__
        return UnreachableError(
            f"the head of the cluster at {self.address} cannot be reached: {reason}. Check that it "
            "runs, that its dashboard listens there (port 8265 unless set otherwise), and that a "
            "port-forward to it, if there is one, is open."
        )

    def _refused(self, status: int, text: str) -> ClusterError:
        if status == 401:
            return ClusterError(
                f"{self.address} asks for a token, and none was sent: set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token."
            )
        if status == 403:
            return ClusterError(
                f"{self.address} does not take the token that was sent. Expected the cluster's "
                "own: compare RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH, with it."
            )
        if "already exists" in text:
            return DuplicateError(_last_line(text))
        if status == 404:
            return ClusterError(
                f"{self.address}: not found ({_last_line(text) or 'no reason given'}). A cluster "
                "forgets its jobs when its head starts anew; `list` shows those that it has."
            )
        if status in (502, 503, 504):
            return UnreachableError(f"{self.address} answered {status}: {_last_line(text)}")
        return ClusterError(f"{self.address} answered {status}: {_last_line(text)}")


class JobLog:
    """What a job's driver prints; what was read is not read again."""

    def __init__(self, api: JobsApi, submission_id: str) -> None:
        """Nothing is read yet."""
        self._api = api
        self._submission_id = submission_id
        self._num_read = 0

    async def read(self) -> AsyncIterator[str]:
        """What is new, as it comes; each connection begins at the log's first line."""
        received = ""
        async for text in self._api.tail(self._submission_id):
            received += text
            yield self._new(received)

    async def rest(self) -> str:
        """What is new, of all that was printed so far."""
        return self._new(await self._api.logs(self._submission_id))

    def _new(self, log: str) -> str:
        new = log[self._num_read :]
        self._num_read = max(self._num_read, len(log))
        return new


def _path(submission_id: str) -> str:
    return f"/api/jobs/{quote(submission_id, safe='')}"


def _job(values: Mapping[str, Any]) -> Job:
    return Job(
        submission_id=values["submission_id"],
        status=values["status"],
        message=reason_of(values.get("message") or ""),
        error_type=values.get("error_type"),
        exit_code=values.get("driver_exit_code"),
        metadata=values.get("metadata") or {},
        start_time=values.get("start_time"),
        end_time=values.get("end_time"),
    )


def _last_line(text: str) -> str:
    """The line of a traceback that says what went wrong; of a page, its beginning."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(lines[-1]) if lines else ""
