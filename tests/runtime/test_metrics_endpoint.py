"""A simulated run's metrics as Prometheus would scrape them from Ray's endpoint."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from charactertrain.runtime.metric_catalog import RAY_PREFIX

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_TIMEOUT_SECONDS = 240
_SETTINGS = (
    "experiment=smoke",
    "model.precision=fp32",
    "cluster=ray",
    "cluster.num_workers=1",
    "cluster.gpus_per_worker=0",
    "sampler=fake",
    # Some time for each stage, so that there is something to watch.
    "+sampler.latency={prefill_tokens_per_second: 20000, seconds_per_step: 0.02, "
    "seconds_per_sequence: 0.0}",
    "sampler.resources.rows_per_chunk=4",
    "sampler.resources.max_num_seqs=12",
    "run.until=responses",
)
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(name="node", scope="module")
def one_node() -> Iterator[Cluster]:
    """A cluster that outlives a run."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": False,
            # Ray's own pace is ten seconds.
            "_system_config": {"metrics_report_interval_ms": 1000},
        },
    )
    yield cluster
    cluster.shutdown()


def endpoint(cluster: Cluster) -> str:
    """Where the node's agent answers."""
    ray.init(address=cluster.address, log_to_driver=False)
    (node,) = ray.nodes()
    ray.shutdown()
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def scraped(url: str) -> Series:
    """Our series on the page."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    page = opener.open(url, timeout=10).read().decode()
    found: Series = {}
    for name, labels, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", page, re.MULTILINE):
        if name.startswith(f"{RAY_PREFIX}charactertrain_"):
            pairs = frozenset(re.findall(r'(\w+)="([^"]*)"', labels))
            found[name, pairs] = float(value)
    return found


def with_labels(series: Series, name: str, **labels: str) -> list[float]:
    """Values of a metric's series that have these labels."""
    return [
        value
        for (found, pairs), value in series.items()
        if found == RAY_PREFIX + name and set(labels.items()) <= pairs
    ]


def test_a_simulated_run_is_seen_on_rays_endpoint(node: Cluster, tmp_path: Path) -> None:
    url = endpoint(node)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": node.address}
    command = [sys.executable, "-m", "charactertrain", *_SETTINGS, f"run.dir={tmp_path}/watched"]
    seen: Series = {}
    began = time.time()
    with (tmp_path / "log.txt").open("wb") as log:
        process: Any = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                assert time.time() - began < _TIMEOUT_SECONDS
                for series, value in scraped(url).items():
                    # The most that each showed: gauges of a stage that ended are 0 or gone.
                    seen[series] = max(value, seen.get(series, value))
                time.sleep(1)
        finally:
            process.kill()
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
    stage = {"run": "watched", "stage": "responses"}
    assert 1.0 in with_labels(seen, "charactertrain_stage_running", **stage)
    (changed,) = with_labels(seen, "charactertrain_stage_last_progress_timestamp_seconds", **stage)
    assert began <= changed <= time.time()
    (total,) = with_labels(seen, "charactertrain_task_rows", **stage, task="responses")
    (done,) = with_labels(seen, "charactertrain_task_done_rows", **stage, task="responses")
    assert 0 < done <= total
    (rejected,) = with_labels(
        seen, "charactertrain_engines_reject_ratio", **stage, task="responses"
    )
    assert 0.0 <= rejected <= 1.0
    tokens = with_labels(seen, "charactertrain_engines_generated_tokens_per_second", run="watched")
    assert max(tokens) > 0
