"""The rows of one probe's results: effects of every arm by condition, trait and measure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from charactertrain.artifacts import Json
from charactertrain.evaluation.effects import Bootstrap
from charactertrain.probes import effects
from charactertrain.probes.effects import Values
from charactertrain.probes.file import PLAIN
from charactertrain.records import ScriptReply

TRAIT_MEASURES = ("contrast", "detector_rate")
SUFFIXES = ("_change", "_interaction", "_slope", "_lost", "_retention")
"""Of a measure's name, where a row is not of its level."""
WORST = "worst"

Series = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By arm, cluster and turn: the mean over replies."""
Key = tuple[str, str | None, str]
"""Condition, trait or None for all together, measure."""


class Found:
    """The replies of a probe, by what they are rows of."""

    def __init__(self, replies: Sequence[ScriptReply], bootstrap: Bootstrap) -> None:
        """Gather them."""
        self._series, self._bootstrap = _series(replies), bootstrap

    def rows(self, *, with_retention: bool) -> list[Json]:
        """Levels, changes between conditions, slopes over turns, losses and what is left."""
        rows: list[Json] = []
        for key, series in self._series.items():
            turns = _turns(series)
            rows += self._levels(key, series, turns)
            if len(turns) == 1:
                rows += self._changes(key, series)
            else:
                rows += self._over_turns(key, series)
        return [*rows, *self._retentions()] if with_retention else rows

    def _levels(self, key: Key, series: Series, turns: Sequence[int]) -> Iterator[Json]:
        """Each turn in every arm against the base."""
        for turn in turns:
            condition = f"{key[0]}, turn {turn + 1}" if len(turns) > 1 else key[0]
            effect = partial(self._against_base, partial(_at, series, turn=turn))
            yield from _row((condition, *key[1:]), series, effect)

    def _changes(self, key: Key, series: Series) -> Iterator[Json]:
        """What the condition changes in each arm, over all traits together."""
        if key[0] == PLAIN or key[1] is not None:
            return
        effect = partial(self._against_base, partial(self._change, key, than=PLAIN))
        yield from _row(key, series, effect, suffix="_change")
        if "+" in key[0]:
            effect = partial(self._against_base, partial(self._interaction, key))
            yield from _row(key, series, effect, suffix="_interaction")

    def _over_turns(self, key: Key, series: Series) -> Iterator[Json]:
        if key[2] in TRAIT_MEASURES:
            effect = partial(self._against_base, partial(_slopes, series))
            yield from _row(key, series, effect, suffix="_slope")
        if key[2] == "correct":
            yield from _row(key, series, partial(self._lost, series), suffix="_lost")

    def _retentions(self) -> Iterator[Json]:
        """What is left of each trait measure's effect under each condition, and under the worst."""
        groups = [key for key in self._series if key[0] == PLAIN and key[2] in TRAIT_MEASURES]
        for plain in groups:
            names = [key[0] for key in self._series if key[1:] == plain[1:] and key != plain]
            for name in names:
                effect = partial(self._left, plain, [name])
                yield from _row(
                    (name, *plain[1:]), self._series[plain], effect, suffix="_retention"
                )
            if len(names) > 1:
                effect = partial(self._left, plain, names)
                key = (WORST, *plain[1:])
                yield from _row(key, self._series[plain], effect, suffix="_retention")

    def _against_base(self, values: Callable[[str], Values], arm: str) -> Json | None:
        return effects.difference(values("base"), values(arm), self._bootstrap)

    def _change(self, key: Key, arm: str, *, than: str) -> dict[str, float]:
        """By cluster, the value under a condition less that under another."""
        values, references = self._last(key, arm), self._last((than, *key[1:]), arm)
        return {c: values[c] - references[c] for c in values.keys() & references.keys()}

    def _interaction(self, key: Key, arm: str) -> dict[str, float]:
        """Of `x+y`: what x changes where y holds beyond what it changes alone."""
        first, _, second = key[0].partition("+")
        together = self._change(key, arm, than=second)
        alone = self._change((first, *key[1:]), arm, than=PLAIN)
        return {c: together[c] - alone[c] for c in together.keys() & alone.keys()}

    def _lost(self, series: Series, arm: str) -> Json | None:
        base, other = _complete(series, "base"), _complete(series, arm)
        return effects.lost_share(base, other, self._bootstrap)

    def _left(self, plain: Key, names: Sequence[str], arm: str) -> Json | None:
        conditions = {name: self._effect((name, *plain[1:]), arm) for name in names}
        return effects.retention(self._effect(plain, arm), conditions, self._bootstrap)

    def _effect(self, key: Key, arm: str) -> dict[str, float]:
        """By cluster, the arm's value less the base's."""
        base, other = self._last(key, "base"), self._last(key, arm)
        return {c: other[c] - base[c] for c in base.keys() & other.keys()}

    def _last(self, key: Key, arm: str) -> dict[str, float]:
        series = self._series.get(key, {})
        turns = _turns(series)
        return _at(series, arm, turn=turns[-1]) if turns else {}


def _series(replies: Sequence[ScriptReply]) -> dict[Key, Series]:
    gathered: dict[Key, dict[str, dict[str, dict[int, list[float]]]]] = {}
    several = len({reply.trait_id for reply in replies}) > 1
    for reply in replies:
        for measure, value in _values(reply):
            groups: list[str | None] = [None]
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
    return sorted({turn for own in series.values() for turns in own.values() for turn in turns})


def _at(series: Series, arm: str, *, turn: int) -> dict[str, float]:
    found = series.get(arm, {})
    return {cluster: turns[turn] for cluster, turns in found.items() if turn in turns}


def _complete(series: Series, arm: str) -> dict[str, list[float]]:
    """By cluster, the values of all turns in order; not of a conversation that was cut short."""
    turns = _turns(series)
    found = series.get(arm, {})
    return {c: [own[t] for t in turns] for c, own in found.items() if len(own) == len(turns)}


def _slopes(series: Series, arm: str) -> dict[str, float]:
    return {c: effects.slope(values) for c, values in _complete(series, arm).items()}


def _row(
    key: Key, series: Series, effect: Callable[[str], Json | None], *, suffix: str = ""
) -> Iterator[Json]:
    """A row of the arms' effects, if any has one."""
    arms = {arm: found for arm in series if arm != "base" and (found := effect(arm)) is not None}
    if arms:
        condition, trait_id, measure = key
        yield {
            "condition": condition,
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
