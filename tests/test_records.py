"""Row types: what is written is what is read, in columns that others read too."""

import inspect
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from charactertrain import records
from charactertrain.records import (
    EvaluationSample,
    Message,
    PreferencePair,
    Probe,
    Prompt,
    PromptSlot,
    Ranking,
    Reject,
    Reply,
    Response,
    Trait,
    from_table,
    schema,
    to_table,
)
from charactertrain.storage import Directory

TEXT = 'Ünïcode \U0001f642, "quotes"\nand a new line'
PAIR = PreferencePair(
    pair_id="ab",
    prompt_id="p1",
    trait_id="honest",
    split="train",
    prompt=(Message("user", TEXT),),
    chosen=(Message("assistant", "Yes."),),
    rejected=(Message("assistant", "No."),),
    probability=0.75,
    weight=1 / 3,
    chosen_id="a",
    rejected_id="b",
    chosen_variant="strong",
    rejected_variant="none",
    chosen_tokens=2,
    rejected_tokens=2**40,
)
SAMPLE = EvaluationSample(
    "s1", "p1", "honest", "policy", "Hi?", TEXT, 9, "length", -0.1, True, 0.3, 1e-300
)
EXAMPLES: list[list[Any]] = [
    [Message("user", TEXT)],
    [
        Trait("honest", TEXT, ("a gift", "an exam"), r"\btruth\b", 0.1, "small"),
        Trait("curious", "I ask.", (), None, 2.0, "small"),
    ],
    [Prompt("p1", "honest", "honest/a-gift", "general", TEXT, "validation")],
    [PromptSlot("p1", "honest", "a gift", "honest/a-gift", "test")],
    [Probe("x", "honest", "Hi?", "strong", TEXT, (1, 2, 2**40), -0.5)],
    [Response("r", "p1", "honest", "train", "Hi?", "mild", TEXT, (), -3.25, "stop")],
    [
        Ranking("p1", "honest", "train", ("a", "b"), (0.5, -0.5), (0.75,), "contrast", None),
        Ranking("p1", "honest", "train", ("a", "b"), (0.5, -0.5), (0.75,), "judge", 1.0),
    ],
    [PAIR],
    [Reply("s1", "p1", "honest", "base", "Hi?", TEXT, (3, 4), -2.5, "stop")],
    [SAMPLE, replace(SAMPLE, detected=False), replace(SAMPLE, detected=None)],
    [Reject("r", "responses", "loop", TEXT)],
]
ROW_TYPES = [type(rows[0]) for rows in EXAMPLES]
NULLABLE = {(Trait, "detector"), (Ranking, "swap_consistency"), (EvaluationSample, "detected")}


def test_every_record_type_has_an_example() -> None:
    defined = {
        value
        for _, value in inspect.getmembers(records, is_dataclass)
        if value.__module__ == records.__name__
    }
    assert defined == set(ROW_TYPES)


@pytest.mark.parametrize("rows", EXAMPLES, ids=lambda rows: type(rows[0]).__name__)
def test_rows_come_back_as_they_were(rows: Sequence[Any], tmp_path: Path) -> None:
    row_type = type(rows[0])
    assert from_table(to_table(rows, row_type), row_type) == rows
    file = tmp_path / "rows.parquet"
    pq.write_table(to_table(rows, row_type), file)
    table = pq.read_table(file)
    assert table.schema.equals(schema(row_type))
    assert from_table(table, row_type) == rows


def test_rows_come_back_from_any_file_system(directory: Directory) -> None:
    directory.write_table("pairs/part-000000.parquet", to_table([PAIR], PreferencePair))
    assert from_table(directory.read_table("pairs/part-000000.parquet"), PreferencePair) == [PAIR]


@pytest.mark.parametrize("row_type", ROW_TYPES, ids=lambda row_type: row_type.__name__)
def test_no_rows_are_a_table_with_all_columns(row_type: type) -> None:
    table = to_table([], row_type)
    assert table.num_rows == 0
    assert table.schema.equals(schema(row_type))
    assert from_table(table, row_type) == []


@pytest.mark.parametrize("row_type", ROW_TYPES, ids=lambda row_type: row_type.__name__)
def test_only_optional_columns_may_be_null(row_type: type) -> None:
    nullable = {(row_type, column.name) for column in schema(row_type) if column.nullable}
    assert nullable == {(kind, name) for kind, name in NULLABLE if kind is row_type}


def test_a_missing_value_in_a_column_that_needs_one_is_not_written(directory: Directory) -> None:
    row = Reject("r", "responses", "loop", None)  # type: ignore[arg-type]
    with pytest.raises(pa.ArrowInvalid, match="'detail' is declared non-nullable"):
        directory.write_table("rejects/part-000000.parquet", to_table([row], Reject))
    assert directory.files() == []


def test_a_value_of_another_type_is_not_taken() -> None:
    row = Reject("r", "responses", "loop", 7)  # type: ignore[arg-type]
    with pytest.raises(pa.ArrowTypeError, match="got a 'int' object"):
        to_table([row], Reject)


def test_types_of_columns() -> None:
    types = {column.name: str(column.type) for column in schema(PreferencePair)}
    message = "list<item: struct<role: string not null, content: string not null>>"
    assert types["prompt"] == types["chosen"] == types["rejected"] == message
    assert (types["probability"], types["chosen_tokens"]) == ("double", "int64")
    assert str(schema(EvaluationSample).field("detected").type) == "bool"


def test_pairs_are_the_conversations_that_trl_reads(tmp_path: Path) -> None:
    # TRL's "preference" type in the conversational format: three lists of role and content.
    file = tmp_path / "pairs.parquet"
    pq.write_table(to_table([PAIR], PreferencePair), file)
    (row,) = pq.read_table(file).to_pylist()
    assert row["prompt"] == [{"role": "user", "content": TEXT}]
    assert row["chosen"] == [{"role": "assistant", "content": "Yes."}]
    assert row["rejected"] == [{"role": "assistant", "content": "No."}]
