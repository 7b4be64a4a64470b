"""The plan of prompts: facets and their splits, messages per facet, and the calls by index."""

import pickle
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from charactertrain.exceptions import ConfigError
from charactertrain.records import NO_TRAIT, Facet, PromptKind, Trait
from charactertrain.stages.prompts.plan import (
    CallShape,
    PromptPlan,
    Topics,
    facets,
    family_name,
    split_facets,
    wanted_by_facet,
)
from charactertrain.templates import KIND_FACETS, LENGTHS, PERSONAS, STYLES

TEN = [f"f{index}" for index in range(10)]
ALL_SPLITS = {"train", "validation", "test"}


def topics(**names: Sequence[str]) -> Topics:
    return {trait_id: [(name, "constitution") for name in own] for trait_id, own in names.items()}


def found_facets(given: Topics, *kinds: PromptKind, seed: int = 1) -> list[Facet]:
    return facets(given, kinds, validation_share=0.2, test_share=0.3, seed=seed)


def split(
    facets_by_owner: dict[str, list[str]],
    *,
    validation: float = 0.2,
    test: float = 0.3,
    seed: int = 1,
) -> dict[str, str]:
    return {
        **split_facets(facets_by_owner, validation_share=validation, test_share=test, seed=seed)
    }


def test_facets_are_those_of_each_trait_and_kind() -> None:
    given = {"honest": [("A gift!", "constitution"), ("f1", "model"), ("f2", "shipped")]}
    found = found_facets(given | topics(warm=TEN), "trait", "identity")
    assert [(each.trait_id, each.kind, each.facet) for each in found] == [
        *(("honest", "trait", name) for name in ("A gift!", "f1", "f2")),
        *(("honest", "identity", name) for name in KIND_FACETS["identity"]),
        *(("warm", "trait", name) for name in TEN),
        *(("warm", "identity", name) for name in KIND_FACETS["identity"]),
    ]
    assert [each.source for each in found[:4]] == ["constitution", "model", "shipped", "shipped"]
    assert found[0].family == "honest/a-gift"


def test_general_facets_are_there_once_and_of_no_trait() -> None:
    found = found_facets(topics(honest=TEN, warm=TEN), "general", "trait")
    assert [each for each in found if each.kind == "general"] == found[20:]
    assert [(each.trait_id, each.facet, each.source) for each in found[20:]] == [
        (NO_TRAIT, name, "shipped") for name in KIND_FACETS["general"]
    ]
    assert {each.split for each in found[20:]} == ALL_SPLITS
    assert all(each.family.startswith("general/") for each in found[20:])


def test_a_kind_that_is_not_asked_for_has_no_facets() -> None:
    found = found_facets(topics(honest=TEN), "trait", "values")
    assert {each.kind for each in found} == {"trait", "values"}


def test_a_facet_that_traits_and_kinds_share_has_one_split() -> None:
    # However it is spelt; `calm` names one of the kind values too.
    given = topics(
        honest=TEN,
        warm=("F1.", "f2", " F3", "g1", "g2", "g3"),
        calm=("Luck and merit", "g1", "h1", "h2", "h3"),
    )
    for seed in range(20):
        found = found_facets(given, "trait", "values", "everyday", "general", seed=seed)
        splits: dict[str, set[str]] = {}
        by_owner: dict[tuple[str, str], set[str]] = {}
        for each in found:
            splits.setdefault(each.family.partition("/")[2], set()).add(each.split)
            by_owner.setdefault((each.trait_id, each.kind), set()).add(each.split)
        assert all(len(names) == 1 for names in splits.values())
        assert len(splits) == 10 + 3 + 3 + 3 * 8
        assert all(names == ALL_SPLITS for names in by_owner.values())
        assert len(by_owner) == 3 * 3 + 1


def test_splits_of_shipped_facets_do_not_depend_on_the_traits() -> None:
    def shipped(given: Topics, seed: int) -> set[tuple[str, str]]:
        found = found_facets(given, "trait", "identity", seed=seed)
        return {(each.facet, each.split) for each in found if each.kind == "identity"}

    # Also where a trait names some of them.
    same = topics(warm=[*KIND_FACETS["identity"][:4], "g1", "g2", "g3"], honest=TEN)
    for seed in range(10):
        assert shipped(same, seed) == shipped(topics(honest=TEN), seed)


