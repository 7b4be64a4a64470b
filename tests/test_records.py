"""Row types: what is written is what is read, in columns that others read too."""

import inspect
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from charactertrain import records
from charactertrain.records import (
    NO_TRAIT,
    Brief,
    Draft,
    EvaluationSample,
    Facet,
    HeldOutReward,
    Judgement,
    Matchup,
    Message,
    Offer,
    OfferReply,
    Opinion,
    PreferencePair,
    Probe,
    Prompt,
    PromptCall,
    Ranking,
    Reject,
    Reply,
    Response,
    ReviewEvent,
    Script,
    ScriptDraft,
    ScriptReply,
    Trait,
    TraitChoice,
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
    family="honest/a-gift",
    split="train",
    prompt=(Message("user", TEXT),),
    chosen=(Message("assistant", "Yes."),),
    rejected=(Message("assistant", "No."),),
    probability=0.75,
    weight=1 / 3,
    margin=-0.5,
    chosen_id="a",
    rejected_id="b",
    chosen_variant="strong",
    rejected_variant="none",
    chosen_tokens=2,
    rejected_tokens=2**40,
)
SAMPLE = EvaluationSample(
    "s1", "p1", "honest", "values", "policy", "Hi?", TEXT, 9, "length", -0.1, True, 0.3, 0.2, 1e-300
)
FACET = Facet(NO_TRAIT, "general", "a sum", "general/a-sum", "test", "shipped")
BRIEFS = (Brief("p1", "a student", "blunt", "a paragraph"), Brief("p2", "", "", ""))
RANKING = Ranking(
    prompt_id="p1",
    trait_id="honest",
    split="train",
    response_ids=("a", "b"),
    utilities=(0.1, -0.1),
    pair_probabilities=(0.75,),
    num_tokens=(3, 2**31 - 1),
    method="contrast",
    swap_consistency=None,
    cyclic_triads=None,
    split_half=None,
    opinions=(),
    prompt_tokens=2**40,
    cached_tokens=0,
)
SCRIPT_REPLY = ScriptReply(
    sample_id="s1",
    script_id="s",
    probe="tea",
    condition="plain",
    cluster="i1",
    trait_id="honest",
    arm="policy",
    turn=1,
    messages=(Message("user", TEXT), Message("assistant", "Yes.")),
    text=TEXT,
    num_tokens=9,
    finish_reason="stop",
    contrast=0.1,
    detected=True,
    measure="correct",
    score=0.5,
)
SCRIPTED = (ScriptReply, ScriptDraft)
OPINIONS = (Opinion("judge", 1 / 3), Opinion("rating", None))
OFFER = Offer("o", "honest", "told", TEXT, "honest", "open nature")
EXAMPLES: list[list[Any]] = [
    [
        ReviewEvent(
            "e1",
            "now",
            "Ada",
            "verdict",
            "t",
            "p",
            "a",
            "b",
            "0",
            "1",
            "tie",
            TEXT,
            "b",
            "random",
            "",
        )
    ],
    [Message("user", TEXT)],
    [
        Trait("honest", TEXT, ("a gift", "an exam"), r"\btruth\b", 0.1, "small"),
        Trait("curious", "I ask.", (), None, 2.0, "small"),
    ],
    [FACET],
    list(BRIEFS),
    [PromptCall("c1", FACET, "en", BRIEFS), PromptCall("c2", FACET, "de", ())],
    [
        Prompt("p1", "honest", "honest/a-gift", "general", TEXT, "validation"),
        Prompt("p1", "h", "f", "values", "x", "test", "a", "b", "c", "d", "en", "file"),
    ],
    [
        Draft("p1", "h", "f", "values", TEXT, "test", band_keys=(-(2**31), 0, 2**31 - 1)),
        Draft("p1", "h", "f", "values", TEXT, "test", "a", "b", "c", "d", "en", "file", ()),
    ],
    [Probe("x", "honest", "Hi?", "strong", TEXT, (1, 2, 2**31 - 1), -0.1)],
    [
        Response("r", "p1", "h", "f", "train", "Hi?", "mild", 2, TEXT, (), (), -0.1, "stop"),
        replace(
            Response("r", "p1", "h", "f", "train", "Hi?", "none", 0, "", (), (), 0.0, "length"),
            token_ids=(7, 0),
            logprobs=(-0.5, -3.25),
            sequence_logprob=-3.75,
        ),
    ],
    list(OPINIONS),
    [
        RANKING,
        replace(RANKING, swap_consistency=1 / 3, cyclic_triads=0.0, split_half=-1.0),
        replace(RANKING, opinions=OPINIONS),
    ],
    [PAIR, replace(PAIR, chosen_tokens=None, rejected_tokens=None)],
    [Reply("s1", "p1", "honest", "trait", "base", "Hi?", TEXT, (3, 4), -2.5, "stop")],
    [
        SAMPLE,
        replace(SAMPLE, detected=False),
        replace(SAMPLE, detected=None),
        replace(SAMPLE, gold_reward=None),
    ],
    [Matchup("m", "p1", "honest", "policy", "Hi?", TEXT, "No.", -3)],
    [
        Judgement("m", "p1", "honest", "policy", 0.9, None, -3),
        Judgement("m", "p1", "honest", "policy", None, 0.1, 0),
    ],
    [
        Script(
            "s", "tea", "plain", "i1", NO_TRAIT, "", ("Tea?",), (), ("correct",), ("green",), ()
        ),
        Script("s", "tea", "own", "i1", "honest", TEXT, ("a", "b"), ("c",), (), (), ("red",)),
    ],
    [
        SCRIPT_REPLY,
        replace(SCRIPT_REPLY, contrast=None, detected=None, score=None),
        replace(SCRIPT_REPLY, detected=False),
    ],
    [ScriptDraft(**vars(SCRIPT_REPLY), token_ids=(3, 2**31 - 1))],
    [OFFER],
    [OfferReply("r", "honest", "base", OFFER, TEXT, (3, 2**31 - 1), "length")],
    [
        TraitChoice("r", "honest", "base", OFFER, TEXT, 2, "stop", (1 / 3,)),
        TraitChoice("r", "honest", "base", OFFER, TEXT, 2, "stop", (0.0, 1.0)),
    ],
    [HeldOutReward("r", "p1", "honest", (0.5, -1 / 3))],
    [Reject("r", "honest", "responses", "loop", TEXT)],
]
ROW_TYPES = [type(rows[0]) for rows in EXAMPLES]
NULLABLE = {
    (Trait, "detector"),
    (Opinion, "same_winner"),
    (Ranking, "swap_consistency"),
    (Ranking, "cyclic_triads"),
    (Ranking, "split_half"),
    (PreferencePair, "chosen_tokens"),
    (PreferencePair, "rejected_tokens"),
    (EvaluationSample, "detected"),
    (EvaluationSample, "gold_reward"),
    (Judgement, "arm_first"),
    (Judgement, "arm_second"),
    *((kind, name) for kind in SCRIPTED for name in ("contrast", "detected", "score")),
}


