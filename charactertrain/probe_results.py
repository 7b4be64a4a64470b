"""What probes found: every arm against the base, by condition, trait and measure.

A reply that one of two arms lacks, having been rejected, is left out of both and counted.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from charactertrain import probe_effects
from charactertrain.effects import Bootstrap, Json
from charactertrain.probe_file import PLAIN
from charactertrain.probe_measures import MEASURES, Better
from charactertrain.records import NO_TRAIT, ScriptReply
from charactertrain.seeds import derive_seed

ON_TRAIT = "on_trait"
"""Held-out prompts alone: `plain` of every probe that is made from them, and no probe itself."""
TRAIT_MEASURES = ("contrast", "detector_rate")
MAX_EXAMPLES = 12

Series = dict[str, dict[str, dict[int, float]]]
"""By arm, cluster and turn: the mean over replies."""
Key = tuple[str, str | None, str]
"""Condition, trait or None for all together, measure."""


@dataclass(frozen=True)
class Description:
    """What a probe asks."""

    title: str
    question: str
    better: Better | None
    """Of an arm's trait measures against the base's; None where neither is."""
    asks_retention: bool = False
    """Whether it is about how much of the effect on plain prompts is left."""


def probe_results(
    replies: Sequence[ScriptReply],
    descriptions: Mapping[str, Description],
    bootstrap: Bootstrap,
) -> Json:
    """By probe: its title, rows of effects by condition and measure, and examples.

    Args:
        replies: Of all arms, the base's among them.
        descriptions: Of all their probes but `ON_TRAIT`.
        bootstrap: How intervals are made.
    """
    by_probe: dict[str, list[ScriptReply]] = defaultdict(list)
    for reply in replies:
        by_probe[reply.probe].append(reply)
    on_trait = [replace(reply, condition=PLAIN) for reply in by_probe.pop(ON_TRAIT, [])]
    found = {}
    for probe, description in descriptions.items():
        own = by_probe.get(probe)
        if own:
            has_plain = own[0].trait_id == NO_TRAIT or any(r.condition == PLAIN for r in own)
            found[probe] = _result(own, [] if has_plain else on_trait, description, bootstrap)
    return found


def _result(
    own: Sequence[ScriptReply],
    plain: Sequence[ScriptReply],
    description: Description,
    bootstrap: Bootstrap,
) -> Json:
    series = _series([*plain, *own])
    makers = [_levels, _changes, _interactions, _slopes, _losses]
    if description.asks_retention:
        makers.append(_retentions)
    rows = [
        {**row, "better": _better(str(row["measure"]), description)}
        for make in makers
        for row in make(series, bootstrap)
    ]
    measures = {key[2] for key in series}
    return {
        "title": description.title,
        "question": description.question,
        "unit": "share" if measures.isdisjoint(TRAIT_MEASURES) else "nats per token",
        "better": description.better,
        "rows": rows,
        "left_out": _left_out([*plain, *own]),
        "examples": _examples(own),
    }


def _series(replies: Sequence[ScriptReply]) -> dict[Key, Series]:
    gathered: dict[Key, dict[str, dict[str, dict[int, list[float]]]]] = {}
    several = len({reply.trait_id for reply in replies}) > 1
    for reply in replies:
        for measure, value in _values(reply):
            groups = [None]
            if measure in TRAIT_MEASURES and several:
                groups.append(reply.trait_id)
            for trait_id in groups:
                by_arm = gathered.setdefault((reply.condition, trait_id, measure), {})
                by_turn = by_arm.setdefault(reply.arm, {}).setdefault(reply.cluster, {})
                by_turn.setdefault(reply.turn, []).append(value)
    return {
        key: {
            arm: {
                cluster: {turn: sum(v) / len(v) for turn, v in sorted(by_turn.items())}
                for cluster, by_turn in clusters.items()
            }
            for arm, clusters in by_arm.items()
        }
        for key, by_arm in gathered.items()
    }


def _values(reply: ScriptReply) -> Iterator[tuple[str, float]]:
    if reply.contrast is not None:
        yield "contrast", reply.contrast
    if reply.detected is not None:
        yield "detector_rate", float(reply.detected)
    if reply.score is not None:
        yield reply.measure, reply.score


def _turns(series: Series) -> list[int]:
    return sorted({turn for clusters in series.values() for t in clusters.values() for turn in t})


def _at(series: Series, arm: str, turn: int) -> dict[str, float]:
    found = series.get(arm, {})
    return {cluster: turns[turn] for cluster, turns in found.items() if turn in turns}


def _row(
    key: Key,
    series: Series,
    effect: Callable[[str], Json | None],
    *,
    condition: str | None = None,
    suffix: str = "",
) -> Iterator[Json]:
    """A row of the arms' effects, if any has one."""
    arms = {arm: found for arm in series if arm != "base" and (found := effect(arm)) is not None}
    if arms:
        named, trait_id, measure = key
        yield {
            "condition": condition or named,
            "trait_id": trait_id,
            "measure": f"{measure}{suffix}",
            "unit": _unit(measure, suffix),
            "arms": arms,
        }


def _unit(measure: str, suffix: str) -> str:
    if suffix == "_retention":
        return "share of the effect"
    unit = "nats per token" if measure == "contrast" else "share"
    return f"{unit} per turn" if suffix == "_slope" else unit


