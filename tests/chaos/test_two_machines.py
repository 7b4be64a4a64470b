"""Two machines with addresses of their own, as namespaces of this one: they work together, and
what becomes of a run when the wire between them is cut.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos_runs import SIMULATED, Command, Undisturbed
from two_machines import TwoMachines, missing, two_machines

from charactertrain import artifacts
from charactertrain.storage import open_directory

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IS_CHAOS = "CHARACTERTRAIN_CHAOS_RUNS" in os.environ
CUT_SECONDS = 20
_SETTINGS = (
    "prompts.per_trait=60",
    "sampler.resources.num_engines=[2,2]",
    "sampler.resources.rows_per_chunk=4",
    "sampler.resources.max_num_seqs=12",
)


@pytest.fixture(name="machines", scope="module")
def two_machines_with_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoMachines]:
    """Each with room for one engine; the head also for a training worker."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with two_machines(tmp_path_factory.mktemp("machines") / "ray.log") as machines:
        machines.start("--num-cpus=1", other=("--num-cpus=1",))
        yield machines


def command(machines: TwoMachines, *overrides: str) -> Command:
    """A run whose driver is on the head."""
    return Command(machines.address, overrides, tuple(machines.head.command()))


@pytest.fixture(name="undisturbed", scope="module")
def undisturbed_run(machines: TwoMachines, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    run = command(machines, *_SETTINGS, *SIMULATED)
    return run.run_to_responses(tmp_path_factory.mktemp("undisturbed") / "run")


def cut_for_a_while(machines: TwoMachines) -> None:
    machines.cut()
    time.sleep(CUT_SECONDS)
    machines.mend()


def cut_for_good(machines: TwoMachines) -> None:
    """And another machine joins, some time after Ray has given the first one up."""
    machines.cut()
    machines.wait_for_nodes(1)
    machines.other.stop_ray()
    machines.mend()
    machines.join("--num-cpus=1")


@pytest.mark.parametrize("disturb", [cut_for_a_while, cut_for_good])
def test_responses_are_the_same_though_the_wire_is_cut(
    machines: TwoMachines,
    undisturbed: Undisturbed,
    tmp_path: Path,
    disturb: Callable[[TwoMachines], None],
) -> None:
    def during(process: "subprocess.Popen[bytes]") -> None:
        disturb(machines)

    run = command(machines, *_SETTINGS, *SIMULATED)
    found = run.run_disturbed(undisturbed, tmp_path / "run", during, delay_seconds=0.5)
    assert found == undisturbed.responses


@pytest.mark.engine
@pytest.mark.skipif(not IS_CHAOS, reason="takes minutes: `make chaos` runs it")
def test_a_policy_is_trained_on_one_machine_and_sampled_on_the_other(tmp_path: Path) -> None:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with two_machines(tmp_path / "ray.log") as machines:
        machines.start("--num-cpus=2", other=("--num-cpus=4",))
        run = command(
            machines,
            "cluster.node_group=trainers",
            "sampler.resources.node_group=samplers",
            "run.until=policy",
        )
        run.finish(run.start(tmp_path / "run"), tmp_path / "run")
    policy = artifacts.require(open_directory(str(tmp_path / "run" / "policy")), "policy")
    steps = [row for row in policy.summary["history"] if row["phase"] == "optimise"]
    assert [row["step"] for row in steps] == [1, 2]
    # Its engines had the weights of every step.
    assert all(row["sync_difference"] < 1e-3 for row in steps)
