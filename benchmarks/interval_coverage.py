"""How often do the intervals of an evaluation hold the truth?

Simulated studies of two arms on the same prompts, three responses each, whose true difference is
known: normal scores, detections (yes or no) and values with a long tail. Ours: the interval of
`bootstrap.cluster_bootstrap_difference`. Peer: the same bootstrap between its plain 2.5 and 97.5 %
quantiles. Of a 95 % interval the share should be 0.95. Prints one JSON line; `ratio`: the share of
studies that ours holds, by the peer's, with the fewest prompts of the values in which it is least.

`by_runs` are studies of several training runs of 40 prompts, whose true changes differ from run to
run by a standard deviation of 0, 0.15 or 0.5 (a prompt's own change by 0.5). Ours: the interval of
`several_runs.difference_over_runs`. Peer: that of the first run's prompts alone.

python benchmarks/interval_coverage.py [--studies 4000] [--prompts 10 20 43 200] [--runs 2 3 5]
"""

import argparse
import json
import platform
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from charactertrain.statistics.bootstrap import cluster_bootstrap_difference
from charactertrain.statistics.resampling import resampled
from charactertrain.statistics.several_runs import difference_over_runs

Array = NDArray[np.float64]
NUM_RESPONSES = 3
NUM_RESAMPLES = 1000
RUN_DEVIATIONS = (0.0, 0.15, 0.5)
RUN_PROMPTS = 40


def main() -> None:
    """Simulate and print the line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--prompts", nargs="+", type=int, default=[10, 20, 43, 200])
    parser.add_argument("--runs", nargs="*", type=int, default=[2, 3, 5])
    arguments = parser.parse_args()
    by_values = {
        name: {
            num_prompts: _coverage(study, truth, num_prompts, arguments.studies)
            for num_prompts in arguments.prompts
        }
        for name, (study, truth) in STUDIES.items()
    }
    fewest = min(arguments.prompts)
    ours, peer = min((found[fewest] for found in by_values.values()), key=lambda pair: pair[0])
    by_runs = {
        num_runs: {
            deviation: _coverage_of_runs(num_runs, deviation, arguments.studies)
            for deviation in RUN_DEVIATIONS
        }
        for num_runs in arguments.runs
    }
    line = {
        "name": "interval_coverage",
        "ours": ours,
        "peer": peer,
        "peer_name": "plain percentile bootstrap",
        "unit": "share of 95 % intervals that hold the truth",
        "ratio": round(ours / peer, 3),
        "by_values": {
            name: {n: {"ours": o, "peer": p} for n, (o, p) in found.items()}
            for name, found in by_values.items()
        },
        "by_runs": {
            n: {deviation: {"ours": o, "peer": p} for deviation, (o, p) in found.items()}
            for n, found in by_runs.items()
        },
        "studies": arguments.studies,
        "device": platform.processor() or platform.machine(),
        "versions": {"numpy": np.__version__},
    }
    print(json.dumps(line))


Study = Callable[[np.random.Generator, int], tuple[Array, Array]]
"""Values of both arms, one row a prompt."""


def _normal(rng: np.random.Generator, num_prompts: int) -> tuple[Array, Array]:
    effects = rng.normal(size=(num_prompts, 1))
    changes = 0.5 + rng.normal(0, 0.5, (num_prompts, 1))
    noise = rng.normal(size=(2, num_prompts, NUM_RESPONSES))
    return effects + noise[0], effects + changes + noise[1]


def _detections(rng: np.random.Generator, num_prompts: int) -> tuple[Array, Array]:
    rates = rng.beta(2, 2, (num_prompts, 1))
    draws = rng.random((2, num_prompts, NUM_RESPONSES))
    return (draws[0] < rates / 2).astype(float), (draws[1] < rates).astype(float)


def _long_tail(rng: np.random.Generator, num_prompts: int) -> tuple[Array, Array]:
    scales = np.exp(rng.normal(size=(num_prompts, 1)))
    values = rng.exponential(size=(2, num_prompts, NUM_RESPONSES))
    return scales * values[0], 1.5 * scales * values[1]


STUDIES: dict[str, tuple[Study, float]] = {
    "normal": (_normal, 0.5),
    "detections": (_detections, 0.25),
    "long tail": (_long_tail, 0.5 * float(np.exp(0.5))),
}
"""With the true difference."""


def _coverage(
    study: Study, truth: float, num_prompts: int, num_studies: int
) -> tuple[float, float]:
    """Shares that ours and the peer's intervals hold."""
    rng = np.random.default_rng(num_prompts)
    held = np.zeros(2)
    for number in range(num_studies):
        base, policy = study(rng, num_prompts)
        found = cluster_bootstrap_difference(
            _by_cluster(base), _by_cluster(policy), num_resamples=NUM_RESAMPLES, seed=number
        )
        sums_R = resampled(
            (policy - base).sum(axis=1)[None], num_resamples=NUM_RESAMPLES, seed=number
        )[0]
        low, high = np.quantile(sums_R / (num_prompts * NUM_RESPONSES), (0.025, 0.975))
        held += [found.ci_low <= truth <= found.ci_high, low <= truth <= high]
    ours, peer = (held / num_studies).round(3).tolist()
    return ours, peer


def _coverage_of_runs(num_runs: int, deviation: float, num_studies: int) -> tuple[float, float]:
    """Shares of studies of several runs that ours and the peer's intervals hold."""
    rng = np.random.default_rng(num_runs)
    held = np.zeros(2)
    for number in range(num_studies):
        levels = rng.normal(size=(RUN_PROMPTS, 1))
        changes = 0.5 + rng.normal(0, 0.5, (RUN_PROMPTS, 1))
        shape = (RUN_PROMPTS, 2)
        base = _by_cluster(levels + rng.normal(0, 0.7, shape))
        runs = [
            (base, _by_cluster(levels + changes + shift + rng.normal(0, 0.7, shape)))
            for shift in rng.normal(0, deviation, num_runs)
        ]
        ours = difference_over_runs(runs)
        peer = cluster_bootstrap_difference(*runs[0], num_resamples=NUM_RESAMPLES, seed=number)
        held += [found.ci_low <= 0.5 <= found.ci_high for found in (ours, peer)]
    ours_share, peer_share = (held / num_studies).round(3).tolist()
    return ours_share, peer_share


def _by_cluster(values: Array) -> dict[str, list[float]]:
    return {f"p{number}": row for number, row in enumerate(values.tolist())}


if __name__ == "__main__":
    main()
