"""Between training workers and the driver, and what of it Ray Train's controller holds.

Light on imports: the relay and the controller are processes of their own, and a controller that
imports what the loop needs takes 400 MB instead of 130.
"""

import pickle
from collections.abc import Callable
from typing import Any

import ray
from ray.train import UserCallback

from charactertrain.exceptions import ModelError, TrainingError

_MAX_NOTICE_CHARACTERS = 1000

Loop = Callable[..., None]
"""Takes a `Worker` and named arguments."""


class Relay:
    """The actor that training workers tell and the driver asks."""

    def __init__(self) -> None:
        """Start empty."""
        self._lines: list[dict[str, Any]] = []
        self._stopped: str | None = None

    def send(self, values: dict[str, Any]) -> None:
        """Add one line."""
        self._lines.append(values)

    def take(self) -> list[dict[str, Any]]:
        """All lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def stop(self, reason: str) -> None:
        """Record that the loop stopped itself; the first reason counts."""
        self._stopped = self._stopped or reason

    def stopped(self) -> str | None:
        """Why the loop stopped itself, or None."""
        return self._stopped


class RestartNotice(UserCallback):
    """Tells the driver why a worker group is started again."""

    def __init__(self, relay: Any) -> None:
        """Tell through `relay`."""
        self._relay = relay

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller."""
        rank, error = min(worker_exceptions.items())
        notice = {"worker group failed": f"rank {rank}: {error}"[:_MAX_NOTICE_CHARACTERS]}
        ray.get(self._relay.send.remote(notice))


def run_packed(config: dict[str, Any]) -> None:
    """Run a loop that comes as bytes, which the controller hands on unopened.

    A loop that stops itself ends without an error: what is wrong will be wrong again.
    """
    from charactertrain.runtime.ray_worker import join_group

    loop: Loop
    relay = config["relay"]
    worker = join_group(relay)
    loop, arguments = pickle.loads(config["loop_and_arguments"])
    try:
        loop(worker, **arguments)
    except (TrainingError, ModelError) as error:
        ray.get(relay.stop.remote(str(error)))
