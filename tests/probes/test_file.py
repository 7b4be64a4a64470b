"""Probe files: what ships, what is read from good ones, and what is said about bad ones."""

import json
from pathlib import Path
from typing import get_args

import pytest

from charactertrain.config.evaluation import ProbeName
from charactertrain.exceptions import ConfigError
from charactertrain.probes import file as probe_file
from charactertrain.probes.file import SHIPPED, load, load_file, load_shipped
from charactertrain.stages.evaluation.probe_scripts import MADE_FROM_PROMPTS

GOOD = """\
title: Mine
question: What then?
better: lower
conditions:
  - name: plain
    turns: ['{question}']
    measures: [correct]
  - name: sad
    turns: ['Oh. {question} {"as": "it is"}']
    measures: [correct]
items:
  - {id: one, question: 'One?', accepted: [One]}
  - {id: two, question: 'Two?', accepted: [Two], conditions: [sad]}
"""


def read(text: str, directory: Path, name: str = "mine.yaml") -> probe_file.ProbeFile:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return load_file(str(path))[1]


def message(text: str, directory: Path, name: str = "mine.yaml") -> str:
    """What is said about a bad file; the file is always named."""
    with pytest.raises(ConfigError) as caught:
        read(text, directory, name)
    said = str(caught.value)
    assert all(line.startswith(str(directory / name)) for line in said.splitlines())
    return said


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_probe_is_read_and_large_enough(name: str) -> None:
    probe = load_shipped(name)
    assert 20 <= len(probe.items) <= 40
    for condition in probe.conditions:
        asked = [i for i in probe.items if not i.conditions or condition.name in i.conditions]
        assert len(asked) >= 8


def test_config_names_every_probe_that_there_is() -> None:
    assert sorted(get_args(ProbeName)) == sorted([*SHIPPED, *MADE_FROM_PROMPTS])


def test_probe_is_called_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    name, probe = load_file(str(path))
    assert name == "mine"
    assert probe.title == "Mine"
    assert probe.items[1].fields == {"question": "Two?"}
    assert probe.items[1].conditions == ["sad"]


def test_places_are_filled_and_other_braces_stay(tmp_path: Path) -> None:
    sad = read(GOOD, tmp_path).conditions[1]
    assert sad.places == {"question"}
    said = probe_file.filled(sad.turns[0], {"question": "Why {x}?"})
    assert said == 'Oh. Why {x}? {"as": "it is"}'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title: Mine\n", "", [": field title: ", "Add the key"]),
        ("better: lower", "better: best", ["field better", "'best'"]),
        ("name: sad", "name: plain", ["condition 'plain'", "names that differ"]),
        ("name: sad", "name: sad+odd", ["'sad+odd'", "odd", "interaction"]),
        ("measures: [correct]\nitems", "measures: [wit]\nitems", ["'wit'", "refusal"]),
        ("id: two", "id: one", ["item 2 ('one')", "ids that differ"]),
        ("question: 'Two?'", "query: 'Two?'", ["item 2 ('two')", "['question']"]),
        ("question: 'Two?'", "question: 2", ["item 2 ('two'), field question", "quotes"]),
        (", accepted: [Two]", "", ["item 2 ('two')", "'accepted'"]),
        ("conditions: [sad]", "conditions: [glad]", ["item 2 ('two')", "['glad']"]),
        ("accepted: [One]", "accepted: [One], id: 1", [":12: expected each key once", "'id'"]),
        ("items:", "items: {", ["not valid YAML"]),
        (
            "    measures: [correct]\n  - name: sad",
            "    given_replies: ['Yes.']\n    measures: [correct]\n  - name: sad",
            ["condition 'plain'", "1 replies are given to 1 turns"],
        ),
    ],
)
def test_bad_file_is_refused_with_the_place(
    old: str, new: str, expected: list[str], tmp_path: Path
) -> None:
    assert old in GOOD
    said = message(GOOD.replace(old, new, 1), tmp_path)
    for part in expected:
        assert part in said


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_jsonl_holds_items_of_a_shipped_probe(tmp_path: Path) -> None:
    rows = [{"probe": "harmless", "id": f"{n}", "request": f"How {n}?"} for n in range(3)]
    probe = read(lines(*rows), tmp_path, "xstest.jsonl")
    assert probe.conditions == load_shipped("harmless").conditions
    assert probe.title == "Refusals of harmless requests: xstest"
    assert [item.fields["request"] for item in probe.items] == ["How 0?", "How 1?", "How 2?"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"id": "1", "request": "How?"}], "line 1: expected an object whose key 'probe'"),
        ([{"probe": "harmless", "id": "1", "text": "How?"}] * 2, "line 1 ('1')"),
        (
            [{"probe": "harmless", "id": "1", "request": "?"}, {"probe": "farewell", "id": "2"}],
            "found farewell, harmless",
        ),
        ([7], "line 1: expected an object"),
    ],
)
def test_bad_line_is_refused_with_its_number(
    rows: list[object], expected: str, tmp_path: Path
) -> None:
    assert expected in message(lines(*rows), tmp_path, "own.jsonl")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: expected a probe file"):
        load_file(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match=r"suffix '\.csv'; expected \.yaml or \.jsonl"):
        load_file(str(tmp_path / "mine.csv"))


def test_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    for name in ("harmless", "prefill"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(GOOD)
        with pytest.raises(ConfigError, match=f"would be called '{name}'"):
            load([name], [str(path)])


def test_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    before = probe_file.fingerprints(["harmless", "prefill"], [str(path)])
    assert set(before) == {"harmless", "mine"}
    path.write_text(GOOD.replace("One?", "Won?"))
    after = probe_file.fingerprints(["harmless", "prefill"], [str(path)])
    assert after["harmless"] == before["harmless"]
    assert after["mine"] != before["mine"]
