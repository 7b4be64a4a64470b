"""From training workers to the driver: metrics, restarts, and the reason of a stop.

Light on imports: the actor is a process of its own.
"""

from typing import Any


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
