"""How often a verdict on a reply changes with the wording of its prompt, beyond drawing it again.

Replies are drawn, so that two to one wording differ in their verdict too. That share is the floor;
what lies above it is the wording's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from charactertrain.artifacts import Json
from charactertrain.evaluation.effects import Bootstrap
from charactertrain.probes.file import PLAIN
from charactertrain.records import ScriptReply
from charactertrain.statistics.bootstrap import (
    Interval,
    cluster_bootstrap_difference,
    cluster_bootstrap_mean,
)

VERDICTS: dict[str, Callable[[ScriptReply], bool | None]] = {
    "contrast_above_zero": lambda reply: None if reply.contrast is None else reply.contrast > 0,
    "detected": lambda reply: reply.detected,
}
"""What is either so or not of a reply; None where it was not measured."""

Verdicts = Mapping[str, Mapping[str, Sequence[bool]]]
"""By cluster and condition, those of the replies."""


@dataclass(frozen=True)
class _Flips:
    """By cluster, a value for each other wording."""

    shares: dict[str, list[float]]
    floors: dict[str, list[float]]


def flip_rows(replies: Sequence[ScriptReply], bootstrap: Bootstrap) -> list[Json]:
    """By verdict and trait, every arm's flips, their floor, and what is left above it.

    Of prompts of which two replies to the plain wording and to another have a verdict. Over one
    prompt and wording, with p and q the chances of the verdict under either, flips come to
    p(1 - q) + q(1 - p), the floor to p(1 - p) + q(1 - q), and the rest to (p - q)^2 on average: 0
    where the wording makes no difference, whatever drawing does.

    Args:
        replies: Of all arms, plain and in other words, each condition drawn twice.
        bootstrap: How intervals are made.
    """
    traits = list(dict.fromkeys(reply.trait_id for reply in replies))
    groups: list[str | None] = [None, *traits] if len(traits) > 1 else [None]
    rows = []
    for verdict, read in VERDICTS.items():
        for trait_id in groups:
            own = [reply for reply in replies if trait_id in (None, reply.trait_id)]
            arms = {
                arm: found
                for arm in dict.fromkeys(reply.arm for reply in own)
                if (found := _arm([r for r in own if r.arm == arm], read, bootstrap))
            }
            if arms:
                rows.append({"verdict": verdict, "trait_id": trait_id, "arms": arms})
    return rows


def _arm(
    replies: Sequence[ScriptReply],
    read: Callable[[ScriptReply], bool | None],
    bootstrap: Bootstrap,
) -> Json | None:
    """None where fewer than two prompts have two verdicts on two wordings."""
    found = _flips(_verdicts(replies, read))
    if len(found.shares) < 2:
        return None
    settings = {"num_resamples": bootstrap.num_resamples, "seed": bootstrap.seed}
    above = cluster_bootstrap_difference(found.floors, found.shares, **settings)
    return {
        "flips": _estimate(cluster_bootstrap_mean(found.shares, **settings)),
        "floor": _estimate(cluster_bootstrap_mean(found.floors, **settings)),
        "above_floor": {
            "estimate": above.difference,
            "ci_low": above.ci_low,
            "ci_high": above.ci_high,
        },
        "p_value": above.p_value,
        "num_prompts": above.num_clusters,
    }


def _estimate(found: Interval) -> Json:
    return {"estimate": found.estimate, "ci_low": found.ci_low, "ci_high": found.ci_high}


def _verdicts(
    replies: Sequence[ScriptReply], read: Callable[[ScriptReply], bool | None]
) -> Verdicts:
    found: dict[str, dict[str, list[bool]]] = {}
    for reply in replies:
        verdict = read(reply)
        if verdict is not None:
            found.setdefault(reply.cluster, {}).setdefault(reply.condition, []).append(verdict)
    return found


def _flips(verdicts: Verdicts) -> _Flips:
    """Of each cluster and wording that has two verdicts, and two on the plain one."""
    shares: dict[str, list[float]] = {}
    floors: dict[str, list[float]] = {}
    for cluster, by_condition in verdicts.items():
        twice = {name: found for name, found in by_condition.items() if len(found) == 2}
        plain = twice.pop(PLAIN, None)
        if plain is None:
            continue
        for other in twice.values():
            across = [one != another for one in plain for another in other]
            within = [first != second for first, second in (plain, other)]
            shares.setdefault(cluster, []).append(sum(across) / len(across))
            floors.setdefault(cluster, []).append(sum(within) / len(within))
    return _Flips(shares, floors)
