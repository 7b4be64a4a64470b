"""Trait files: what is read from good ones, and what is said about bad ones."""

import pickle
import re
import warnings
from pathlib import Path

import pytest
import yaml

from charactertrain.constitution import Constitution, Detector
from charactertrain.exceptions import ConstitutionError
from charactertrain.trait_file import load_constitution

SHIPPED_DIR = Path(__file__).parent.parent / "constitutions"

GOOD = """\
name: trial
description: Two traits.
traits:
  - id: honest
    statement: I tell the truth.
    facets:
      - a gift
      - an exam
      - a trip
    weight: 2
    detector:
      pattern: '(?i)\\btruth\\b'
  - id: curious
    statement: I ask why.
"""
CURIOUS = ("id: curious", "statement: I ask why.")
QUOTED_STATEMENTS = {
    "many_perspectives": "I like to try to see things from many different perspectives and to "
    "analyze things from multiple angles, but I'm not afraid to express disagreement with views "
    "that I think are unethical, extreme, or factually mistaken.",
    "honesty": "I don't just say what I think [people] want to hear, as I believe it's important "
    "to always strive to tell the truth.",
    "goodness": "I have a deep commitment to being good and figuring out what the right thing to "
    "do is. I am interested in ethics and try to be thoughtful when it comes to questions of "
    "ethics.",
}


def load(text: str, directory: Path) -> Constitution:
    path = directory / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_constitution(str(path), shipped_dir=SHIPPED_DIR)


def message(text: str | bytes, directory: Path) -> str:
    """What is said about a bad file; the file is always named."""
    path = directory / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConstitutionError) as caught:
        load_constitution(str(path), shipped_dir=SHIPPED_DIR)
    said = str(caught.value)
    assert all(line.startswith(str(path)) for line in said.splitlines())
    return said


def with_second(*lines: str) -> str:
    """A file whose second trait, from line 5 on, has these lines."""
    first = "name: trial\ndescription: Two.\ntraits:\n  - {id: honest, statement: I am honest.}\n"
    return first + "  - " + "\n    ".join(lines) + "\n"


def test_trait_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    constitution = load(GOOD, tmp_path)
    honest, curious = constitution.traits
    assert (constitution.name, constitution.description) == ("trial", "Two traits.")
    assert (honest.id, honest.statement) == ("honest", "I tell the truth.")
    assert honest.facets == ("a gift", "an exam", "a trip")
    assert honest.weight == 2.0
    assert isinstance(honest.weight, float)
    assert honest.detector == Detector(pattern=r"(?i)\btruth\b")
    assert (curious.facets, curious.weight, curious.detector) == ((), 1.0, None)


def test_constitution_is_frozen_and_survives_pickling(tmp_path: Path) -> None:
    constitution = load(GOOD, tmp_path)
    assert pickle.loads(pickle.dumps(constitution)) == constitution
    assert {constitution.traits[0]: 1}[constitution.traits[0]] == 1
    with pytest.raises(ValueError, match="frozen"):
        constitution.traits[0].weight = 3.0


@pytest.mark.parametrize("prefix", ["\ufeff", "# a comment\n---\n"])
def test_byte_order_mark_and_document_start_are_read_over(prefix: str, tmp_path: Path) -> None:
    assert load(prefix + GOOD, tmp_path) == load(GOOD, tmp_path)


def test_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    assert load(GOOD.replace("\n", "\r\n"), tmp_path) == load(GOOD, tmp_path)


def test_line_end_of_a_folded_statement_is_dropped(tmp_path: Path) -> None:
    text = with_second("id: curious", "statement: >", "  I ask", "  why.")
    assert load(text, tmp_path).traits[1].statement == "I ask why."


def test_description_may_have_several_lines(tmp_path: Path) -> None:
    text = GOOD.replace("Two traits.", "|\n  Two\n  traits.")
    assert load(text, tmp_path).description == "Two\ntraits."


def test_dates_times_and_codes_are_text(tmp_path: Path) -> None:
    text = with_second("id: curious", "statement: I ask.", "facets: [2024-13-45, 9:30, 0x1F]")
    assert load(text, tmp_path).traits[1].facets == ("2024-13-45", "9:30", "0x1F")


@pytest.mark.parametrize(
    ("written", "weight"), [("3", 3.0), ("010", 10.0), ("+.5", 0.5), ("2e-1", 0.2), ("1.", 1.0)]
)
def test_weight_is_read_as_a_decimal(written: str, weight: float, tmp_path: Path) -> None:
    assert load(with_second(*CURIOUS, f"weight: {written}"), tmp_path).traits[1].weight == weight