def _levels(found: Mapping[Key, Series], bootstrap: Bootstrap) -> Iterator[Json]:
    """Each condition, and each of its turns, in every arm against the base."""
    for key, series in found.items():
        turns = _turns(series)
        for turn in turns:
            name = f"{key[0]}, turn {turn + 1}" if len(turns) > 1 else key[0]

            def effect(arm: str, series: Series = series, turn: int = turn) -> Json | None:
                base = _at(series, "base", turn)
                return probe_effects.difference(base, _at(series, arm, turn), bootstrap)

            yield from _row(key, series, effect, condition=name)


def _change(found: Mapping[Key, Series], key: Key, arm: str, than: str = PLAIN) -> dict[str, float]:
    """By cluster, the value under a condition less that under another, at the last turn."""
    condition, trait_id, measure = key
    one, other = found.get(key, {}), found.get((than, trait_id, measure), {})
    values, references = _last(one, arm), _last(other, arm)
    return {c: values[c] - references[c] for c in values.keys() & references.keys()}


def _last(series: Series, arm: str) -> dict[str, float]:
    turns = _turns(series)
    return _at(series, arm, turns[-1]) if turns else {}


def _is_change(key: Key, series: Series) -> bool:
    """Per trait only where the effect itself is looked at, not for every change of it."""
    return key[0] != PLAIN and key[1] is None and len(_turns(series)) == 1


def _changes(found: Mapping[Key, Series], bootstrap: Bootstrap) -> Iterator[Json]:
    """How much a condition changes each arm against its own plain replies."""
    for key, series in found.items():
        if _is_change(key, series):

            def effect(arm: str, key: Key = key) -> Json | None:
                base = _change(found, key, "base")
                return probe_effects.difference(base, _change(found, key, arm), bootstrap)

            yield from _row(key, series, effect, suffix="_change")


def _interactions(found: Mapping[Key, Series], bootstrap: Bootstrap) -> Iterator[Json]:
    """Of a condition `x+y`: what x changes under y beyond what it changes alone."""
    for key, series in found.items():
        first, _, second = key[0].partition("+")
        if not second:
            continue

        def both(arm: str, key: Key = key, x: str = first, y: str = second) -> dict[str, float]:
            together = _change(found, key, arm, than=y)
            alone = _change(found, (x, key[1], key[2]), arm)
            return {c: together[c] - alone[c] for c in together.keys() & alone.keys()}

        def effect(arm: str, both: Callable[[str], dict[str, float]] = both) -> Json | None:
            return probe_effects.difference(both("base"), both(arm), bootstrap)

        yield from _row(key, series, effect, suffix="_interaction")


def _complete(series: Series, arm: str) -> dict[str, list[float]]:
    """By cluster, the values of all turns in order; not of a conversation that was cut short."""
    turns = _turns(series)
    found = series.get(arm, {})
    return {c: [own[t] for t in turns] for c, own in found.items() if len(own) == len(turns)}


def _slopes(found: Mapping[Key, Series], bootstrap: Bootstrap) -> Iterator[Json]:
    """Trait measures over the turns of long conversations: each one's slope is a value."""
    for key, series in found.items():
        if key[2] in TRAIT_MEASURES and len(_turns(series)) > 2:

            def slopes(arm: str, series: Series = series) -> dict[str, float]:
                values = _complete(series, arm).items()
                return {cluster: probe_effects.slope(v) for cluster, v in values}

            def effect(arm: str, slopes: Callable[[str], dict[str, float]] = slopes) -> Json | None:
                return probe_effects.difference(slopes("base"), slopes(arm), bootstrap)

            yield from _row(key, series, effect, suffix="_slope")


def _losses(found: Mapping[Key, Series], bootstrap: Bootstrap) -> Iterator[Json]:
    """Right answers that are not right any more at the last turn."""
    for key, series in found.items():
        if key[2] == "correct" and len(_turns(series)) > 1:

            def effect(arm: str, series: Series = series) -> Json | None:
                base = _complete(series, "base")
                return probe_effects.lost_share(base, _complete(series, arm), bootstrap)

            yield from _row(key, series, effect, suffix="_lost")


def _retentions(found: Mapping[Key, Series], bootstrap: Bootstrap) -> Iterator[Json]:
    """What is left of each trait measure's effect under each condition, and under the worst."""
    groups = dict.fromkeys((key[1], key[2]) for key in found if key[2] in TRAIT_MEASURES)
    for trait_id, measure in groups:
        names = [c for c, *rest in found if rest == [trait_id, measure] and c != PLAIN]
        plain_key = (PLAIN, trait_id, measure)
        series = found.get(plain_key, {})

        def effect_on(
            arm: str, condition: str, trait_id: str | None = trait_id, measure: str = measure
        ) -> dict[str, float]:
            own = found.get((condition, trait_id, measure), {})
            base, other = _last(own, "base"), _last(own, arm)
            return {c: other[c] - base[c] for c in base.keys() & other.keys()}

        for condition, chosen in [*((name, [name]) for name in names), ("worst", names)]:
            if condition == "worst" and len(names) < 2:
                continue

            def left(
                arm: str,
                chosen: Sequence[str] = chosen,
                effect_on: Callable[[str, str], dict[str, float]] = effect_on,
            ) -> Json | None:
                under = {name: effect_on(arm, name) for name in chosen}
                return probe_effects.retention(effect_on(arm, PLAIN), under, bootstrap)

            yield from _row(plain_key, series, left, condition=condition, suffix="_retention")


def _better(measure: str, description: Description) -> Better | None:
    if measure.endswith("_lost"):
        return "lower"
    stem = measure
    for suffix in ("_change", "_interaction", "_slope", "_retention"):
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
