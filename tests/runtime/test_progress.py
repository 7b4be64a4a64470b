"""What a person sees of a stage's progress."""

import io

import pytest
from rich.console import Console

from charactertrain.runtime import progress
from charactertrain.runtime.progress import Progress


def untold(name: str, done: int, total: int) -> None:
    """Nobody else is told."""


def test_progress_off_a_terminal_prints_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.StringIO()
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with Progress(Console(file=output, width=100), untold).task(
        "rankings", total=10, done=4
    ) as advance:
        advance(2)
        advance(3)
    first, second = output.getvalue().splitlines()
    assert first.startswith("  rankings: 6/10 rows, ")
    assert second.startswith("  rankings: 9/10 rows, ")
    assert second.endswith(" rows/s")


def test_progress_off_a_terminal_is_quiet_at_first() -> None:
    output = io.StringIO()
    with Progress(Console(file=output), untold).task("rankings", total=10, done=0) as advance:
        for _ in range(10):
            advance(1)
    assert output.getvalue() == ""


def test_progress_on_a_terminal_is_a_bar_that_starts_at_what_was_done() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with Progress(console, untold).task("rankings", total=10, done=4) as advance:
        advance(5)
    text = output.getvalue()
    assert "rankings" in text
    assert "9/10" in text


def test_progress_ends_the_bar_also_after_an_error() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown = Progress(console, untold)
    with pytest.raises(ValueError, match="broken"), shown.task("a", total=2, done=0):
        raise ValueError("broken")
    # A bar that still ran would refuse a second one.
    with shown.task("b", total=2, done=0) as advance:
        advance(2)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_tells_of_rows_from_where_it_starts(is_terminal: bool) -> None:
    told: list[tuple[str, int, int]] = []
    console = Console(file=io.StringIO(), force_terminal=is_terminal)
    shown = Progress(console, lambda *rows: told.append(rows))
    with shown.task("rankings", total=10, done=4) as advance:
        advance(5)
        advance(1)
    assert told == [("rankings", 4, 10), ("rankings", 9, 10), ("rankings", 10, 10)]