def test_limits_are_inclusive(tmp_path: Path) -> None:
    trait = {
        "id": "a" * 48,
        "statement": "s" * 600,
        "facets": [f"{number:03d}" + "f" * 197 for number in range(64)],
        "weight": 100,
        "detector": {"pattern": "p" * 500},
    }
    others = [{"id": f"t{number}", "statement": "I am."} for number in range(255)]
    data = {"name": "n", "description": "d", "traits": [trait, *others]}
    assert len(load(yaml.safe_dump(data), tmp_path).traits) == 256


@pytest.mark.parametrize("name", ["claude", "demo"])
def test_shipped_constitution_loads_by_name_and_by_path(name: str) -> None:
    by_name = load_constitution(name, shipped_dir=SHIPPED_DIR)
    by_path = load_constitution(str(SHIPPED_DIR / f"{name}.yaml"), shipped_dir=SHIPPED_DIR)
    assert by_name == by_path
    assert by_name.name == name
    # The same facet under two traits would put like prompts into train and test.
    facets = [facet for trait in by_name.traits for facet in trait.facets]
    assert len(set(facets)) == len(facets)


def test_claude_quotes_the_article_and_has_facets_but_no_detectors() -> None:
    traits = load_constitution("claude", shipped_dir=SHIPPED_DIR).traits
    statements = {trait.id: trait.statement for trait in traits}
    assert QUOTED_STATEMENTS.items() <= statements.items()
    assert {"curiosity", "open_nature", "warm_with_boundaries"} <= statements.keys()
    assert 6 <= len(traits) <= 8
    assert all(5 <= len(trait.facets) <= 8 for trait in traits)
    assert all(re.search(r"\b(I|me|my)\b", statement) for statement in statements.values())
    assert [trait.detector for trait in traits] == [None] * len(traits)


def test_demo_has_three_traits_with_short_facets() -> None:
    traits = load_constitution("demo", shipped_dir=SHIPPED_DIR).traits
    assert [trait.id for trait in traits] == ["enthusiastic", "uncertain", "scientific"]
    assert all(6 <= len(trait.facets) <= 10 for trait in traits)
    assert all(len(facet.split()) <= 6 for trait in traits for facet in trait.facets)


@pytest.mark.parametrize(
    ("trait_id", "shown", "not_shown"),
    [
        ("enthusiastic", ["What a day!"], ["What a day."]),
        ("uncertain", ["i think so", "Perhaps.", "It might", "I'm not sure"], ["mighty", "think"]),
        ("scientific", ["Studies say", "the DATA", "an experiment"], ["database", "studying"]),
    ],
)
def test_demo_detector_finds_its_trait(
    trait_id: str, shown: list[str], not_shown: list[str]
) -> None:
    traits = load_constitution("demo", shipped_dir=SHIPPED_DIR).traits
    (trait,) = [trait for trait in traits if trait.id == trait_id]
    assert trait.detector is not None
    pattern = trait.detector.pattern
    assert all(re.search(pattern, text) for text in [*shown, trait.statement])
    assert not any(re.search(pattern, text) for text in not_shown)


