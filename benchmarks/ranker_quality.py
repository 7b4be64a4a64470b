"""How right is each ranker on pairs whose truth is known?

Pairs of responses to everyday messages, for each trait of a constitution: written with the trait
shown against written without, and shown strongly against mildly (where the truth is a tendency).
Accuracy with a 95 % interval over messages, calibration, and tokens. Prints one JSON line;
`ratio`: accuracy of the ranker that `auto` would take by that of a judge that writes its verdict.

python benchmarks/ranker_quality.py [--messages 16] [--pairs 2] [overrides ...]
"""

import argparse
import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ranking import (
    RANKERS,
    ROOT,
    compared,
    composed_config,
    engine,
    group_of,
    versions,
    written_verdicts,
)

from charactertrain.records import Trait
from charactertrain.seeds import derive_seed
from charactertrain.stages.rankings.comparisons import Comparisons, Group
from charactertrain.statistics import bootstrap, calibration
from charactertrain.templates import CHECK_MESSAGES
from charactertrain.trait_file import load_constitution

CONTRASTS = {"with_against_without": ("strong", "none"), "strong_against_mild": ("strong", "mild")}


def main() -> None:
    """Write the pairs, ask every ranker and the peer, and print the line."""
    arguments = _arguments()
    config = composed_config([f"constitution={arguments.constitution}", *arguments.overrides])
    constitution = load_constitution(config.constitution, shipped_dir=ROOT / "constitutions")
    traits = [Trait(t.id, t.statement, (), None, 1.0, "benchmark") for t in constitution.traits]
    measured: dict[str, Any] = {}
    with engine(config) as sampler:
        for contrast, variants in CONTRASTS.items():
            groups = [
                _in_drawn_order(group_of(sampler, config, trait, message, variants, draw), draw)
                for trait in traits
                for message in CHECK_MESSAGES[: arguments.messages]
                for draw in range(arguments.pairs)
            ]
            groups = [group for group in groups if len(group.candidates) == 2]
            measured[contrast] = {
                name: _quality(compared(sampler, config, name, groups), groups, variants[0])
                for name in RANKERS
            }
            letters = written_verdicts(sampler, groups)
            measured[contrast]["written_verdict"] = _written(letters, groups, variants[0])
    found = measured["with_against_without"]
    able = [n for n in RANKERS[:-1] if found[n]["ci_low"] >= config.rankings.min_judge_accuracy]
    ours, peer = able[0] if able else "contrast", found["written_verdict"]["accuracy"]
    print(
        json.dumps(
            {
                "name": "ranker_quality",
                "ours": found[ours]["accuracy"],
                "ours_name": ours,
                "peer": peer,
                "peer_name": "judge that writes its verdict, both orders",
                "unit": "accuracy, written with the trait against without",
                "ratio": round(found[ours]["accuracy"] / max(peer, 1e-9), 3),
                "measured": measured,
                "model": config.model.name,
                "constitution": config.constitution,
                "versions": versions(),
            }
        )
    )


def _in_drawn_order(group: Group, draw: int) -> Group:
    """The pair in one of its orders, so that labels are both ways round."""
    group_id = f"{group.group_id} {draw}"
    swap = derive_seed("order", group_id) % 2
    candidates = group.candidates[::-1] if swap else group.candidates
    return Group(group_id, group.prompt, group.traits, candidates)


def _targets(groups: Sequence[Group], better: str) -> list[float]:
    return [float(group.candidates[0].response_id.startswith(better)) for group in groups]


def _quality(found: Sequence[Comparisons], groups: Sequence[Group], better: str) -> dict[str, Any]:
    targets = _targets(groups, better)
    probabilities = [each.probabilities_KK[0][1] for each in found]
    wins = [
        0.5 if p == 0.5 else float((p > 0.5) == bool(t))
        for p, t in zip(probabilities, targets, strict=True)
    ]
    return _accuracy(wins, groups) | {
        "ece": round(
            calibration.expected_calibration_error(probabilities, targets, num_bins=10), 3
        ),
        "brier": round(calibration.brier_score(probabilities, targets), 3),
        "prompt_tokens": round(fmean(each.prompt_tokens for each in found), 1),
        "computed_tokens": round(
            fmean(each.prompt_tokens - each.cached_tokens for each in found), 1
        ),
    }


def _written(letters: Sequence[str | None], groups: Sequence[Group], better: str) -> dict[str, Any]:
    """Both orders' letters as a vote; a verdict that is not there is counted, and half a vote."""
    wins = []
    for target, straight, swapped in zip(
        _targets(groups, better), letters[::2], letters[1::2], strict=True
    ):
        votes = [
            0.5 if letter is None else float((letter == "A") == first)
            for letter, first in ((straight, True), (swapped, False))
        ]
        share = fmean(votes)
        wins.append(0.5 if share == 0.5 else float((share > 0.5) == bool(target)))
    missing = sum(letter is None for letter in letters) / len(letters)
    return _accuracy(wins, groups) | {"missing": round(missing, 3)}


def _accuracy(wins: Sequence[float], groups: Sequence[Group]) -> dict[str, Any]:
    by_message = bootstrap.values_by_cluster(wins, [group.prompt for group in groups])
    interval = bootstrap.cluster_bootstrap_mean(by_message, num_resamples=2000, seed=0)
    return {
        "accuracy": round(interval.estimate, 3),
        "ci_low": round(interval.ci_low, 3),
        "ci_high": round(interval.ci_high, 3),
        "num_pairs": len(wins),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--constitution", default="demo")
    parser.add_argument("overrides", nargs="*", help="of the config, such as model=qwen3_0_6b")
    return parser.parse_args()


if __name__ == "__main__":
    main()
