"""Comparisons of the researcher's own: every form of file and row, and every mistake in one."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from row_writers import Row, write_arrow, write_jsonl, write_parquet

from charactertrain.__main__ import run
from charactertrain.config import validate
from charactertrain.config.data import PairsSection
from charactertrain.exceptions import ConfigError
from charactertrain.records import NO_TRAIT, Message, PreferencePair, to_table
from charactertrain.seeds import stable_id
from charactertrain.stages.pairs.files import check, read_pairs

WEIGHTS = {"honest": 1.0, "curious": 3.0}


def section(file: Path | None, **changes: Any) -> PairsSection:
    values: dict[str, Any] = {
        "min_probability": 0.5,
        "file": None if file is None else str(file),
        "file_use": "join",
        "validation_share": 0.2,
        "reviews": None,
    }
    return PairsSection(**(values | changes))


def read_batches(file: Path, **changes: Any) -> list[list[PreferencePair]]:
    options: dict[str, Any] = {"trait_weights": WEIGHTS, "splits": {}, "seed": 1}
    asked = {name: changes.pop(name, value) for name, value in options.items()}
    return list(read_pairs(section(file, **changes), **asked))


def read(file: Path, **changes: Any) -> list[PreferencePair]:
    return [pair for batch in read_batches(file, **changes) for pair in batch]


Reader = Callable[..., list[PreferencePair]]


@pytest.fixture(name="read_rows")
def rows_reader(tmp_path: Path) -> Reader:
    """Reads a JSONL file of these rows."""

    def read_rows(*rows: Row, **changes: Any) -> list[PreferencePair]:
        return read(write_jsonl(tmp_path / "own.jsonl", rows), **changes)

    return read_rows


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
GOOD: Row = {
    "prompt": [user("Is it so?")],
    "chosen": [assistant("I doubt it.")],
    "rejected": [assistant("Sure!")],
}


def row(index: int, **keys: Any) -> Row:
    return {**GOOD, "prompt": [user(f"Is it so, {index}?")], **keys}


FULL: list[Row] = [
    {
        "prompt": [SYSTEM, user("Hi."), assistant("Hello!"), user(" Is it so?\n")],
        "chosen": [assistant("I doubt it.")],
        "rejected": [assistant("Sure! \U0001f642")],
        "probability": 0.75,
        "margin": 0.5,
        "trait_id": "curious",
        "split": "validation",
        "family": "curious/doubt",
        "prompt_id": "own1",
        "score_chosen": 9,
    },
    {
        "prompt": [user("What is 2 + 2?")],
        "chosen": [assistant("4")],
        "rejected": [assistant("5")],
        "probability": None,
        "margin": None,
        "trait_id": None,
        "split": "train",
        "family": None,
        "prompt_id": None,
        "score_chosen": None,
    },
]
WRITERS = {"own.jsonl": write_jsonl, "own.parquet": write_parquet, "own": write_arrow}


@pytest.mark.parametrize("name", WRITERS)
def test_every_form_of_file_gives_the_same_pairs(name: str, tmp_path: Path) -> None:
    first, second = read(WRITERS[name](tmp_path / name, FULL))
    # Not as given: it might be the id of a prompt of the run.
    prompt_id = stable_id("file", "curious", "own1")
    chosen_id = stable_id(prompt_id, "I doubt it.")
    rejected_id = stable_id(prompt_id, "Sure! \U0001f642")
    assert first == PreferencePair(
        pair_id=stable_id(chosen_id, rejected_id),
        prompt_id=prompt_id,
        trait_id="curious",
        family="curious/doubt",
        split="validation",
        prompt=(
            Message("system", "Be brief."),
            Message("user", "Hi."),
            Message("assistant", "Hello!"),
            Message("user", " Is it so?\n"),
        ),
        chosen=(Message("assistant", "I doubt it."),),
        rejected=(Message("assistant", "Sure! \U0001f642"),),
        probability=0.75,
        weight=3.0,
        margin=0.5,
        chosen_id=chosen_id,
        rejected_id=rejected_id,
        chosen_variant="file",
        rejected_variant="file",
        chosen_tokens=None,
        rejected_tokens=None,
    )
    assert (second.trait_id, second.split, second.weight) == (NO_TRAIT, "train", 1.0)
    assert (second.probability, second.margin) == (1.0, 0.0)
    assert second.family == f"general/file-{second.prompt_id}"
    assert re.fullmatch("[0-9a-f]{16}", second.prompt_id)


@pytest.mark.parametrize("name", WRITERS)
def test_without_a_prompt_it_is_what_both_conversations_begin_with(
    name: str, tmp_path: Path
) -> None:
    explicit, _ = FULL
    implicit = {key: value for key, value in explicit.items() if key != "prompt"}
    for side in ("chosen", "rejected"):
        implicit[side] = [*explicit["prompt"], *explicit[side]]
    other = {
        "chosen": [user("Hi?"), assistant("Hello!")],
        "rejected": [user("Hi?"), assistant("Hello.")],
    }
    first, second = read(WRITERS[name](tmp_path / name, [implicit, other]))
    assert [first] == read(write_jsonl(tmp_path / "explicit.jsonl", [explicit]))
    assert second.prompt == (Message("user", "Hi?"),)
    assert second.chosen == (Message("assistant", "Hello!"),)
    assert second.rejected == (Message("assistant", "Hello."),)


def test_an_implicit_prompt_has_the_id_of_the_same_prompt_given(read_rows: Reader) -> None:
    whole = {
        "chosen": [*GOOD["prompt"], assistant("No.")],
        "rejected": [*GOOD["prompt"], assistant("Sure!")],
    }
    first, second = read_rows(GOOD, whole)
    assert first.prompt_id == second.prompt_id
    assert first.rejected_id == second.rejected_id


def test_a_system_turn_may_be_empty(read_rows: Reader) -> None:
    empty = {"role": "system", "content": ""}
    (pair,) = read_rows({**GOOD, "prompt": [empty, user("Is it so?")]})
    assert pair.prompt == (Message("system", ""), Message("user", "Is it so?"))


def test_other_keys_of_rows_and_turns_are_passed_over(read_rows: Reader) -> None:
    named = {**user("Is it so?"), "name": "Ann", "tool_calls": None}
    extended = {**GOOD, "prompt": [named], "weight": 7, "chosen_tokens": 3, "source": ["x"]}
    assert read_rows(extended) == read_rows(GOOD)


def test_the_likelier_is_chosen_whichever_it_was_called(read_rows: Reader) -> None:
    (pair,) = read_rows({**GOOD, "probability": 0.25, "margin": 0.5})
    assert pair.chosen == (Message("assistant", "Sure!"),)
    assert pair.rejected == (Message("assistant", "I doubt it."),)
    assert (pair.probability, pair.margin) == (0.75, -0.5)
    assert pair.chosen_id == stable_id(pair.prompt_id, "Sure!")
    assert pair.pair_id == stable_id(pair.chosen_id, pair.rejected_id)
    # The same comparison said the other way round.
    swapped = {**GOOD, "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    assert read_rows({**swapped, "probability": 0.75, "margin": -0.5}) == [pair]


@pytest.mark.parametrize(
    ("probability", "chosen", "expected"),
    [(0, "Sure!", 1.0), (0.5, "I doubt it.", 0.5), (1, "I doubt it.", 1.0)],
)
def test_probabilities_go_from_no_to_yes(
    read_rows: Reader, probability: float, chosen: str, expected: float
) -> None:
    (pair,) = read_rows({**GOOD, "probability": probability})
    assert (pair.chosen[0].content, pair.probability) == (chosen, expected)


def test_ids_come_from_trait_prompt_and_texts(read_rows: Reader) -> None:
    rows = [
        GOOD,
        {**GOOD, "trait_id": "honest"},
        {**GOOD, "trait_id": "curious"},
        {**GOOD, "prompt": [SYSTEM, user("Is it so?")]},
        {**GOOD, "prompt_id": "own"},
    ]
    pairs = read_rows(*rows)
    assert len({pair.prompt_id for pair in pairs}) == 5
    assert len({pair.chosen_id for pair in pairs}) == 5
    assert len({pair.pair_id for pair in pairs}) == 5
    assert read_rows(*rows[::-1]) == pairs[::-1]
    named = read_rows({**GOOD, "trait_id": NO_TRAIT})
    assert named == pairs[:1]


def test_weights_of_a_prompts_pairs_sum_to_that_of_its_trait(
    read_rows: Reader,
) -> None:
    texts = ("No.", "Not quite.", "I cannot tell.")
    rows = [
        {**GOOD, "trait_id": "curious", "rejected": [assistant(texts[0])]},
        {**GOOD, "trait_id": "honest"},
        {**GOOD, "trait_id": "curious", "rejected": [assistant(texts[1])]},
        {**GOOD, "rejected": [assistant(texts[0])]},
        {**GOOD, "trait_id": "curious", "rejected": [assistant(texts[2])]},
        {**GOOD, "rejected": [assistant(texts[1])]},
    ]
    weights = [pair.weight for pair in read_rows(*rows)]
    assert weights == [1.0, 1.0, 1.0, 0.5, 1.0, 0.5]


def test_weights_hold_over_all_batches_of_a_file(tmp_path: Path) -> None:
    # Every prompt has 5 rows, far apart.
    rows = [
        row(index % 1000, rejected=[assistant(f"Sure {index}!")], trait_id="curious")
        for index in range(5000)
    ]
    batches = read_batches(write_parquet(tmp_path / "own.parquet", rows))
    assert [len(batch) for batch in batches] == [4096, 904]
    pairs = [pair for batch in batches for pair in batch]
    assert [pair.rejected[0].content for pair in pairs] == [f"Sure {n}!" for n in range(5000)]
    assert len({pair.prompt_id for pair in pairs}) == 1000
    assert {pair.weight for pair in pairs} == {3.0 / 5}


def test_families_without_a_split_are_drawn_by_share(read_rows: Reader) -> None:
    rows = [row(index) for index in range(1000)]
    pairs = read_rows(*rows)
    counts = Counter(pair.split for pair in pairs)
    assert set(counts) == {"train", "validation"}
    # Within four standard deviations.
    assert abs(counts["validation"] - 200) < 51
    assert read_rows(*rows[::-1]) == pairs[::-1]
    other = read_rows(*rows, seed=2)
    assert [pair.split for pair in other] != [pair.split for pair in pairs]
    none = read_rows(*rows, validation_share=0.0)
    assert {pair.split for pair in none} == {"train"}


def test_a_family_is_in_one_split(read_rows: Reader) -> None:
    rows = [row(index, family=f"f{index % 9}") for index in range(90)]
    splits = defaultdict(set)
    for pair in read_rows(*rows, validation_share=0.5):
        splits[pair.family].add(pair.split)
    assert len(splits) == 9
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "validation"}


def test_a_split_that_a_row_names_is_that_of_its_family(read_rows: Reader) -> None:
    for split in ("train", "validation"):
        for places in ((0,), (1,), (0, 1)):
            rows = [
                row(index, family="f", **({"split": split} if index in places else {}))
                for index in range(2)
            ]
            assert [pair.split for pair in read_rows(*rows)] == [split, split]


def test_a_family_that_the_run_has_prompts_of_keeps_its_split(read_rows: Reader) -> None:
    for split in ("train", "validation"):
        (pair,) = read_rows(row(1, family="honest/a-gift"), splits={"honest/a-gift": split})
        assert pair.split == split


def test_a_family_of_the_runs_test_split_is_refused(read_rows: Reader) -> None:
    message = "line 1: family 'honest/a-gift' is one of this run's test split, and nothing of it"
    for keys in ({}, {"split": "train"}):
        with pytest.raises(ConfigError, match=message):
            read_rows(row(1, family="honest/a-gift", **keys), splits={"honest/a-gift": "test"})


def test_a_split_that_contradicts_the_runs_family_is_refused(read_rows: Reader) -> None:
    with pytest.raises(
        ConfigError, match="line 1: split is 'train', and family 'honest/a-gift' is in 'validation'"
    ):
        read_rows(
            row(1, family="honest/a-gift", split="train"), splits={"honest/a-gift": "validation"}
        )


STANDARD = (
    "expected the conversational form, a list of turns such as "
    '[{"role": "assistant", "content": "..."}].'
)
AFTER = (
    "after the prompt; expected one turn, of the assistant, in which the two differ. Cut "
    "conversations off after that turn"
)
WHOLE = "; where chosen and rejected hold the whole conversation, leave prompt out."
LAST = (
    "expected turns of which the last is the user's, in prompt or as the beginning that chosen and "
    "rejected share."
)
TURN = 'expected a turn as in [{"role": "assistant", "content": "..."}]'
PROBABILITY = "expected a number from 0 to 1: how likely chosen is the better"


def implicit(chosen: Sequence[Row], rejected: Sequence[Row]) -> Row:
    return {"chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "chosen": "No."}, f"chosen is a str; {STANDARD}"),
        ({**GOOD, "rejected": {"role": "user"}}, f"rejected is a dict; {STANDARD}"),
        ({"prompt": GOOD["prompt"], "chosen": GOOD["chosen"]}, f"rejected is missing; {STANDARD}"),
        ({}, f"chosen is missing; {STANDARD}"),
        (
            {**GOOD, "prompt": "Is it so?"},
            f"prompt is a str; {STANDARD.replace('assistant', 'user').rstrip('.')}{WHOLE}",
        ),
        ({**GOOD, "prompt": ["Hi?"]}, f"prompt[0] is a str; {TURN}"),
        ({**GOOD, "chosen": [assistant("No."), None]}, f"chosen[1] is a NoneType; {TURN}"),
        (
            {**GOOD, "prompt": [{"content": "Hi?"}]},
            "prompt[0].role is None; expected one of system, user, assistant",
        ),
        (
            {**GOOD, "prompt": [user("Hi?"), {"role": "tool", "content": "7"}]},
            "prompt[1].role is 'tool'; expected one of system, user, assistant",
        ),
        ({**GOOD, "chosen": [{"role": "assistant"}]}, "chosen[0].content is None; expected text"),
        ({**GOOD, "chosen": [assistant(" \n")]}, "chosen[0].content is ' \\n'; expected text"),
        ({**GOOD, "prompt": [user("")]}, "prompt[0].content is ''; expected text in it"),
        (
            {**GOOD, "chosen": [{"role": "assistant", "content": ["No."]}]},
            "chosen[0].content is ['No.'], expected text",
        ),
        (
            {**GOOD, "chosen": [assistant("\ud800")]},
            "chosen[0].content holds what no file can store: ",
        ),
        (
            {**GOOD, "chosen": GOOD["rejected"]},
            "chosen and rejected are the same; expected two responses that differ. Take the row "
            "out.",
        ),
        (
            implicit([user("Hi?"), assistant("Ho.")], [user("Hi?"), assistant("Ho.")]),
            "chosen and rejected are the same; ",
        ),
        ({**GOOD, "chosen": []}, f"chosen has no turns {AFTER}{WHOLE}"),
        (
            {**GOOD, "chosen": [*GOOD["prompt"], *GOOD["chosen"]]},
            f"chosen has 2 turns (user, assistant) {AFTER}{WHOLE}",
        ),
        ({**GOOD, "rejected": [user("Hi?")]}, f"rejected has 1 turns (user) {AFTER}{WHOLE}"),
        (
            implicit([user("Hi?"), assistant("Ho.")], [user("Ha?"), assistant("Ho.")]),
            f"chosen has 2 turns (user, assistant) {AFTER}.",
        ),
        (
            implicit(
                [user("Hi?"), assistant("Ho."), user("Ha?"), assistant("He.")],
                [user("Hi?"), assistant("Hu."), user("Ha?"), assistant("He.")],
            ),
            f"chosen has 3 turns (assistant, user, assistant) {AFTER}.",
        ),
        (
            implicit([user("Hi?")], [user("Hi?"), assistant("Ho.")]),
            f"chosen has no turns {AFTER}.",
        ),
        ({**GOOD, "prompt": []}, f"the prompt has no turns; {LAST}"),
        (
            implicit(GOOD["chosen"], GOOD["rejected"]),
            f"the prompt has no turns; {LAST}",
        ),
        ({**GOOD, "prompt": [SYSTEM]}, f"the prompt has 1 turns (system); {LAST}"),
        (
            {**GOOD, "prompt": [user("Hi?"), assistant("Ho.")]},
            f"the prompt has 2 turns (user, assistant); {LAST}",
        ),
        ({**GOOD, "probability": 1.25}, f"probability is 1.25; {PROBABILITY}"),
        ({**GOOD, "probability": -0.5}, f"probability is -0.5; {PROBABILITY}"),
        ({**GOOD, "probability": float("nan")}, f"probability is nan; {PROBABILITY}"),
        ({**GOOD, "probability": "0.7"}, f"probability is '0.7'; {PROBABILITY}"),
        ({**GOOD, "probability": True}, f"probability is True; {PROBABILITY}"),
        ({**GOOD, "margin": float("inf")}, "margin is inf; expected a finite number, in logits"),
        ({**GOOD, "margin": float("nan")}, "margin is nan; expected a finite number, in logits"),
        ({**GOOD, "margin": "1"}, "margin is '1'; expected a finite number, in logits"),
        ({**GOOD, "margin": False}, "margin is False; expected a finite number, in logits"),
        (
            {**GOOD, "trait_id": "warm"},
            "trait_id is 'warm'; expected one of the constitution's: honest, curious; or general, "
            "where the comparison is of quality alone",
        ),
        ({**GOOD, "trait_id": ["honest"]}, "trait_id is ['honest'], expected text"),
        (
            {**GOOD, "split": "test"},
            "split is 'test', and nothing of it is trained on; expected train or validation. Take "
            "the row out.",
        ),
        ({**GOOD, "split": "dev"}, "split is 'dev'; expected one of train, validation"),
        ({**GOOD, "split": 1}, "split is 1, expected text"),
        ({**GOOD, "family": 3}, "family is 3, expected text"),
        ({**GOOD, "prompt_id": 1}, "prompt_id is 1, expected text"),
        (
            row(1, family="f", split="validation"),
            "split is 'validation', and family 'f' is in 'train'. A family is in one split: mend "
            "the one or the other.",
        ),
        (
            row(1, prompt_id="own"),
            "prompt_id 'own' is that of an earlier row with another prompt. Leave the rows' "
            "prompt_id out, or give each prompt its own.",
        ),
        (
            row(0, prompt_id="own", family="g", rejected=[assistant("Yes.")]),
            "family is 'g', and an earlier row has the same prompt in 'f'. A prompt is in one "
            "family: mend the one or the other.",
        ),
        (
            row(0, prompt_id="own", family="f"),
            "an earlier row compares the same two responses. Keep one of the rows; where several "
            "people compared them, say in `probability` which share of them preferred chosen.",
        ),
        (
            row(0, prompt_id="own", chosen=GOOD["rejected"], rejected=GOOD["chosen"]),
            "an earlier row compares the same two responses. Keep one of the rows; ",
        ),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_line(
    read_rows: Reader, tmp_path: Path, row: Row, message: str
) -> None:
    prompt = [user("Is it so, 0?")]
    first = {**GOOD, "prompt": prompt, "family": "f", "split": "train", "prompt_id": "own"}
    assert len(read_rows(first, GOOD)) == 2
    with pytest.raises(ConfigError) as caught:
        read_rows(first, row)
    assert str(caught.value).startswith(f"{tmp_path / 'own.jsonl'}, line 2: {message}")


def test_a_margin_that_no_float_holds_is_named(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "margin": 10**400})
    (tmp_path / "own.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"line 1: margin is 10+; expected a finite number"):
        read(tmp_path / "own.jsonl")


@pytest.mark.parametrize(("name", "where"), [("own.parquet", ""), ("own", "data-00001-of-00002")])
def test_rows_of_arrow_files_are_named_by_number(name: str, where: str, tmp_path: Path) -> None:
    rows = [row(index, trait_id="warm" if index == 3 else "honest") for index in range(4)]
    path = WRITERS[name](tmp_path / name, rows)
    file, number = (path / f"{where}.arrow", 2) if where else (path, 4)
    with pytest.raises(ConfigError, match=re.escape(f"{file}, row {number}: trait_id is 'warm'")):
        read(path)


def test_a_file_that_is_wrong_is_named_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"pairs.file: there is no file {tmp_path}/x")):
        read(tmp_path / "x.jsonl")
    (tmp_path / "own.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"pairs\.file: .*own\.parquet cannot be read: "):
        read(tmp_path / "own.parquet")
    (tmp_path / "own.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"pairs\.file: .*own\.jsonl holds no rows; expected at"):
        read(tmp_path / "own.jsonl")


def test_without_a_file_there_are_no_pairs() -> None:
    assert list(read_pairs(section(None), trait_weights=WEIGHTS, splits={}, seed=1)) == []
    check(section(None), trait_weights=WEIGHTS, seed=1)


def test_pairs_that_this_project_wrote_are_read_back(tmp_path: Path) -> None:
    def message(role: str, content: str) -> tuple[Message, ...]:
        return (Message(role, content),)

    written = PreferencePair(
        pair_id="pair",
        prompt_id="p1",
        trait_id="curious",
        family="curious/rain",
        split="validation",
        prompt=message("user", "It rains again."),
        chosen=message("assistant", "Why is that?"),
        rejected=message("assistant", "So it does."),
        probability=0.875,
        weight=0.25,
        margin=0.0,
        chosen_id="a",
        rejected_id="b",
        chosen_variant="strong",
        rejected_variant="none",
        chosen_tokens=4,
        rejected_tokens=3,
    )
    again = replace(written, pair_id="other", rejected=message("assistant", "Oh."), rejected_id="c")
    (tmp_path / "pairs").mkdir()
    table = to_table([written, again], PreferencePair)
    pq.write_table(table, tmp_path / "pairs" / "part-000000.parquet")
    pairs = read(tmp_path / "pairs")
    prompt_id = stable_id("file", "curious", "p1")
    ids = [stable_id(prompt_id, text) for text in ("Why is that?", "So it does.", "Oh.")]
    assert pairs == [
        replace(
            source,
            pair_id=stable_id(ids[0], rejected_id),
            prompt_id=prompt_id,
            chosen_id=ids[0],
            rejected_id=rejected_id,
            weight=1.5,
            chosen_variant="file",
            rejected_variant="file",
            chosen_tokens=None,
            rejected_tokens=None,
        )
        for source, rejected_id in ((written, ids[1]), (again, ids[2]))
    ]
    # And what was made of them is a file of pairs too.
    pq.write_table(to_table(pairs, PreferencePair), tmp_path / "again.parquet")
    assert [pair.chosen for pair in read(tmp_path / "again.parquet")] == [written.chosen] * 2


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_a_file_that_stands_alone_needs_pairs_in_both_splits(tmp_path: Path, missing: str) -> None:
    rows = [row(index, split=split) for index, split in enumerate(("train", "validation"))]
    path = tmp_path / "own.jsonl"
    alone = section(path, file_use="replace")
    write_jsonl(path, rows)
    check(alone, trait_weights=WEIGHTS, seed=1)
    write_jsonl(path, [each for each in rows if each["split"] != missing])
    check(section(path), trait_weights=WEIGHTS, seed=1)
    with pytest.raises(ConfigError) as caught:
        check(alone, trait_weights=WEIGHTS, seed=1)
    assert str(caught.value) == (
        f"pairs.file: {path} has no {missing} pairs; expected at least one where it replaces those "
        "of rankings. Add rows, say in their `split` where they belong, or change "
        "pairs.validation_share, which is 0.2."
    )


@pytest.mark.parametrize("use", ["join", "replace"])
def test_a_dry_run_finds_what_is_wrong_with_a_file(
    compose: Any, model_cache: Path, tmp_path: Path, use: str
) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [row(0), row(1, trait_id="nosuch")])
    settings = (f"pairs.file={path}", f"pairs.file_use={use}", f"run.dir={tmp_path / 'run'}")
    config = validate(compose("experiment=smoke", "run.dry=true", *settings))
    with pytest.raises(ConfigError, match="line 2: trait_id is 'nosuch'"):
        run(config, Console(quiet=True))


def test_a_file_is_checked_to_its_last_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [row(0), row(1, trait_id="warm")])
    with pytest.raises(ConfigError, match="line 2: trait_id is 'warm'"):
        check(section(path), trait_weights=WEIGHTS, seed=1)