def test_every_record_type_has_an_example() -> None:
    defined = {
        value
        for _, value in inspect.getmembers(records, is_dataclass)
        if value.__module__.startswith(f"{records.__name__}.")
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
    row = Reject("r", "honest", "responses", "loop", None)  # type: ignore[arg-type]
    with pytest.raises(pa.ArrowInvalid, match="'detail' is declared non-nullable"):
        directory.write_table("rejects/part-000000.parquet", to_table([row], Reject))
    assert directory.files() == []


def test_a_value_of_another_type_is_not_taken() -> None:
    row = Reject("r", "honest", "responses", "loop", 7)  # type: ignore[arg-type]
    with pytest.raises(pa.ArrowTypeError, match="got a 'int' object"):
        to_table([row], Reject)


def test_types_of_columns() -> None:
    types = {column.name: str(column.type) for column in schema(PreferencePair)}
    message = "list<item: struct<role: string not null, content: string not null>>"
    assert types["prompt"] == types["chosen"] == types["rejected"] == message
    assert (types["probability"], types["chosen_tokens"]) == ("double", "int64")
    assert str(schema(EvaluationSample).field("detected").type) == "bool"
    assert str(schema(PromptCall).field("facet").type.field("split").type) == "string"
    opinion = "list<item: struct<ranker: string not null, same_winner: double>>"
    assert str(schema(Ranking).field("opinions").type) == opinion


@pytest.mark.parametrize(
    ("row_type", "column", "expected"),
    [
        (Response, "token_ids", "list<item: int32>"),
        (Response, "logprobs", "list<item: float>"),
        (Probe, "token_ids", "list<item: int32>"),
        (Reply, "token_ids", "list<item: int32>"),
        (Ranking, "num_tokens", "list<item: int32>"),
        (Draft, "band_keys", "list<item: int32>"),
        (Response, "sequence_logprob", "double"),
        (Ranking, "utilities", "list<item: double>"),
    ],
)
def test_tokens_take_half_the_bytes_of_other_numbers(
    row_type: type, column: str, expected: str
) -> None:
    assert str(schema(row_type).field(column).type) == expected


def test_a_draft_is_a_prompt_with_keys() -> None:
    assert schema(Draft).names == [*schema(Prompt).names, "band_keys"]
    draft = Draft("p1", "honest", "honest/x", "trait", TEXT, "train", band_keys=(1,))
    assert from_table(to_table([draft], Draft).select(schema(Prompt).names), Prompt) == [
        Prompt("p1", "honest", "honest/x", "trait", TEXT, "train")
    ]


def test_a_token_id_that_does_not_fit_is_not_written() -> None:
    with pytest.raises(pa.ArrowInvalid, match="Value 2147483648 too large to fit in C integer"):
        to_table([Probe("x", "honest", "Hi?", "strong", TEXT, (2**31,), -0.5)], Probe)


def test_log_probabilities_are_rounded_to_single_precision() -> None:
    row = Response("r", "p", "h", "f", "train", "Hi?", "none", 0, "", (7,), (-0.1,), -0.1, "stop")
    (read,) = from_table(to_table([row], Response), Response)
    assert read.logprobs == (float(np.float32(-0.1)),) != (-0.1,)
    assert read.sequence_logprob == -0.1


def test_pairs_are_the_conversations_that_trl_reads(tmp_path: Path) -> None:
    # TRL's "preference" type in the conversational format: three lists of role and content.
    file = tmp_path / "pairs.parquet"
    pq.write_table(to_table([PAIR], PreferencePair), file)
    (row,) = pq.read_table(file).to_pylist()
    assert row["prompt"] == [{"role": "user", "content": TEXT}]
    assert row["chosen"] == [{"role": "assistant", "content": "Yes."}]
    assert row["rejected"] == [{"role": "assistant", "content": "No."}]