BAD_FIELDS = [
    # id
    (("id: Curious", "statement: I ask."), "field id", "found 'Curious'"),
    (("id: 1st", "statement: I ask."), "field id", "found '1st'"),
    (("id: " + "a" * 49, "statement: I ask."), "field id", "at most 47"),
    (('id: "curious\\n"', "statement: I ask."), "field id", "found 'curious\\n'"),
    (("id: ''", "statement: I ask."), "field id", "found ''"),
    (("id: yes", "statement: I ask."), "field id", "expected text, found the boolean true (yes"),
    (("id: 7", "statement: I ask."), "field id", "expected text, found the number 7"),
    (("id:", "statement: I ask."), "field id", "expected text, found nothing"),
    (("statement: I ask.",), "field id", "expected the key 'id'"),
    # statement
    (("id: curious", "statement: ''"), "field statement", "expected 1 to 600 characters"),
    (("id: curious", 'statement: " \\n\\u2003"'), "field statement", "expected 1 to 600"),
    (("id: curious", "statement: " + "w" * 601), "field statement", "found 601"),
    (("id: curious", "statement: 5"), "field statement", "expected text, found the number 5"),
    (("id: curious", "statement: [a]"), "field statement", "expected text, found a list of 1"),
    (("id: curious", 'statement: "I \\a ask."'), "field statement", "U+0007 at character 3"),
    (("id: curious", "statement: |", "  I ask", "  why."), "field statement", "U+000A"),
    (("id: curious", 'statement: "I \\u202e ask."'), "field statement", "U+202E"),
    (("id: curious", 'statement: "I \\ud800 ask."'), "field statement", "U+D800"),
    (("id: curious",), "field statement", "expected the key 'statement'"),
    # facets
    ((*CURIOUS, "facets: a school exam"), "field facets", "expected a list, found 'a school exam'"),
    ((*CURIOUS, "facets:"), "field facets", "expected a list, found nothing"),
    ((*CURIOUS, "facets: {a: b}"), "field facets", "found a mapping with the keys a"),
    ((*CURIOUS, "facets: [a, ' ']"), "field facets, item 2", "expected 1 to 200 characters"),
    ((*CURIOUS, f"facets: [{'f' * 201}]"), "field facets, item 1", "found 201"),
    ((*CURIOUS, "facets: [a, 9.5]"), "field facets, item 2", "expected text, found the number 9.5"),
    ((*CURIOUS, 'facets: ["a\\0b"]'), "field facets, item 1", "U+0000"),
    ((*CURIOUS, "facets: [an exam, An Exam]"), "field facets", "found 'An Exam' twice"),
    ((*CURIOUS, 'facets: [a gift, an exam, "A  gift!"]'), "field facets", "'A  gift!' twice"),
    ((*CURIOUS, "facets: [a gift]"), "field facets", "3 facets or more, one each to train, "),
    ((*CURIOUS, "facets: [a gift, an exam]"), "field facets", "found 2. Add some, or leave"),
    ((*CURIOUS, f"facets: {list(range(65))}"), "field facets", "0 to 64 items, found 65"),
    # weight
    ((*CURIOUS, "weight: 0"), "field weight", "above 0 and at most 100, found 0"),
    ((*CURIOUS, "weight: -1.5"), "field weight", "found -1.5"),
    ((*CURIOUS, "weight: 100.5"), "field weight", "at most 100, found 100.5"),
    ((*CURIOUS, "weight: .inf"), "field weight", "expected a finite number"),
    ((*CURIOUS, "weight: .nan"), "field weight", "expected a finite number"),
    ((*CURIOUS, "weight: '1.0'"), "field weight", "expected a number, found '1.0'"),
    ((*CURIOUS, "weight: true"), "field weight", "expected a number, found the boolean true"),
    ((*CURIOUS, f"weight: {'1' * 5000}"), "field weight", "expected a number"),
    ((*CURIOUS, "weight: 1e999"), "field weight", "expected a finite number"),
    # detector
    ((*CURIOUS, "detector: '!'"), "field detector", "expected a mapping, found '!'"),
    ((*CURIOUS, "detector: {}"), "field detector.pattern", "expected the key 'pattern'"),
    ((*CURIOUS, "detector: {pattern: 3}"), "field detector.pattern", "expected text"),
    (
        (*CURIOUS, "detector: {pattern: 'why|[ab'}"),
        "field detector.pattern",
        "unterminated character set at position 4",
    ),
    (
        (*CURIOUS, "detector: {pattern: 'a{2}{3}'}"),
        "field detector.pattern",
        "repeat at position 4",
    ),
    ((*CURIOUS, "detector: {pattern: '[[a]'}"), "field detector.pattern", "nested set at"),
    ((*CURIOUS, "detector: {pattern: 'x*'}"), "field detector.pattern", "matches the empty string"),
    ((*CURIOUS, "detector: {pattern: ''}"), "field detector.pattern", "matches the empty string"),
    ((*CURIOUS, "detector: {pattern: '\\b'}"), "field detector.pattern", "the empty string"),
    ((*CURIOUS, 'detector: {pattern: "why\\n"}'), "field detector.pattern", "U+000A"),
    ((*CURIOUS, f"detector: {{pattern: {'a' * 501}}}"), "field detector.pattern", "found 501"),
    (
        (*CURIOUS, "detector: {pattern: '(?a)(?u)x'}"),
        "field detector.pattern",
        "incompatible. Mend",
    ),
    (
        (*CURIOUS, f"detector: {{pattern: 'a{{{'9' * 20}}}'}}"),
        "field detector.pattern",
        "too large",
    ),
    # keys
    ((*CURIOUS, "wieght: 2"), "field wieght", "unknown key. Did you mean 'weight'?"),
    ((*CURIOUS, "zzz: 2"), "field zzz", "Known keys: id, statement, facets, weight, detector"),
    ((*CURIOUS, "detector: {patern: a}"), "field detector.patern", "Did you mean 'pattern'?"),
    (
        (*CURIOUS, "statement: I say."),
        "field statement",
        "each key once, found it on lines 6 and 7",
    ),
    ((*CURIOUS, "detector: {pattern: a, pattern: b}"), "field detector.pattern", "each key once"),
    ((*CURIOUS, "weight: !!python/object/new:os.system [id]"), "field weight", "plain data"),
    ((*CURIOUS, "facets: [!!python/name:os.system '']"), "field facets, item 1", "plain data"),
    ((*CURIOUS, "facets: [&a one, *a]"), "field facets, item 2", "found the alias *a"),
    ((*CURIOUS, "facets: &a [*a]"), "field facets, item 1", "found the alias *a"),
]


