"""What probes found: every arm against the base, by condition, trait and measure.

A reply that one of two arms lacks, having been rejected, is left out of both and counted.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from charactertrain.artifacts import Json
from charactertrain.evaluation.effects import Bootstrap
from charactertrain.probes import rows as probe_rows
from charactertrain.probes.descriptions import AGAIN, ON_TRAIT, Description
from charactertrain.probes.file import PLAIN
from charactertrain.probes.flips import flip_rows
from charactertrain.probes.measures import MEASURES, Better
from charactertrain.records import ScriptReply
from charactertrain.seeds import derive_seed

MAX_EXAMPLES = 12


def probe_results(
    replies: Sequence[ScriptReply],
    descriptions: Mapping[str, Description],
    *,
    num_resamples: int,
    seed: int,
) -> Json:
    """By probe: its title, rows of effects by condition and measure, flips, and examples.

    Args:
        replies: Of all arms, the base's among them.
        descriptions: Of all their probes but `ON_TRAIT` and `AGAIN`.
        num_resamples: Of the cluster bootstrap.
        seed: Of the same.
    """
    bootstrap = Bootstrap(num_resamples, seed)
    by_probe: dict[str, list[ScriptReply]] = defaultdict(list)
    for reply in replies:
        by_probe[reply.probe].append(reply)
    again = by_probe.pop(AGAIN, [])
    on_trait = [replace(reply, condition=PLAIN) for reply in by_probe.pop(ON_TRAIT, [])]
    found = {}
    for probe, description in descriptions.items():
        own = by_probe.get(probe)
        if own:
            has_plain = any(reply.condition == PLAIN for reply in own)
            clusters = set() if has_plain else {reply.cluster for reply in own}
            plain = [reply for reply in on_trait if reply.cluster in clusters]
            found[probe] = _result(own, plain, description, bootstrap)
            if description.asks_flips:
                found[probe]["flips"] = flip_rows([*plain, *own, *again], bootstrap)
    return found


def _result(
    own: Sequence[ScriptReply],
    plain: Sequence[ScriptReply],
    description: Description,
    bootstrap: Bootstrap,
) -> Json:
    found = probe_rows.Found([*plain, *own], bootstrap)
    rows = found.rows(with_retention=description.asks_retention)
    has_traits = any(row["measure"] in probe_rows.TRAIT_MEASURES for row in rows)
    return {
        "title": description.title,
        "question": description.question,
        "unit": "nats per token" if has_traits else "share",
        "better": description.better,
        "rows": [{**row, "better": _better(str(row["measure"]), description)} for row in rows],
        "left_out": _left_out([*plain, *own]),
        "examples": _examples(own),
    }


def _better(measure: str, description: Description) -> Better | None:
    if measure.endswith("_lost"):
        return "lower"
    stem = measure
    for suffix in probe_rows.SUFFIXES:
        stem = stem.removesuffix(suffix)
    if stem in MEASURES:
        return MEASURES[stem].better
    if measure.endswith("_slope") or (measure.endswith("_change") and description.asks_retention):
        return "unchanged"
    return description.better


def _left_out(replies: Sequence[ScriptReply]) -> dict[str, int]:
    """Turns by arm that the arm or the base has no reply to, the other having one."""
    turns: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for reply in replies:
        turns[reply.arm].add((reply.script_id, reply.turn))
    base = turns.pop("base", set())
    return {arm: len(base ^ own) for arm, own in turns.items()}


def _examples(replies: Sequence[ScriptReply]) -> list[Json]:
    """One script of each condition, chosen by hash, with what every arm said."""
    scripts: dict[tuple[str, str], dict[str, list[ScriptReply]]] = {}
    for reply in replies:
        by_arm = scripts.setdefault((reply.condition, reply.script_id), {})
        by_arm.setdefault(reply.arm, []).append(reply)
    most = max((len(by_arm) for by_arm in scripts.values()), default=0)
    chosen: dict[str, dict[str, list[ScriptReply]]] = {}
    for condition, script_id in sorted(scripts, key=lambda k: derive_seed("example", k[1])):
        by_arm = scripts[condition, script_id]
        if len(by_arm) == most and "base" in by_arm:
            chosen.setdefault(condition, by_arm)
    return [
        _example(condition, by_arm) for condition, by_arm in sorted(chosen.items())[:MAX_EXAMPLES]
    ]


def _example(condition: str, by_arm: Mapping[str, Sequence[ScriptReply]]) -> Json:
    first = min(by_arm["base"], key=lambda reply: reply.turn)
    return {
        "condition": condition,
        "trait_id": first.trait_id,
        "messages": [{"role": m.role, "content": m.content} for m in first.messages],
        "replies": {arm: _said(own, len(first.messages)) for arm, own in by_arm.items()},
    }


def _said(replies: Sequence[ScriptReply], num_before: int) -> str:
    """An arm's replies from its first on, with the user's turns between them after '> '."""
    last = max(replies, key=lambda reply: reply.turn)
    between = [
        f"> {message.content}" if message.role == "user" else message.content
        for message in last.messages[num_before:]
    ]
    return "\n\n".join([*between, last.text])
