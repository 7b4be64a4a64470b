"""From drafts to prompts: which of two near-duplicates stays, and what the prompts cover."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from charactertrain.records import (
    NO_TRAIT,
    Draft,
    Facet,
    Prompt,
    Reject,
    from_table,
    schema,
    to_table,
)
from charactertrain.stages.prompts.selection import (
    Selection,
    coverage,
    read_drafts,
    select,
    write_prompts,
)
from charactertrain.stages.prompts.writer import drafts
from charactertrain.storage import Directory, open_directory
from charactertrain.texts import near_duplicates

SCARF = "Do you like my new scarf?"
SCARF_TOO = "my new scarf, do YOU like it?"  # Six words of seven: 0.86.
COOK = "What should I cook for six people tonight?"
COOK_TOO = "What should I cook for six people tonight, then?"  # Eight of nine: 0.89.
OTHER = ("Why do cats purr at night?", "My train was late again today.", "Is bread hard to bake?")


@pytest.fixture(name="disk")
def local_directory(tmp_path: Path) -> Directory:
    """An empty directory of a stage."""
    return open_directory(str(tmp_path / "stage"))


def prompt(prompt_id: str, text: str, split: str = "train", **changes: Any) -> Prompt:
    values = {"trait_id": "honest", "family": "honest/x", "kind": "trait"} | changes
    return Prompt(prompt_id=prompt_id, text=text, split=split, **values)  # type: ignore[arg-type]


def general(prompt_id: str, text: str, split: str = "train") -> Prompt:
    changes = {"trait_id": NO_TRAIT, "family": "general/a-sum", "kind": "general"}
    return prompt(prompt_id, text, split, **changes)


def written(disk: Directory, *files: Sequence[Prompt], threshold: float = 0.7) -> list[str]:
    """Files of drafts with these prompts."""
    names = []
    for index, rows in enumerate(files):
        names.append(f"drafts_0/part-{index:06d}.parquet")
        disk.write_table(names[-1], to_table(drafts(rows, threshold=threshold), Draft))
    return names


def selected(disk: Directory, *files: Sequence[Prompt], threshold: float = 0.7) -> Selection:
    names = written(disk, *files, threshold=threshold)
    return select(read_drafts(disk, names), max_similarity=threshold)


def outcome(
    disk: Directory, *files: Sequence[Prompt], threshold: float = 0.7
) -> tuple[list[str], dict[str, str]]:
    """Ids of the prompts that stay, and the reasons of those that do not."""
    kept, rejected = write_prompts(selected(disk, *files, threshold=threshold), disk)
    ids = [row.prompt_id for name in kept for row in from_table(disk.read_table(name), Prompt)]
    rejects = [row for name in rejected for row in from_table(disk.read_table(name), Reject)]
    return ids, {row.row_id: row.reason for row in rejects}


def test_columns_of_drafts_are_read_over_files(disk: Directory) -> None:
    names = written(
        disk,
        [prompt("a", SCARF), general("b", COOK, "test")],
        [],
        [prompt("c", OTHER[0], "validation"), prompt("d", OTHER[1], family="honest/y")],
    )
    found = read_drafts(disk, names)
    assert found.ends == (2, 2, 4)
    assert found.split_N.tolist() == [2, 0, 1, 2]
    assert found.families == (
        ("trait", "honest/x"),
        ("general", "general/a-sum"),
        ("trait", "honest/y"),
    )
    assert found.family_N.tolist() == [0, 1, 0, 2]
    keys = near_duplicates.band_keys([SCARF, COOK, *OTHER[:2]], threshold=0.7)
    assert found.keys_NB.tolist() == [list(own) for own in keys]
    assert found.texts([3, 0, 3, 2]) == {0: SCARF, 2: OTHER[0], 3: OTHER[1]}
    assert found.texts([1]) == {1: COOK}
    assert found.texts([]) == {}


def test_prompts_that_are_not_alike_all_stay_in_order(disk: Directory) -> None:
    rows = [prompt("a", SCARF), prompt("b", COOK, "test"), *map(prompt, "cd", OTHER)]
    (name,), rejected = write_prompts(selected(disk, rows[:1], rows[1:]), disk)
    assert name == "prompts/part-000000.parquet"
    table = disk.read_table(name)
    assert table.schema.equals(schema(Prompt))
    assert from_table(table, Prompt) == rows
    assert rejected == []


def test_near_duplicates_are_found_over_files_traits_and_kinds(disk: Directory) -> None:
    rows = [
        prompt("a", SCARF),
        prompt("b", COOK),
        prompt("c", OTHER[0]),
        prompt("d", SCARF_TOO, trait_id="curious", kind="values", family="curious/y"),
        general("e", COOK_TOO),
    ]
    ids, reasons = outcome(disk, rows[:3], [], rows[3:])
    assert ids == ["a", "b", "c"]
    assert reasons == {"d": "near_duplicate", "e": "near_duplicate"}


@pytest.mark.parametrize("splits", [("train", "validation"), ("train", "test")])
def test_of_two_alike_the_one_that_is_measured_with_stays(
    disk: Directory, splits: tuple[str, str]
) -> None:
    trained, measured = splits
    for order in (1, -1):
        rows = [prompt("a", SCARF, trained), prompt("b", SCARF_TOO, measured)][::order]
        assert outcome(disk, rows[:1], rows[1:]) == (["b"], {"a": "evaluation_overlap"})


def test_of_three_alike_the_one_in_the_test_stays(disk: Directory) -> None:
    rows = [
        prompt("a", SCARF, "validation"),
        prompt("b", SCARF, "train"),
        prompt("c", SCARF, "test"),
        prompt("d", SCARF, "test"),
    ]
    ids, reasons = outcome(disk, rows)
    assert ids == ["c"]
    assert reasons == {
        "a": "evaluation_overlap",
        "b": "evaluation_overlap",
        "d": "near_duplicate",
    }


def test_in_one_split_the_first_stays(disk: Directory) -> None:
    assert outcome(disk, [prompt("b", SCARF)], [prompt("a", SCARF_TOO)])[0] == ["b"]


def test_a_reject_names_its_twin(disk: Directory) -> None:
    names = written(disk, [prompt("a", SCARF, "test")], [general("b", SCARF_TOO)])
    _, rejected = write_prompts(select(read_drafts(disk, names), max_similarity=0.7), disk)
    assert rejected == ["rejects/duplicates/part-000000.parquet"]
    assert from_table(disk.read_table(rejected[0]), Reject) == [
        Reject(
            "b",
            NO_TRAIT,
            "prompts",
            "evaluation_overlap",
            f"{SCARF_TOO!r} is close to {SCARF!r} (test)",
        )
    ]


def test_prompts_at_the_similarity_limit_are_kept(disk: Directory) -> None:
    # Three words of four are shared.
    rows = [prompt("a", "red green blue"), prompt("b", "red green blue grey")]
    assert outcome(disk, rows, threshold=0.75)[0] == ["a", "b"]
    assert outcome(disk, rows, threshold=0.74)[0] == ["a"]


def test_a_prompt_that_was_left_out_leaves_out_no_other(disk: Directory) -> None:
    # b is close to a, c is close to b but not to a.
    texts = ("one two", "one two three", "two three four")
    rows = [prompt(name, text) for name, text in zip("abc", texts, strict=True)]
    assert outcome(disk, rows, threshold=0.4)[0] == ["a", "c"]


def test_general_prompts_have_a_table_of_their_own(disk: Directory) -> None:
    rows = [general("a", SCARF), prompt("b", COOK), general("c", OTHER[0]), prompt("d", OTHER[1])]
    kept, _ = write_prompts(selected(disk, rows[:3], rows[3:]), disk)
    assert kept == ["prompts/part-000000.parquet", "general/part-000000.parquet"]
    ids = [[row.prompt_id for row in from_table(disk.read_table(name), Prompt)] for name in kept]
    assert ids == [["b", "d"], ["a", "c"]]


@pytest.mark.parametrize("files", [[], [[]], [[], []]], ids=["none", "one", "two"])
def test_no_drafts_are_no_prompts(disk: Directory, files: list[list[Prompt]]) -> None:
    selection = selected(disk, *files)
    assert selection.kept_by_family() == Counter()
    assert write_prompts(selection, disk) == ([], [])


def test_kept_prompts_are_counted_by_kind_and_family(disk: Directory) -> None:
    shared = {"family": "honest/y"}
    selection = selected(
        disk,
        [prompt("a", SCARF), prompt("b", COOK), prompt("c", OTHER[0], kind="values", **shared)],
        [prompt("d", COOK_TOO, **shared), prompt("e", OTHER[1], **shared), general("f", OTHER[2])],
        [prompt("g", SCARF_TOO, "test")],
    )
    # a gives way to g, d to b.
    assert selection.kept_by_family() == {
        ("trait", "honest/x"): 2,
        ("values", "honest/y"): 1,
        ("trait", "honest/y"): 1,
        ("general", "general/a-sum"): 1,
    }


def test_a_family_of_which_nothing_is_kept_counts_nothing(disk: Directory) -> None:
    selection = selected(disk, [prompt("a", SCARF), prompt("b", SCARF, family="honest/y")])
    assert selection.kept_by_family()["trait", "honest/y"] == 0
    assert selection.kept_by_family()["trait", "honest/x"] == 1


def test_many_prompts_are_written_in_several_files(disk: Directory) -> None:
    # Texts do not matter here: no two share a word.
    rows = [prompt(f"p{index}", f"w{index}") for index in range(5000)]
    kept, _ = write_prompts(selected(disk, rows[:2500], rows[2500:4500], rows[4500:]), disk)
    assert [disk.num_rows(name) for name in kept] == [4500, 500]
    assert [
        row.prompt_id for name in kept for row in from_table(disk.read_table(name), Prompt)
    ] == [row.prompt_id for row in rows]


def random_prompts(seed: int) -> list[Prompt]:
    """Texts of which some are others with a fifth of the words changed, of any split and kind.

    Two that differ in one fifth have a similarity of 16/24, two that differ in more have 12/28 at
    most: no pair is near the limit.
    """
    draw = random.Random(seed)
    texts: list[tuple[int, ...]] = []
    for index in range(300):
        # For each fifth a number that stands for four words.
        text = list(draw.choice(texts)) if draw.random() < 0.6 and texts else [index] * 5
        if draw.random() < 0.9:
            text[draw.randrange(5)] = index
        texts.append(tuple(text))
    return [
        prompt(
            f"p{index}",
            " ".join(
                f"{word}{part}{number}" for part, number in enumerate(text) for word in "abcd"
            ),
            draw.choice(("train", "train", "validation", "test")),
            trait_id=draw.choice(("honest", "curious")),
            family=f"f{draw.randrange(5)}",
            kind=draw.choice(("trait", "values", "general")),
        )
        for index, text in enumerate(texts)
    ]


def brute_force(rows: Sequence[Prompt], threshold: float) -> dict[str, str]:
    """For each prompt that is left out the split of the first kept one that it is close to."""
    kept: list[Prompt] = []
    left_out = {}
    for split in ("test", "validation", "train"):
        for row in rows:
            if row.split != split:
                continue
            twins = [
                each for each in kept if near_duplicates.similarity(each.text, row.text) > threshold
            ]
            if twins:
                left_out[row.prompt_id] = twins[0].split
            else:
                kept.append(row)
    return left_out


@pytest.mark.parametrize("seed", range(3))
def test_the_selection_is_that_of_comparing_all_pairs(disk: Directory, seed: int) -> None:
    rows = random_prompts(seed)
    expected = brute_force(rows, 0.45)
    own_split = {row.prompt_id: row.split for row in rows}
    ids, reasons = outcome(disk, rows[:100], [], rows[100:130], rows[130:], threshold=0.45)
    assert reasons == {
        prompt_id: "near_duplicate" if own_split[prompt_id] == split else "evaluation_overlap"
        for prompt_id, split in expected.items()
    }
    assert len(set(reasons.values())) == 2
    assert sorted(ids) == sorted(own_split.keys() - expected.keys())


GIFT = Facet("honest", "trait", "a gift", "honest/a-gift", "train", "constitution")
LIE = Facet("honest", "values", "a lie", "honest/a-lie", "test", "shipped")
SUM = Facet(NO_TRAIT, "general", "a sum", "general/a-sum", "train", "shipped")


def covered(disk: Directory, facets: Sequence[Facet], wanted: Sequence[int], *files: Any) -> Any:
    names = []
    for index, rows in enumerate(files):
        names.append(f"prompts/part-{index:06d}.parquet")
        disk.write_table(names[-1], to_table(rows, Prompt))
    return coverage(disk, names, facets, wanted)


def of(facet: Facet, prompt_id: str, text: str, **changes: Any) -> Prompt:
    own = (facet.trait_id, facet.family, facet.kind, text, facet.split, facet.facet)
    return Prompt(prompt_id, *own, **changes)


def test_coverage_counts_prompts_by_facet_and_axis(disk: Directory) -> None:
    found = covered(
        disk,
        [GIFT, LIE, SUM],
        [3, 2, 1],
        [
            of(GIFT, "a", "x", persona="a student", style="blunt", length="short", language="en"),
            of(GIFT, "b", "y", persona="a farmer", style="blunt", length="long", language="de"),
        ],
        [of(SUM, "c", "z", persona="a student", style="blunt", length="long", language="en")],
    )
    assert [(row["facet"], row["wanted"], row["found"]) for row in found["facets"]] == [
        ("a gift", 3, 2),
        ("a lie", 2, 0),
        ("a sum", 1, 1),
    ]
    assert found["facets"][1] == {
        "trait_id": "honest",
        "kind": "values",
        "facet": "a lie",
        "family": "honest/a-lie",
        "split": "test",
        "source": "shipped",
        "wanted": 2,
        "found": 0,
    }
    assert found["axes"] == {
        "persona": {"a farmer": 1, "a student": 2},
        "style": {"blunt": 3},
        "length": {"long": 2, "short": 1},
        "language": {"de": 1, "en": 2},
        "source": {"model": 3},
    }
    # As people read them.
    assert list(found["axes"]["persona"]) == ["a farmer", "a student"]


def test_coverage_of_a_facet_counts_its_kind_alone(disk: Directory) -> None:
    # A trait may have the same situation in two kinds: one family.
    twin = Facet("honest", "values", "a gift", "honest/a-gift", "train", "shipped")
    rows = [of(GIFT, "a", "x"), of(twin, "b", "y"), of(twin, "c", "z")]
    found = covered(disk, [GIFT, twin], [2, 2], rows)
    assert [row["found"] for row in found["facets"]] == [1, 2]


def test_coverage_measures_the_variety_of_each_trait(disk: Directory) -> None:
    rows = [of(GIFT, "a", "Is it so"), of(LIE, "b", "is it NOT so"), of(SUM, "c", "So")]
    found = covered(disk, [GIFT, LIE, SUM], [1, 1, 1], rows)
    # Words: is it so | is it not so; pairs: is-it it-so | is-it it-not not-so.
    assert found["variety"] == {
        "honest": {"num_prompts": 2, "distinct_1": 4 / 7, "distinct_2": 4 / 5, "distinct_3": 1.0},
        NO_TRAIT: {"num_prompts": 1, "distinct_1": 1.0, "distinct_2": None, "distinct_3": None},
    }


def test_variety_is_measured_on_so_many_prompts_at_most(disk: Directory) -> None:
    rows = [of(GIFT, f"p{index}", "So") for index in range(2500)]
    found = covered(disk, [GIFT], [1], rows[:1000], rows[1000:])
    assert found["variety"]["honest"]["num_prompts"] == 500
    assert found["variety"]["honest"]["distinct_1"] == 1 / 500
    assert found["facets"][0]["found"] == 2500


def test_coverage_shows_three_examples_of_each_trait_and_kind(disk: Directory) -> None:
    rows = [
        *(of(GIFT, f"a{index}", f"gift {index}") for index in range(40)),
        *(of(LIE, f"b{index}", f"lie {index}") for index in range(2)),
        *(of(SUM, f"c{index}", f"sum {index}") for index in range(4)),
    ]
    examples = covered(disk, [GIFT, LIE, SUM], [1, 1, 1], rows)["examples"]
    assert Counter((row["trait_id"], row["kind"]) for row in examples) == {
        ("honest", "trait"): 3,
        ("honest", "values"): 2,
        (NO_TRAIT, "general"): 3,
    }
    assert len({row["text"] for row in examples}) == 8
    (first,) = [row for row in examples if row["text"] == "lie 0"]
    assert first == {
        "trait_id": "honest",
        "kind": "values",
        "facet": "a lie",
        "split": "test",
        "text": "lie 0",
    }
    # Whichever files they are in.
    again = covered(disk, [GIFT, LIE, SUM], [1, 1, 1], rows[::-1][:30], rows[::-1][30:])
    assert sorted(row["text"] for row in again["examples"]) == sorted(
        row["text"] for row in examples
    )


def test_coverage_of_no_prompts_is_empty(disk: Directory) -> None:
    found = covered(disk, [GIFT], [3])
    assert (found["axes"], found["variety"], found["examples"]) == ({}, {}, [])
    assert [(row["wanted"], row["found"]) for row in found["facets"]] == [(3, 0)]