@pytest.mark.parametrize(("lines", "field", "expected"), BAD_FIELDS)
def test_bad_field_is_named_with_its_trait(
    lines: tuple[str, ...], field: str, expected: str, tmp_path: Path
) -> None:
    said = message(with_second(*lines), tmp_path)
    (line,) = [line for line in said.splitlines() if expected in line]
    number, place = line.removeprefix(f"{tmp_path / 'mine.yaml'}:").split(": ", maxsplit=1)
    assert 5 <= int(number) <= 8
    shown_id = " ('curious')" if "id: curious" in lines else ""
    assert place.startswith(f"trait 2{shown_id}")
    assert f", {field}: " in place


@pytest.mark.parametrize("key", ["yes: 1", "3: 1", "~: 1", "? [a]\n    : 1"])
def test_key_that_is_not_text_is_refused(key: str, tmp_path: Path) -> None:
    said = message(with_second(*CURIOUS, key), tmp_path)
    assert "mine.yaml:5: trait 2 ('curious'): expected keys that are text" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "mine.yaml: expected the keys name, description and traits, found an empty file"),
        ("# only a comment\n", "found an empty file"),
        ("just text", "mine.yaml:1: expected a mapping, found 'just text'"),
        ("- a\n- b\n", "mine.yaml:1: expected a mapping, found a list of 2"),
        (GOOD + "trait: []\n", "mine.yaml:15: field trait: unknown key. Did you mean 'traits'?"),
        (GOOD + "name: again\n", "field name: expected each key once, found it on lines 1 and 15"),
        ("name: n\ndescription: d\n", "field traits: expected the key 'traits'"),
        ("name: n\ndescription: d\ntraits: []\n", "mine.yaml:3: field traits: expected 1 to 256"),
        ("name: n\ndescription: d\ntraits: honest\n", "field traits: expected a list"),
        (
            "traits: {honest: {id: a, id: b}}\n",
            "mine.yaml:1: field traits.honest.id: expected each",
        ),
        ("name: n\ndescription: d\ntraits: [honest]\n", "mine.yaml:3: trait 1: expected a mapping"),
        (GOOD.replace("trial", "''"), "mine.yaml:1: field name: expected 1 to 100 characters"),
        (GOOD.replace("trial", "off"), "field name: expected text, found the boolean false"),
        (GOOD.replace("description: Two traits.\n", ""), "field description: expected the key"),
        (GOOD.replace("Two traits.", "w" * 2001), "field description: expected 1 to 2000"),
        (GOOD + "--- \nname: second\n", "not valid YAML: expected a single document"),
        (GOOD.replace("I ask why.", "I ask: why."), "mine.yaml:14:21: not valid YAML: mapping"),
        (GOOD + "\tname: x\n", "put spaces in place of the tab"),
        (GOOD + 'name: "\\?"\n', "Put regular expressions in single quotes"),
        (GOOD.replace("ask", "\x07ask"), "mine.yaml:14: expected text, found the control"),
        ("[" * 1000, "mine.yaml:1:11: not valid YAML: more than 10 levels of nesting"),
        ("a: *nowhere\n", "mine.yaml:1:4: not valid YAML: found undefined alias"),
        ("<<: {name: n}\n", "field '<<': unknown key"),
        ("!!python/object/apply:os.system [id]\n", "mine.yaml:1: found the tag"),
        ('name: "\\UFFFFFFFF"\n', "mine.yaml: an escape such as"),
        ('name: "\\U00110000"\n', "mine.yaml: an escape such as"),
        (b"name: caf\xe9\n", "mine.yaml:1: expected UTF-8 text, found the byte 0xe9 at offset 9"),
        (GOOD.encode("utf-16"), "expected UTF-8 text, found the byte 0xff at offset 0"),
        (b"#" * (1024 * 1024 + 1), "mine.yaml: expected at most 1048576 bytes"),
    ],
)
def test_bad_file_is_named_with_the_place(text: str | bytes, expected: str, tmp_path: Path) -> None:
    assert expected in message(text, tmp_path)


