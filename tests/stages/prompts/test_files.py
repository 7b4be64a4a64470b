"""Prompts of the researcher's own: every form of file, and every mistake that a row may have."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_writers import Row, write_arrow, write_jsonl, write_parquet

from charactertrain.config import PromptsSection, RunConfig
from charactertrain.exceptions import ConfigError
from charactertrain.records import NO_TRAIT, Prompt, to_table
from charactertrain.seeds import stable_id
from charactertrain.stages import row_files
from charactertrain.stages.prompts.files import check, read_prompts

TRAITS = ("honest", "curious")


def read(path: Path, **changes: Any) -> list[Prompt]:
    settings: dict[str, Any] = {"file": str(path), "validation_share": 0.2, "test_share": 0.3}
    options: dict[str, Any] = {"trait_ids": TRAITS, "splits": {}, "seed": 1}
    # No other setting is read.
    section = PromptsSection.model_construct(
        **{name: changes.pop(name, value) for name, value in settings.items()}
    )
    return [prompt for batch in read_prompts(section, **(options | changes)) for prompt in batch]


def checksum(path: Path) -> str:
    return row_files.checksum(str(path), setting="prompts.file")


@pytest.fixture(name="read_rows")
def rows_reader(tmp_path: Path) -> Callable[..., list[Prompt]]:
    """Reads a JSONL file of these rows."""

    def read_rows(*rows: Row, **changes: Any) -> list[Prompt]:
        return read(write_jsonl(tmp_path / "own.jsonl", rows), **changes)

    return read_rows


ROWS: list[Row] = [
    {
        "text": " Is it so?\n",
        "trait_id": "honest",
        "kind": "values",
        "family": "honest/a-gift",
        "facet": "a gift",
        "split": "test",
        "language": "en",
        "prompt_id": "own1",
    },
    {
        "text": "Ünïcode \U0001f642",
        "trait_id": "curious",
        "kind": None,
        "family": "rain",
        "facet": None,
        "split": "train",
        "language": None,
        "prompt_id": None,
    },
    {
        "text": "What is 2 + 2?",
        "trait_id": None,
        "kind": "general",
        "family": "sums",
        "facet": None,
        "split": "validation",
        "language": None,
        "prompt_id": "own3",
    },
]
WRITERS = {"own.jsonl": write_jsonl, "own.parquet": write_parquet, "own": write_arrow}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_of_file_gives_the_same_prompts(name: str, tmp_path: Path) -> None:
    first, second, third = read(WRITERS[name](tmp_path / name, ROWS))
    # Not as given: it might be the id of a message that the model is to write.
    assert first == Prompt(
        prompt_id=stable_id("own", "own1"),
        trait_id="honest",
        family="honest/a-gift",
        kind="values",
        text="Is it so?",
        split="test",
        facet="a gift",
        language="en",
        source="file",
    )
    assert (second.text, second.kind, second.split) == ("Ünïcode \U0001f642", "trait", "train")
    assert (second.facet, second.language) == ("", "")
    assert re.fullmatch("[0-9a-f]{16}", second.prompt_id)
    assert (third.trait_id, third.kind, third.split) == (NO_TRAIT, "general", "validation")


@pytest.mark.parametrize("name", WRITERS)
def test_a_prompt_may_be_one_turn_of_a_conversation(name: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"Is it {how}?"}], "trait_id": "honest"}
        for how in ("so", "not so")
    ]
    prompts = read(WRITERS[name](tmp_path / name, rows))
    assert [prompt.text for prompt in prompts] == ["Is it so?", "Is it not so?"]


def test_a_prompt_may_be_a_text(read_rows: Callable[..., list[Prompt]]) -> None:
    (prompt,) = read_rows({"prompt": "Is it so?", "trait_id": "honest"})
    assert prompt.text == "Is it so?"


def test_a_directory_of_parquet_files_is_read_in_order(tmp_path: Path) -> None:
    for name, row in zip(("b", "a"), ROWS, strict=False):
        write_parquet(tmp_path / f"{name}.parquet", [row])
    assert [prompt.trait_id for prompt in read(tmp_path)] == ["curious", "honest"]


def test_lines_without_anything_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('\n{"text": "Hi?", "trait_id": "honest"}\n  \n{"text": "", "trait_id": "x"}')
    with pytest.raises(ConfigError, match=re.escape(f"{path}, line 4: text is ''")):
        read(path)


def test_the_only_trait_need_not_be_named(read_rows: Callable[..., list[Prompt]]) -> None:
    (prompt,) = read_rows({"text": "Hi?"}, trait_ids=["honest"])
    assert (prompt.trait_id, prompt.kind) == ("honest", "trait")


def test_general_prompts_may_name_that_they_have_no_trait(
    read_rows: Callable[..., list[Prompt]],
) -> None:
    prompts = read_rows(
        {"text": "Hi?", "kind": "general"}, {"text": "Ho?", "kind": "general", "trait_id": NO_TRAIT}
    )
    assert [prompt.trait_id for prompt in prompts] == [NO_TRAIT, NO_TRAIT]


def test_ids_come_from_trait_kind_and_text(read_rows: Callable[..., list[Prompt]]) -> None:
    rows = [
        {"text": "Hi?", "trait_id": "honest"},
        {"text": "Hi?", "trait_id": "curious"},
        {"text": "Hi?", "trait_id": "honest", "kind": "values"},
        {"text": "Ho?", "trait_id": "honest"},
    ]
    prompts = read_rows(*rows)
    assert len({prompt.prompt_id for prompt in prompts}) == 4
    assert read_rows(*rows[::-1]) == prompts[::-1]


def test_a_row_without_a_family_is_one_of_its_own(read_rows: Callable[..., list[Prompt]]) -> None:
    (prompt,) = read_rows({"text": "Hi?", "trait_id": "honest"})
    assert prompt.family == f"honest/own-{prompt.prompt_id}"


def test_families_without_a_split_are_drawn_by_share(
    read_rows: Callable[..., list[Prompt]],
) -> None:
    rows = [{"text": f"Hi {index}?", "trait_id": "honest"} for index in range(1000)]
    prompts = read_rows(*rows)
    counts = Counter(prompt.split for prompt in prompts)
    # Within four standard deviations.
    assert abs(counts["test"] - 300) < 58
    assert abs(counts["validation"] - 200) < 51
    assert counts["train"] == 1000 - counts["test"] - counts["validation"]
    assert read_rows(*rows) == prompts
    assert read_rows(*rows[::-1]) == prompts[::-1]
    other = read_rows(*rows, seed=2)
    assert [prompt.split for prompt in other] != [prompt.split for prompt in prompts]
    none = read_rows(*rows, validation_share=0.0, test_share=0.0)
    assert {prompt.split for prompt in none} == {"train"}


def test_a_family_is_in_one_split(read_rows: Callable[..., list[Prompt]]) -> None:
    rows = [
        {"text": f"Hi {index}?", "trait_id": "honest", "family": f"f{index % 9}"}
        for index in range(90)
    ]
    splits: dict[str, set[str]] = {}
    for prompt in read_rows(*rows):
        splits.setdefault(prompt.family, set()).add(prompt.split)
    assert len(splits) == 9
    assert all(len(found) == 1 for found in splits.values())
    assert len({split for found in splits.values() for split in found}) == 3


def test_a_family_that_the_model_writes_for_keeps_its_split(
    read_rows: Callable[..., list[Prompt]],
) -> None:
    for split in ("train", "validation", "test"):
        row = {"text": "Hi?", "trait_id": "honest", "family": "honest/a-gift"}
        (prompt,) = read_rows(row, splits={"honest/a-gift": split})
        assert prompt.split == split


def test_a_split_that_a_row_names_is_that_of_its_family(
    read_rows: Callable[..., list[Prompt]],
) -> None:
    for split in ("train", "validation", "test"):
        row = {"trait_id": "honest", "family": "f"}
        prompts = read_rows({"text": "Hi?", "split": split, **row}, {"text": "Ho?", **row})
        assert [prompt.split for prompt in prompts] == [split, split]


def test_many_rows_come_in_batches(smoke_config: RunConfig, tmp_path: Path) -> None:
    rows = [{"text": f"Hi {index}?"} for index in range(5000)]
    path = write_parquet(tmp_path / "own.parquet", rows)
    section = smoke_config.prompts.model_copy(update={"file": str(path)})
    batches = list(read_prompts(section, trait_ids=["honest"], splits={}, seed=1))
    assert [len(batch) for batch in batches] == [4096, 904]
    assert [p.text for batch in batches for p in batch] == [row["text"] for row in rows]


GOOD: Row = {"text": "Is it so?", "trait_id": "honest"}
TURN = {"role": "user", "content": "Hi?"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {**GOOD, "statement": "x", "a": 1},
            "unknown keys ['a', 'statement']; expected some of ['facet', 'family', 'kind', "
            "'language', 'length', 'persona', 'prompt', 'prompt_id', 'source', 'split', 'style', "
            "'text', 'trait_id']. Rename them, or take them out.",
        ),
        ({"trait_id": "honest"}, "text is None; expected a message in `text` or `prompt`"),
        ({**GOOD, "text": " \n"}, "text is ' \\n'; expected a message in `text` or `prompt`"),
        ({**GOOD, "text": 7}, "text is 7; expected a message in `text` or `prompt`"),
        ({**GOOD, "text": "x" * 20_001}, "text has 20001 characters; expected 20000 at most"),
        ({"text": "Hi?"}, "trait_id is None; expected one of the constitution's: honest, curious"),
        (
            {**GOOD, "trait_id": "warm"},
            "trait_id is 'warm'; expected one of the constitution's: honest, curious",
        ),
        (
            {**GOOD, "kind": "general"},
            "trait_id is 'honest' and kind is general, where no trait is at stake; leave trait_id "
            "out",
        ),
        (
            {**GOOD, "trait_id": NO_TRAIT},
            "trait_id is 'general'; expected one of the constitution's: honest, curious",
        ),
        (
            {**GOOD, "kind": "question"},
            "kind is 'question'; expected one of trait, identity, values, disagreement, everyday, "
            "general",
        ),
        (
            {**GOOD, "split": "dev"},
            "split is 'dev'; expected one of train, validation, test",
        ),
        ({**GOOD, "family": 3}, "family is 3, expected text"),
        ({**GOOD, "facet": ["a"]}, "facet is ['a'], expected text"),
        ({**GOOD, "language": 1}, "language is 1, expected text"),
        ({**GOOD, "prompt_id": 1}, "prompt_id is 1, expected text"),
        (
            {"prompt": [TURN, {"role": "assistant", "content": "Ho."}], "trait_id": "honest"},
            "prompt has 2 turns; expected one, of role user. Longer conversations are not trained "
            "on: give the message alone.",
        ),
        (
            {"prompt": [{**TURN, "role": "system"}], "trait_id": "honest"},
            "prompt has 1 turns; expected one, of role user.",
        ),
        ({"prompt": [], "trait_id": "honest"}, "prompt has 0 turns; expected one, of role user."),
        ({"prompt": ["Hi?"], "trait_id": "honest"}, "prompt has 1 turns; expected one"),
        ({"prompt": [TURN, "Ho."], "trait_id": "honest"}, "prompt has 2 turns; expected one"),
        ({"prompt": [{"role": "user"}], "trait_id": "honest"}, "text is None; expected a message"),
        (
            {**GOOD, "family": "f", "split": "test"},
            "split is 'test', and family 'f' is in 'train'. A family is in one split: mend the one "
            "or the other.",
        ),
        (
            {**GOOD, "prompt_id": "own"},
            "prompt_id 'own' comes twice. Leave the rows' prompt_id out, or make each its own; a "
            "text that comes twice is one row too many.",
        ),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(
    read_rows: Callable[..., list[Prompt]], tmp_path: Path, row: Row, message: str
) -> None:
    first = {"text": "Hi?", "trait_id": "honest", "family": "f", "split": "train"}
    assert read_rows({**first, "prompt_id": "own"}, GOOD)
    with pytest.raises(ConfigError) as caught:
        read_rows({**first, "prompt_id": "own"}, row)
    assert str(caught.value).startswith(f"{tmp_path / 'own.jsonl'}, line 2: {message}")


def test_a_text_that_comes_twice_is_one_row_too_many(
    read_rows: Callable[..., list[Prompt]],
) -> None:
    with pytest.raises(ConfigError, match=r"line 3: prompt_id '[0-9a-f]{16}' comes twice"):
        read_rows(GOOD, {**GOOD, "kind": "values"}, {**GOOD, "text": "Is it so? "})


def test_a_split_that_contradicts_the_models_family_is_refused(
    read_rows: Callable[..., list[Prompt]],
) -> None:
    row = {**GOOD, "family": "honest/a-gift", "split": "train"}
    with pytest.raises(
        ConfigError, match="line 1: split is 'train', and family 'honest/a-gift' is"
    ):
        read_rows(row, splits={"honest/a-gift": "test"})


@pytest.mark.parametrize(("name", "where"), [("own.parquet", ""), ("own", "data-00001-of-00002")])
def test_rows_of_arrow_files_are_named_by_number(name: str, where: str, tmp_path: Path) -> None:
    rows = [{"text": f"Hi {index}?", "trait_id": "honest"} for index in range(4)]
    rows[3]["trait_id"] = "warm"
    path = WRITERS[name](tmp_path / name, rows)
    file, number = (path / f"{where}.arrow", 2) if where else (path, 4)
    with pytest.raises(ConfigError, match=re.escape(f"{file}, row {number}: trait_id is 'warm'")):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", "not JSON: Expecting property name"),
        ('{"text": "Hi?"', "not JSON: "),
        ('["Hi?"]', "expected an object, found a list"),
        ('"Hi?"', "expected an object, found a str"),
    ],
)
def test_a_line_that_is_no_object_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"text": "Hi?", "trait_id": "honest"}}\n{line}\n')
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 2: {message}")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("own.parquet", b"no parquet"),
        ("own.parquet", b""),
        ("own.jsonl", b'{"text": "\xff"}'),
        ("data-00000-of-00001.arrow", b"no arrow"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(
    name: str, data: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    location = tmp_path if path.suffix == ".arrow" else path
    with pytest.raises(ConfigError, match=re.escape(f"prompts.file: {path} cannot be read: ")):
        read(location)


@pytest.mark.parametrize("function", [read, checksum], ids=["read", "sum"])
def test_a_file_that_cannot_be_one_is_refused_with_advice(
    function: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"prompts.file: there is no file {tmp_path}/x")
    ):
        function(tmp_path / "x.jsonl")
    (tmp_path / "own.csv").write_text("text\n")
    with pytest.raises(ConfigError) as caught:
        function(tmp_path / "own.csv")
    assert str(caught.value) == (
        f"prompts.file: {tmp_path}/own.csv has the suffix '.csv'; expected .parquet or .jsonl, or "
        "a directory that `datasets` saved"
    )
    # A DatasetDict has its files one level down.
    write_arrow(tmp_path / "train", ROWS)
    with pytest.raises(ConfigError) as caught:
        function(tmp_path)
    assert str(caught.value).startswith(
        f"prompts.file: {tmp_path} holds no data-*.arrow or *.parquet;"
    )
    assert "a DatasetDict has one per split: name one of them" in str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_without_rows_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    empty = pa.Table.from_pylist(list(ROWS)).slice(0, 0)
    if name == "own":
        for file in path.glob("*.arrow"):
            with pa.OSFile(str(file), "wb") as sink:
                pa.ipc.new_stream(sink, empty.schema).close()
    elif name == "own.parquet":
        pq.write_table(empty, path)
    else:
        path.write_text("\n \n")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value) == f"prompts.file: {path} holds no rows; expected at least one"


@pytest.mark.parametrize("name", WRITERS)
def test_the_checksum_is_that_of_the_contents_wherever_they_are(name: str, tmp_path: Path) -> None:
    for folder in ("here", "there", "other"):
        (tmp_path / folder).mkdir()
    paths = [
        WRITERS[name](tmp_path / folder / name, rows)
        for folder, rows in (("here", ROWS), ("there", ROWS), ("other", [*ROWS, GOOD]))
    ]
    here, there, other = (checksum(path) for path in paths)
    assert re.fullmatch("[0-9a-f]{32}", here)
    assert here == there != other


def test_the_checksum_covers_every_file_of_a_directory_and_no_other(tmp_path: Path) -> None:
    path = write_arrow(tmp_path / "own", ROWS)
    before = checksum(path)
    (path / "state.json").write_text("{}")
    assert checksum(path) == before
    last = path / "data-00001-of-00002.arrow"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(bytes(data))
    assert checksum(path) != before


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "own.jsonl", [GOOD])
    assert len(read(Path("~/own.jsonl"))) == 1
    assert checksum(Path("~/own.jsonl")) == checksum(tmp_path / "own.jsonl")


@pytest.mark.parametrize(("use", "is_enough"), [("join", True), ("replace", False)])
def test_a_file_that_stands_alone_needs_prompts_in_every_split(
    smoke_config: RunConfig, tmp_path: Path, use: str, is_enough: bool
) -> None:
    path = tmp_path / "own.jsonl"
    section = smoke_config.prompts.model_copy(update={"file": str(path), "file_use": use})
    rows = [
        {"text": f"Hi {split} {index}?", "trait_id": "honest", "split": split}
        for split, count in (("train", 1), ("validation", 2), ("test", 2))
        for index in range(count)
    ]
    write_jsonl(path, rows)
    check(section, trait_ids=["honest"], seed=1)
    write_jsonl(path, rows[:-1])
    if is_enough:
        check(section, trait_ids=["honest"], seed=1)
        return
    message = r"own\.jsonl has 1 test prompts of trait 'honest'; expected 2 or more where it repl"
    with pytest.raises(ConfigError, match=message):
        check(section, trait_ids=["honest"], seed=1)


def test_a_file_is_checked_to_its_last_row(smoke_config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    section = smoke_config.prompts.model_copy(update={"file": str(path)})
    write_jsonl(path, [{**GOOD, "text": "Hm?"}, {**GOOD, "trait_id": "warm"}])
    with pytest.raises(ConfigError, match="line 2: trait_id is 'warm'"):
        check(section, trait_ids=["honest"], seed=1)
    check(smoke_config.prompts, trait_ids=["honest"], seed=1)


def test_prompts_of_another_run_are_a_file_as_they_stand(tmp_path: Path) -> None:
    theirs = [
        Prompt("p1", "honest", "f1", "trait", "Is it so?", "test", "a gift", "a nurse", "terse"),
        Prompt("p2", "curious", "f2", "values", "Why?", "train", length="a line", language="en"),
    ]
    for index, prompt in enumerate(theirs):
        pq.write_table(to_table([prompt], Prompt), tmp_path / f"part-{index:06d}.parquet")
    found = read(tmp_path)
    assert [
        replace(p, prompt_id=t.prompt_id, source="model")
        for p, t in zip(found, theirs, strict=True)
    ] == theirs
    assert {prompt.source for prompt in found} == {"file"}
