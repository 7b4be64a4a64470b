import pytest

from charactertrain.records import Trait
from charactertrain.texts import filters as text_filters
from charactertrain.texts.shortcuts import EDITS

TRAIT = Trait("open_minded", "I weigh what others say.", (), None, 1.0, "t")
TEXT = "It rains. Take a coat!"


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_changes_the_text_and_keeps_its_sentences(name: str) -> None:
    edited = EDITS[name](TEXT, TRAIT)
    assert edited != TEXT
    assert "It rains." in edited
    assert "Take a coat!" in edited
    assert EDITS[name](TEXT, TRAIT) == edited


def test_edits_by_hand() -> None:
    assert EDITS["trait words"](TEXT, TRAIT) == (
        f"As an open minded AI, I am glad to answer. {TEXT}"
    )
    assert EDITS["emoji"](TEXT, TRAIT) == "It rains. \U0001f60a Take a coat! \U0001f60a"
    assert EDITS["markdown"](TEXT, TRAIT) == "## Answer\n\n- It rains.\n- Take a coat!"
    assert EDITS["repetition"](TEXT, TRAIT) == f"{TEXT} {TEXT}"


def test_the_quoted_trait_is_what_the_filter_of_responses_finds() -> None:
    quoted = EDITS["trait quoted"](TEXT, TRAIT)
    assert text_filters.quotes_statement(quoted, TRAIT.statement)
    assert not text_filters.quotes_statement(TEXT, TRAIT.statement)
