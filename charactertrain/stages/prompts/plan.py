"""Which messages are asked for: facets, their splits, and the calls that cover them.

The plan is computed and never stored: any call of ten million is had from its index.
"""

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from charactertrain.constitution import MIN_FACETS, normalised_facet
from charactertrain.exceptions import ConfigError
from charactertrain.records import (
    NO_TRAIT,
    Brief,
    Facet,
    PromptCall,
    PromptKind,
    Split,
    Trait,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.templates import KIND_FACETS, LENGTHS, PERSONAS, STYLES

MIN_PROMPTS: dict[Split, int] = {"train": 1, "validation": 2, "test": 2}
"""Of a trait, by split: an interval over prompts needs two."""

Topics = Mapping[str, Sequence[tuple[str, str]]]
"""By trait id: situations in which the trait matters, each with who named it."""


def facets(
    topics: Topics,
    kinds: Sequence[PromptKind],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
) -> list[Facet]:
    """Every facet of every trait and kind, with its split.

    A situation is in one split, whichever traits and kinds share it.
    """
    shipped = {kind: KIND_FACETS[kind] for kind in kinds if kind != "trait"}
    own = {trait_id: [facet for facet, _ in named] for trait_id, named in topics.items()}
    # Kinds first: their situations are shared by all traits.
    splits = split_facets(
        {f"kind {kind!r}": names for kind, names in shipped.items()}
        | {f"trait {trait_id!r}": names for trait_id, names in own.items()},
        validation_share=validation_share,
        test_share=test_share,
        seed=seed,
    )
    found = [
        _facet(trait_id, kind, name, source, splits)
        for trait_id, named in topics.items()
        for kind in kinds
        if kind != "general"
        for name, source in (named if kind == "trait" else _shipped(kind))
    ]
    if "general" in kinds:
        found += [
            _facet(NO_TRAIT, "general", name, source, splits)
            for name, source in _shipped("general")
        ]
    return found


def _shipped(kind: PromptKind) -> list[tuple[str, str]]:
    return [(name, "shipped") for name in KIND_FACETS[kind]]


def _facet(
    trait_id: str, kind: PromptKind, name: str, source: str, splits: Mapping[str, Split]
) -> Facet:
    split = splits[normalised_facet(name)]
    return Facet(trait_id, kind, name, family_name(trait_id, name), split, source)  # type: ignore[arg-type]


def family_name(trait_id: str, facet: str) -> str:
    """The scenario family of a facet of a trait."""
    return f"{trait_id}/{normalised_facet(facet)}"


def split_facets(
    facets_by_owner: Mapping[str, Sequence[str]],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
) -> dict[str, Split]:
    """The split of each normalised facet of the whole constitution.

    Owners (traits and kinds) in order: the facets that one shares with earlier ones keep their
    split, and the others fill its shares up, one facet at least in each split.

    Raises:
        ConfigError: An owner's facets leave a split without any.
    """
    splits: dict[str, Split] = {}
    for owner, names in facets_by_owner.items():
        own = list(dict.fromkeys(normalised_facet(facet) for facet in names))
        free = sorted(
            (facet for facet in own if facet not in splits),
            key=lambda facet: derive_seed(seed, "split", facet),
        )
        taken = Counter(splits[facet] for facet in own if facet in splits)
        shares = _facet_counts(len(own), validation_share, test_share)
        splits.update(zip(free, _splits_to_fill(taken, shares, len(free)), strict=True))
        missing = sorted(MIN_PROMPTS.keys() - {splits[facet] for facet in own})
        if missing:
            placed = {facet: splits[normalised_facet(facet)] for facet in names}
            raise ConfigError(
                f"{owner}: expected a facet in each of train, validation and test, found none for "
                f"{' and '.join(missing)}: {placed}. A facet that traits share is in one split for "
                f"all of them. Give it {MIN_FACETS} facets or more of its own, or list it before "
                "the traits that it shares them with."
            )
    return splits


def _facet_counts(num_facets: int, validation_share: float, test_share: float) -> dict[Split, int]:
    """How many of an owner's facets go to each held-out split."""
    num_validation = min(max(1, round(validation_share * num_facets)), num_facets - 2)
    num_test = min(max(1, round(test_share * num_facets)), num_facets - num_validation - 1)
    return {"test": num_test, "validation": num_validation}


def _splits_to_fill(taken: Counter[Split], shares: dict[Split, int], num_free: int) -> list[Split]:
    """A split for each free facet: what has none yet, then what has too few, then training."""
    order: tuple[Split, ...] = ("test", "validation", "train")
    wanted = [split for split in order if not taken[split]]
    for split, share in shares.items():
        wanted += [split] * (share - max(1, taken[split]))
    wanted += ["train"] * num_free
    return wanted[:num_free]


def wanted_by_facet(
    found: Sequence[Facet],
    traits: Sequence[Trait],
    *,
    per_trait: int,
    shares: Mapping[PromptKind, float],
) -> list[int]:
    """Messages wanted of each facet, so that traits and kinds get their shares.

    A trait has `per_trait` messages over the kinds; general ones have their share of all traits'.
    """
    sizes = Counter((facet.trait_id, facet.kind) for facet in found)
    general = round(per_trait * len(traits) * shares.get("general", 0.0))
    # A trait's own kinds and its part of the general ones add up to `per_trait`.
    own: list[PromptKind] = [kind for kind in shares if kind != "general"]
    weights = [shares[kind] for kind in own]
    parts = _shared_out(round(per_trait * sum(weights)), weights)
    totals: dict[PromptKind, int] = {"general": general, **dict(zip(own, parts, strict=True))}
    seen: Counter[tuple[str, PromptKind]] = Counter()
    counts = []
    for facet in found:
        key = (facet.trait_id, facet.kind)
        # The remainder goes to the first facets.
        share, rest = divmod(totals[facet.kind], sizes[key])
        counts.append(share + (seen[key] < rest))
        seen[key] += 1
    return counts


def _shared_out(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole parts as near to the weights as can be, by largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    by_rest = sorted(range(len(weights)), key=lambda i: (parts[i] - exact[i], i))
    for index in by_rest[: total - sum(parts)]:
        parts[index] += 1
    return parts


@dataclass(frozen=True)
class CallShape:
    """What one call asks for."""

    num_messages: int
    languages: tuple[str, ...]
    """ISO 639-1 codes, used in turn."""
    has_axes: bool
    """Whether the model is told of persona, style and length."""


class PromptPlan(Sequence[PromptCall]):
    """The calls of one round: so many messages on each facet, from an index on."""

    def __init__(
        self,
        found: Sequence[Facet],
        wanted: Sequence[int],
        *,
        first: Sequence[int],
        shape: CallShape,
        seed: int,
    ) -> None:
        """Plan `wanted[i]` messages on facet i, after the `first[i]` of earlier rounds."""
        self._facets, self._wanted, self._first = list(found), list(wanted), list(first)
        self._shape, self._seed = shape, seed
        self._ends = list(accumulate(-(-count // shape.num_messages) for count in wanted))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> PromptCall:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = bisect_right(self._ends, index)
        facet = self._facets[position]
        call = index - (self._ends[position - 1] if position else 0)
        start = call * self._shape.num_messages
        stop = min(start + self._shape.num_messages, self._wanted[position])
        offset = self._first[position]
        briefs = tuple(self._brief(facet, offset + i) for i in range(start, stop))
        # By messages, so that each language has its share whatever a call's size.
        turn = (offset + start) // self._shape.num_messages
        language = self._shape.languages[
            _balanced(self._seed, "language", facet, turn, len(self._shape.languages))
        ]
        call_id = stable_id("call", *_key(facet), offset + start)
        return PromptCall(call_id, facet, language, briefs)

    def _brief(self, facet: Facet, index: int) -> Brief:
        prompt_id = stable_id(*_key(facet), index)
        if not self._shape.has_axes:
            return Brief(prompt_id, "", "", "")
        axes = {"persona": PERSONAS, "style": STYLES, "length": LENGTHS}
        drawn = [
            values[_balanced(self._seed, axis, facet, index, len(values))]
            for axis, values in axes.items()
        ]
        return Brief(prompt_id, *drawn)


def _key(facet: Facet) -> tuple[str, str, str]:
    return facet.trait_id, facet.kind, facet.facet


def _balanced(seed: int, axis: str, facet: Facet, index: int, num_values: int) -> int:
    """A value for each index, so that every run of `num_values` indices has each value once."""
    cycle, position = divmod(index, num_values)
    order = list(range(num_values))
    random.Random(derive_seed(seed, axis, *_key(facet), cycle)).shuffle(order)
    return order[position]
