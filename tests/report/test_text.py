"""Texts and numbers as the page shows them."""

import math

import pytest

from charactertrain.exceptions import ConstitutionError
from charactertrain.report.text import MAX_SHOWN_CHARACTERS, highlight, number, p_value, printable


def test_number_keeps_a_small_value_apart_from_zero() -> None:
    assert [number(0.0), number(0.0004), number(-0.0004)] == ["0.000", "0.0004", "-0.0004"]
    assert [number(math.nan), number(None)] == ["n/a", "n/a"]


def test_p_value_below_a_thousandth_says_so() -> None:
    assert [p_value(0.0004), p_value(0.001), p_value(0.05)] == ["<0.001", "0.001", "0.050"]


def test_highlight_escapes_what_the_pattern_matches() -> None:
    assert highlight("a <i> b", "<i>") == "a <mark>&lt;i&gt;</mark> b"
    assert highlight("abc", "x*") == "abc"
    assert highlight("a<b", None) == "a&lt;b"


def test_text_beyond_the_limit_is_counted() -> None:
    marked = highlight("a" * (MAX_SHOWN_CHARACTERS + 1_234), r"a\Z")
    assert "[1,234 more characters not shown]" in marked
    assert "<mark>" not in marked


def test_printable_keeps_lines_and_other_scripts() -> None:
    assert printable("one\r\ntwo\t\u0645\u0631") == "one\ntwo\t\u0645\u0631"


def test_highlight_stops_a_pattern_that_would_take_for_ever() -> None:
    with pytest.raises(ConstitutionError, match="Simplify it"):
        highlight("a" * 200 + "0", "(a|aa)+$")


def test_highlight_marks_what_changed_and_what_was_found_together() -> None:
    marked = highlight("one <two> three", "two", [(4, 15)])
    expected = (
        'one <span class="diff">&lt;</span><span class="diff"><mark>two</mark></span>'
        '<span class="diff">&gt; three</span>'
    )
    assert marked == expected


def test_highlight_of_megabytes_is_short_and_quick() -> None:
    text = "a!" * 2_000_000
    spans = [(index, index + 1) for index in range(0, len(text), 2)]
    assert len(highlight(text, None, spans)) < 40 * MAX_SHOWN_CHARACTERS
