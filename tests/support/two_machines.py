"""Two machines that are network namespaces of this one, on a wire that can be cut."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from charactertrain.runtime.placement import GROUP_LABEL

RAY = str(Path(sys.executable).parent / "ray")
PORT = 6379
_START_SECONDS = 120


def missing() -> str | None:
    """Why there can be no such machines here; None if there can."""
    if shutil.which("ip") is None:
        return "there is no `ip` (iproute2)"
    name = f"try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@dataclass
class Machine:
    """A namespace with an address, and the Ray node in it."""

    name: str
    address: str
    wire: str
    """Its end."""
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """A command that runs on it."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def do(self, *arguments: str) -> None:
        """Run a command on it."""
        subprocess.run(self.command(*arguments), check=True)

    def start_ray(self, group: str, log: Path, *arguments: str) -> None:
        """Start a node of a group, with one logical CPU or what the arguments say."""
        command = self.command(RAY, "start", "--block", f"--node-ip-address={self.address}")
        command += [f"--labels={GROUP_LABEL}={group}", "--disable-usage-stats"]
        command += ["--object-store-memory=200000000", *arguments]
        with log.open("ab") as file:
            self.processes.append(
                subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            )

    def stop_ray(self) -> None:
        """Kill its nodes and all that runs in them, as a machine does that is switched off."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        for pid in listed.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.processes:
            process.wait()
        self.processes.clear()


@dataclass(frozen=True)
class TwoMachines:
    """A head and another, which only see each other."""

    head: Machine
    other: Machine
    log: Path

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return f"{self.head.address}:{PORT}"

    def start(self, *head: str, other: tuple[str, ...]) -> None:
        """Start Ray on both, with further arguments for each."""
        self.head.start_ray(
            "trainers",
            self.log,
            "--head",
            f"--port={PORT}",
            "--include-dashboard=false",
            *head,
        )
        self.wait_for_nodes(1)
        self.join(*other)

    def join(self, *arguments: str) -> None:
        """Start Ray on the other one."""
        self.other.start_ray("samplers", self.log, f"--address={self.address}", *arguments)
        self.wait_for_nodes(2)

    def wait_for_nodes(self, count: int) -> None:
        """Until the head knows of so many that live."""
        script = (
            "import ray; ray.init(address='auto', logging_level='ERROR', log_to_driver=False); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        end = time.monotonic() + _START_SECONDS
        found = error = ""
        while found != str(count):
            assert time.monotonic() < end, f"{error}\n{self.log.read_text()[-2000:]}"
            asked = subprocess.run(
                self.head.command(sys.executable, "-c", script),
                env={**os.environ, "RAY_ADDRESS": self.address},
                capture_output=True,
                text=True,
                check=False,
            )
            found, error = asked.stdout.strip(), asked.stderr[-2000:]

    def cut(self) -> None:
        """No packet passes any more, in either direction; nobody is told."""
        self.other.do("ip", "link", "set", self.other.wire, "down")

    def mend(self) -> None:
        """They pass again."""
        self.other.do("ip", "link", "set", self.other.wire, "up")


@contextmanager
def two_machines(log: Path) -> Iterator[TwoMachines]:
    """Two of them without Ray, which go when the context ends, and what runs on them."""
    own = os.getpid() % 50_000
    machines = [
        Machine(
            f"machine-{own}-{end}", f"10.{200 + own % 50}.{own % 250}.{end + 1}", f"w{own}{end}"
        )
        for end in range(2)
    ]
    wires = [machine.wire for machine in machines]
    for machine in machines:
        subprocess.run(["ip", "netns", "add", machine.name], check=True)
    patch = pytest.MonkeyPatch()
    # Nobody else is on the wire, and both would have to be told a token.
    patch.setenv("RAY_AUTH_MODE", "disabled")
    try:
        subprocess.run(
            ["ip", "link", "add", wires[0], "type", "veth", "peer", "name", wires[1]], check=True
        )
        for machine in machines:
            subprocess.run(["ip", "link", "set", machine.wire, "netns", machine.name], check=True)
            machine.do("ip", "address", "add", f"{machine.address}/24", "dev", machine.wire)
            machine.do("ip", "link", "set", machine.wire, "up")
            machine.do("ip", "link", "set", "lo", "up")
        yield TwoMachines(*machines, log)
    finally:
        patch.undo()
        for machine in machines:
            machine.stop_ray()
            # The wire goes with its ends.
            subprocess.run(["ip", "netns", "delete", machine.name], check=True)