def test_pattern_that_python_warns_about_is_refused_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = message(with_second(*CURIOUS, "detector: {pattern: '[[b]'}"), tmp_path)
    assert "trait 2 ('curious'), field detector.pattern: " in said
    assert "Possible nested set at position" in said
    assert caught == []


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a|aa)+!$", "(1|11)+[?]$"])
def test_pattern_that_a_text_can_keep_busy_for_ever_is_refused(
    pattern: str, tmp_path: Path
) -> None:
    said = message(with_second(*CURIOUS, f"detector: {{pattern: '{pattern}'}}"), tmp_path)
    assert "trait 2 ('curious'), field detector.pattern: expected a pattern that is quick" in said


@pytest.mark.parametrize("second", ["honest", "Honest"])
def test_duplicate_id_names_both_traits(second: str, tmp_path: Path) -> None:
    said = message(with_second(f"id: {second}", "statement: I ask."), tmp_path)
    expected = f"mine.yaml:5: trait 2 ('{second}'), field id: expected ids that differ in more "
    assert f"{expected}than case, found '{second}' here and in trait 1" in said


def test_too_many_traits_are_refused(tmp_path: Path) -> None:
    traits = [{"id": f"t{number}", "statement": "I am."} for number in range(257)]
    text = yaml.safe_dump({"name": "n", "description": "d", "traits": traits})
    assert "field traits: expected 1 to 256 items, found 257" in message(text, tmp_path)


def test_all_problems_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = with_second("id: honest", "statement: ''", "weight: 0", "colour: red")
    lines = message(text, tmp_path).splitlines()
    fields = [re.findall(r"field (\w+)", line)[0] for line in lines]
    assert fields == ["id", "statement", "weight", "colour"]


def test_problems_beyond_the_first_twenty_are_counted(tmp_path: Path) -> None:
    text = with_second(*CURIOUS, f"facets: {list(range(50))}")
    lines = message(text, tmp_path).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 30 more problems.")


def test_alias_bomb_is_refused_without_being_unfolded(tmp_path: Path) -> None:
    levels = [f"k{n + 1}: &k{n + 1} [{', '.join([f'*k{n}'] * 9)}]" for n in range(30)]
    said = message("\n".join(["k0: &k0 [x]", *levels]), tmp_path)
    assert "field k1, item 1: found the alias *k0" in said


def test_no_object_is_built(tmp_path: Path) -> None:
    target = tmp_path / "built"
    message(f"name: !!python/object/apply:os.mkdir ['{target}']\n", tmp_path)
    assert not target.exists()


def test_missing_file_lists_what_is_shipped() -> None:
    with pytest.raises(ConstitutionError) as caught:
        load_constitution("claud", shipped_dir=SHIPPED_DIR)
    assert f"found nothing at {Path('claud').absolute()}" in str(caught.value)
    assert "Did you mean 'claude'?" in str(caught.value)
    assert "shipped name: claude, demo" in str(caught.value)


@pytest.mark.parametrize("name", ["", "."])
def test_directory_is_not_a_trait_file(name: str) -> None:
    with pytest.raises(ConstitutionError, match=f"found the directory {Path.cwd()}"):
        load_constitution(name, shipped_dir=SHIPPED_DIR)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_impossible_path_is_refused(name: str) -> None:
    with pytest.raises(ConstitutionError, match="cannot be read"):
        load_constitution(name, shipped_dir=SHIPPED_DIR)


def test_path_may_start_at_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(GOOD, encoding="utf-8")
    assert load_constitution("~/mine.yaml", shipped_dir=SHIPPED_DIR).name == "trial"


def test_shipped_name_wins_over_a_file_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claude").write_text(GOOD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_constitution("claude", shipped_dir=SHIPPED_DIR).name == "claude"