def test_facets_depend_on_the_seed_only_in_their_splits() -> None:
    first, again, other = (
        found_facets(topics(honest=TEN), "trait", "general", seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert [each.family for each in first] == [each.family for each in other]
    assert [each.split for each in first] != [each.split for each in other]


def test_families_are_slugs_that_two_traits_do_not_share() -> None:
    assert family_name("honest", "A friend's  gift!") == "honest/a-friend's-gift"
    assert family_name("honest", "a gift") != family_name("curious", "a gift")


def test_facets_are_shared_out_by_share() -> None:
    splits = split({"trait 'honest'": TEN})
    assert set(splits) == set(TEN)
    assert Counter(splits.values()) == {"train": 5, "validation": 2, "test": 3}


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("validation_share", [0.0, 0.1, 0.6, 0.95])
@pytest.mark.parametrize("test_share", [0.0, 0.04, 0.5])
def test_every_split_has_a_facet(count: int, validation_share: float, test_share: float) -> None:
    splits = split({"honest": TEN[:count]}, validation=validation_share, test=test_share)
    assert set(splits) == set(TEN[:count])
    assert set(splits.values()) == ALL_SPLITS


def test_the_order_of_facets_does_not_matter_and_the_seed_does() -> None:
    splits = split({"honest": TEN})
    assert split({"honest": TEN[::-1]}) == splits
    assert split({"honest": TEN}, seed=2) != splits


def test_facets_of_its_own_fill_a_traits_shares_up() -> None:
    alone = split({"honest": TEN})
    trained = [facet for facet in TEN if alone[facet] == "train"]
    splits = split({"honest": TEN, "warm": [*trained, "g1", "g2"]})
    assert {facet: splits[facet] for facet in TEN} == alone
    assert {splits["g1"], splits["g2"]} == {"test", "validation"}
    more = split({"honest": TEN, "warm": [*trained, "g1", "g2", "g3", "g4", "g5"]})
    counts = Counter(more[facet] for facet in [*trained, "g1", "g2", "g3", "g4", "g5"])
    assert counts == {"train": 5, "validation": 2, "test": 3}


def test_an_owner_whose_facets_are_all_taken_for_one_split_is_refused() -> None:
    alone = split({"honest": TEN})
    trained = [facet for facet in TEN if alone[facet] == "train"]
    with pytest.raises(ConfigError) as caught:
        split({"honest": TEN, "the warm one": trained[:3]})
    said = str(caught.value)
    assert said.startswith("the warm one: expected a facet in each of train, validation and test")
    assert "found none for test and validation" in said
    assert all(f"'{facet}': 'train'" in said for facet in trained[:3])
    assert "before the traits that it shares them with" in said
    # As it advises.
    assert split({"warm": trained[:3], "honest": TEN})


def test_a_trait_without_a_facet_for_a_split_is_named() -> None:
    trained = [each.facet for each in found_facets(topics(honest=TEN), "trait")]
    trained = [facet for facet in trained if split({"honest": TEN})[facet] == "train"]
    with pytest.raises(ConfigError, match=r"^trait 'warm': expected a facet in each of train"):
        found_facets(topics(honest=TEN, warm=trained[:3]), "trait")


def wanted_facets(*counts: tuple[str, PromptKind, int]) -> list[Facet]:
    return [
        Facet(trait_id, kind, f"f{index}", f"{trait_id}/f{index}", "train", "model")
        for trait_id, kind, count in counts
        for index in range(count)
    ]


def test_messages_are_wanted_by_kind_and_the_remainder_goes_to_the_first(
    traits: list[Trait],
) -> None:
    found = wanted_facets(
        ("honest", "trait", 4),
        ("honest", "values", 3),
        ("curious", "trait", 2),
        ("curious", "values", 3),
        (NO_TRAIT, "general", 3),
    )
    # Of 20: 10 of the trait, 5 on values; general ones 2 x 5 for both traits.
    wanted = wanted_by_facet(
        found, traits, per_trait=20, shares={"trait": 0.5, "values": 0.25, "general": 0.25}
    )
    assert wanted == [3, 3, 2, 2, *(2, 2, 1), 5, 5, *(2, 2, 1), *(4, 3, 3)]
    assert sum(wanted) == 2 * 20


def test_fewer_messages_than_facets_go_to_the_first(traits: list[Trait]) -> None:
    found = wanted_facets(("honest", "trait", 5))
    assert wanted_by_facet(found, traits, per_trait=3, shares={"trait": 1.0}) == [1, 1, 1, 0, 0]


def shape(num_messages: int = 4, languages: Sequence[str] = ("en",), axes: bool = True) -> Any:
    return CallShape(num_messages, tuple(languages), axes)


def plan(
    wanted: Sequence[int], given: Any = None, *, first: Sequence[int] | None = None, seed: int = 1
) -> PromptPlan:
    found = wanted_facets(("honest", "trait", len(wanted)))
    first = first or [0] * len(wanted)
    return PromptPlan(found, wanted, first=first, shape=given or shape(), seed=seed)


def prompt_ids(planned: PromptPlan) -> list[str]:
    return [brief.prompt_id for call in planned for brief in call.briefs]


def test_calls_hold_no_more_messages_than_fit_and_all_that_are_wanted() -> None:
    planned = plan([9, 0, 4, 1])
    assert len(planned) == len(list(planned)) == 3 + 0 + 1 + 1
    assert sum(len(call.briefs) for call in planned) == 14
    assert [(call.facet.facet, len(call.briefs)) for call in planned] == [
        ("f0", 4),
        ("f0", 4),
        ("f0", 1),
        ("f2", 4),
        ("f3", 1),
    ]
    assert len(set(prompt_ids(planned))) == 14
    assert len({call.call_id for call in planned}) == 5


@pytest.mark.parametrize("index", [-1, 5, 6])
def test_there_is_no_call_outside_the_plan(index: int) -> None:
    with pytest.raises(IndexError):
        plan([9, 0, 4, 1])[index]


def test_a_plan_of_nothing_is_empty() -> None:
    for planned in (plan([]), plan([0, 0])):
        assert (len(planned), list(planned)) == (0, [])


def test_messages_do_not_depend_on_the_size_of_calls() -> None:
    singly = plan([9, 5], shape(1))
    assert prompt_ids(singly) == prompt_ids(plan([9, 5], shape(4)))
    assert [call.briefs[0] for call in singly] == [
        brief for call in plan([9, 5], shape(4)) for brief in call.briefs
    ]


def test_facets_and_kinds_do_not_share_messages() -> None:
    found = [
        Facet(trait_id, kind, facet, "family", "train", "model")  # type: ignore[arg-type]
        for trait_id in ("honest", "warm")
        for kind in ("trait", "values")
        for facet in ("f0", "f1")
    ]
    planned = PromptPlan(found, [3] * 8, first=[0] * 8, shape=shape(), seed=1)
    assert len(set(prompt_ids(planned))) == 24


def test_a_top_up_goes_on_where_the_rounds_before_it_ended() -> None:
    whole = prompt_ids(plan([9, 5]))
    before, after = plan([6, 0]), plan([3, 5], first=[6, 0])
    assert set(prompt_ids(before)).isdisjoint(prompt_ids(after))
    assert set(prompt_ids(before)) | set(prompt_ids(after)) == set(whole)
    briefs = {brief for call in (*before, *after) for brief in call.briefs}
    assert briefs == {brief for call in plan([9, 5]) for brief in call.briefs}
    assert {call.call_id for call in before}.isdisjoint(call.call_id for call in after)


def test_axes_have_every_value_once_in_each_cycle() -> None:
    briefs = [brief for call in plan([36]) for brief in call.briefs]
    drawn: dict[str, tuple[list[str], tuple[str, ...]]] = {
        "persona": ([brief.persona for brief in briefs], PERSONAS),
        "style": ([brief.style for brief in briefs], STYLES),
        "length": ([brief.length for brief in briefs], LENGTHS),
    }
    for values, choices in drawn.values():
        cycles = [
            tuple(values[start : start + len(choices)]) for start in range(0, 36, len(choices))
        ]
        assert all(sorted(cycle) == sorted(choices) for cycle in cycles)
        # Shuffled anew each time.
        assert len(set(cycles)) > 1


def test_axes_go_together_differently_in_each_facet_and_run() -> None:
    def drawn(planned: PromptPlan) -> list[tuple[str, str, str]]:
        return [(b.persona, b.style, b.length) for call in planned for b in call.briefs]

    both = drawn(plan([36, 36]))
    assert both[:36] != both[36:]
    assert drawn(plan([36, 36])) == both
    assert drawn(plan([36, 36], seed=2)) != both


def test_languages_come_in_turn() -> None:
    planned = plan([60, 60], shape(4, ("en", "de", "fr")))
    languages = [call.language for call in planned]
    assert all(set(languages[start : start + 3]) == {"en", "de", "fr"} for start in range(0, 30, 3))
    singly = plan([30], shape(1, ("en", "de", "fr")))
    assert Counter(call.language for call in singly) == {"en": 10, "de": 10, "fr": 10}


def test_a_model_that_is_not_told_of_axes_has_empty_ones() -> None:
    planned = plan([9, 5], shape(1, axes=False))
    briefs = [brief for call in planned for brief in call.briefs]
    assert {(b.persona, b.style, b.length) for b in briefs} == {("", "", "")}
    assert [b.prompt_id for b in briefs] == prompt_ids(plan([9, 5]))


def test_ten_million_messages_are_had_by_index() -> None:
    began = time.perf_counter()
    planned = plan([5_000_000, 4_999_999, 1], shape(8, ("en", "de")))
    assert len(planned) == 625_000 + 625_000 + 1
    assert [len(planned[index].briefs) for index in (0, 1_249_998, 1_249_999, 1_250_000)] == [
        8,
        8,
        7,
        1,
    ]
    assert len(pickle.dumps(planned)) < 2000
    again = pickle.loads(pickle.dumps(planned))
    assert again[1_249_999] == planned[1_249_999]
    assert time.perf_counter() - began < 1
