"""The log of a RayJob's submitter, each line once."""

import pytest
from kube_server import RUN, Document, KubeServer, run_on, succeed
from rich.console import Console

from launch import submit


def test_the_log_is_shown_once_and_in_order(
    kube: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    def print_and_finish(server: KubeServer, job: Document) -> None:
        run_on(server, job)
        # Several lines in a second, some of them equal, one with a bar of progress.
        text = f"line {len(shown)}\r50 %" if len(shown) % 3 else "again"
        server.print_line(job, text, second=len(shown) // 4)
        shown.append(text)
        if len(shown) == 20:
            succeed(server, job)

    kube.step = print_and_finish
    assert submit.run(RUN, Console(width=400, soft_wrap=True)) == 0
    log = "".join(f"{text}\n" for text in shown)
    # The console drops carriage returns.
    assert log.replace("\r", "") in capsys.readouterr().out


def test_a_new_submitters_log_is_shown_from_its_beginning(
    kube: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []

    def begin_anew(server: KubeServer, job: Document) -> None:
        run_on(server, job)
        steps.append(1)
        if len(steps) == 1:
            server.print_line(job, "first cluster", second=30)
        if len(steps) == 5:
            server.print_line(job, "second cluster", second=0, pod="2")
        if len(steps) == 8:
            succeed(server, job)

    kube.step = begin_anew
    assert submit.run(RUN, Console(width=400, soft_wrap=True)) == 0
    assert "first cluster\nsecond cluster\n" in capsys.readouterr().out


def test_a_line_that_is_read_before_its_end_is_shown_whole(
    kube: KubeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    num_asked = 0

    def print_bit_by_bit(server: KubeServer, job: Document) -> None:
        nonlocal num_asked
        run_on(server, job)
        num_asked += 1
        if num_asked == 1:
            server.print_line(job, "first", second=3)
            server.print_line(job, "be", second=3)
        (lines,) = server.logs.values()
        lines[-1].is_whole = num_asked > 7
        if num_asked == 4:
            lines[-1].text = "begun and"
        if num_asked == 7:
            lines[-1].text = "begun and ended"
        if num_asked == 10:
            server.print_line(job, "last", second=3)
            # As the end of a process that prints no line feed stays.
            lines[-1].is_whole = False
            succeed(server, job)

    kube.step = print_bit_by_bit
    assert submit.run(RUN, Console(width=400, soft_wrap=True)) == 0
    assert "first\nbegun and ended\nlast" in capsys.readouterr().out
