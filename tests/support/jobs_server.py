"""A cluster's Jobs API on loopback, for what clients say and do; jobs on it are only said to run.

Its answers are those of Ray 2.60's `dashboard/modules/job/job_head.py` and of its middleware for
tokens.
"""

import asyncio
import functools
import importlib.metadata
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from aiohttp import web

RUN = (
    "experiment=smoke",
    "cluster=ray",
    "cluster.gpus_per_worker=0",
    "cluster.num_workers=1",
    "cluster.cpus_per_worker=1",
)
"""A run that a cluster takes, and a client plans in an instant."""

_MESSAGES = {
    "PENDING": "Job has not started yet. It may be waiting for resources (CPUs, GPUs, memory, "
    "custom resources) to become available.",
    "RUNNING": "Job is currently running.",
    "STOPPED": "Job was intentionally stopped.",
    "SUCCEEDED": "Job finished successfully.",
    "FAILED": "Job entrypoint command failed",
}


@dataclass
class FakeJob:
    """A job; a test changes what it likes."""

    body: dict[str, Any]
    status: str = "RUNNING"
    log: str = ""
    exit_code: int | None = None
    error_type: str | None = None
    num_asked: int = 0
    """Times that its state was asked for, alone or with all."""


def succeed(job: FakeJob) -> None:
    """Each job is over as soon as it is asked for."""
    job.status, job.exit_code = "SUCCEEDED", 0


def run_on(job: FakeJob) -> None:
    """Each job runs until the test says otherwise."""
    job.status = "RUNNING"


@dataclass
class JobsServer:
    """The head: what it was sent, and what it has."""

    step: Callable[[FakeJob], None] = succeed
    """What happens to a job that is not over whenever a client asks for it."""
    token: str | None = None
    ray_version: str = importlib.metadata.version("ray")
    address: str = ""
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    num_uploads: int = 0
    stopped: list[str] = field(default_factory=list)
    unstoppable: str = ""
    """A job of which the server answers that it is out of order."""
    max_running: int = 0
    """Most jobs that were not over at one time."""
    num_tails: int = 0
    drops_tails: int = 0
    """Log connections that are to break off after their first piece."""

    def application(self) -> web.Application:
        """The routes."""
        application = web.Application(middlewares=[self._authenticated], client_max_size=2**30)
        application.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/packages/gcs/{name}", self._has_package),
                web.put("/api/packages/gcs/{name}", self._take_package),
                web.get("/api/jobs/", self._list),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{id}", self._job),
                web.get("/api/jobs/{id}/logs", self._logs),
                web.get("/api/jobs/{id}/logs/tail", self._tail),
                web.post("/api/jobs/{id}/stop", self._stop),
            ]
        )
        return application

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Any) -> Any:
        given = request.headers.get("Authorization", "")
        if self.token is not None and not given:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if self.token is not None and given != f"Bearer {self.token}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        return await handler(request)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": self.ray_version})

    async def _has_package(self, request: web.Request) -> web.Response:
        is_there = request.match_info["name"] in self.packages
        return web.Response(status=200 if is_there else 404)

    async def _take_package(self, request: web.Request) -> web.Response:
        self.packages[request.match_info["name"]] = await request.read()
        self.num_uploads += 1
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["submission_id"]
        if name in self.jobs:
            text = (
                f"Traceback (most recent call last):\nValueError: Job with submission_id {name} "
                "already exists. Please use a different submission_id."
            )
            return web.Response(status=400, text=text)
        self.jobs[name] = FakeJob(body, status="PENDING")
        not_over = [job for job in self.jobs.values() if job.status in ("PENDING", "RUNNING")]
        self.max_running = max(self.max_running, len(not_over))
        return web.json_response({"job_id": name, "submission_id": name})

    def _shown(self, name: str) -> dict[str, Any]:
        job = self.jobs[name]
        job.num_asked += 1
        if job.status in ("PENDING", "RUNNING"):
            self.step(job)
        is_over = job.status not in ("PENDING", "RUNNING")
        message = _MESSAGES[job.status]
        if job.status == "FAILED":
            message += f", last available logs (truncated to 20,000 chars):\n{job.log}"
        return {
            "type": "SUBMISSION",
            "submission_id": name,
            "status": job.status,
            "message": message,
            "error_type": job.error_type,
            "driver_exit_code": job.exit_code,
            "metadata": job.body["metadata"],
            "start_time": 1_790_000_000_000 + list(self.jobs).index(name),
            "end_time": 1_790_000_060_000 if is_over else None,
        }

    async def _list(self, _: web.Request) -> web.Response:
        driver = {"type": "DRIVER", "submission_id": None, "status": "RUNNING", "metadata": {}}
        return web.json_response([*map(self._shown, list(self.jobs)), driver])

    async def _job(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.jobs:
            return web.Response(status=404, text=f"Job {name} does not exist")
        return web.json_response(self._shown(name))

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self.jobs[request.match_info["id"]].log})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        job = self.jobs[request.match_info["id"]]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        num_sent = 0
        self.num_tails += 1
        while job.status in ("PENDING", "RUNNING") or num_sent < len(job.log):
            if piece := "".join(job.log[num_sent:].splitlines(keepends=True)[:1]):
                await socket.send_str(piece)
                num_sent += len(piece)
                if self.drops_tails:
                    self.drops_tails -= 1
                    assert request.transport is not None
                    request.transport.abort()
                    return socket
            else:
                job.num_asked += 1
                self.step(job)
                # As Ray's: it sends and never receives, so that no ping is answered.
                await asyncio.sleep(0.01)
        return socket

    async def _stop(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name == self.unstoppable:
            return web.Response(status=500, text="out of order")
        self.stopped.append(name)
        job = self.jobs[name]
        was_running = job.status in ("PENDING", "RUNNING")
        # One that has not started is stopped when it starts.
        if job.status == "RUNNING":
            job.status = "STOPPED"
        return web.json_response({"stopped": was_running})


class Served(Protocol):
    """What stands in for a server."""

    address: str

    def application(self) -> web.Application: ...


Server = TypeVar("Server", bound=Served)


@contextmanager
def serving(server: Server, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """The server on a free port, in a thread of its own; its `address` says where."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.application(), shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        return int(runner.addresses[0][1])

    async def stop() -> None:
        await runner.cleanup()
        # Log connections whose clients are gone.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=30)
    scheme = "http" if context is None else "https"
    server.address = f"{scheme}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=30)
        loop.close()


@contextmanager
def command(arguments: Sequence[str], **options: Any) -> "Iterator[subprocess.Popen[str]]":
    """A process that prints to a pipe, that an interrupt reaches, and that does not outlive us."""
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell starts in the background ignores interrupts, and its children too.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Return when the condition holds; fails when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
