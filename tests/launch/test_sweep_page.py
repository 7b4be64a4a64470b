"""What a sweep's page and table show: states, measures with intervals, the best."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from charactertrain.artifacts import Json
from launch.runs import Run
from launch.sweep_page import best_point, console_table, write_page
from launch.sweeps import Point

RUN = Run("sweep-a", "f" * 32, "report", "/shared/<sweep>/a", (), is_dry=False)


def effect(trait: str, measure: str, difference: float) -> Json:
    return {
        "trait": trait,
        "measure": measure,
        "base": 0.0,
        "arm": "policy",
        "value": difference,
        "difference": difference,
        "ci_low": difference - 0.1,
        "ci_high": difference + 0.1,
    }


@pytest.fixture(name="points")
def points_in_every_state() -> list[Point]:
    """Two finished points, one failed, one not begun."""
    low = Point(0, "coef=0.1", RUN, state="finished", objective=-0.2)
    low.effects = [effect("honest", "contrast", -0.2), effect("honest", "detector_rate", 0.05)]
    high = Point(1, "coef=0.2", RUN, state="finished", objective=0.3, submission_id="sweep-b-1")
    failed = Point(2, "coef=<3>", RUN, state="failed", reason="exit status 137: killed")
    return [low, high, failed, Point(3, "coef=0.4", RUN)]


def text_of(points: list[Point]) -> str:
    console = Console(file=io.StringIO(), record=True, width=200)
    console.print(console_table(points))
    return console.export_text()


def page_of(points: list[Point], path: Path) -> str:
    write_page(points, path / "deep" / "sweep.html")
    return (path / "deep" / "sweep.html").read_text()


def test_the_best_point_has_the_highest_objective(points: list[Point]) -> None:
    assert best_point(points) is points[1]
    assert best_point(points[2:]) is None


def test_measures_are_shown_with_their_intervals(points: list[Point], tmp_path: Path) -> None:
    assert "-0.200 [-0.300, -0.100]" in text_of(points)
    page = page_of(points, tmp_path)
    assert "-0.200 [-0.300, -0.100]" in page
    assert "detector_rate: policy minus base, 95 % interval" in page
    assert "+0.050 [-0.050, +0.150]" in page


def test_the_page_says_what_is_not_finished_and_what_was_not_measured(
    points: list[Point], tmp_path: Path
) -> None:
    page = page_of(points, tmp_path)
    assert "2 finished, 1 failed, 1 waiting." in page
    assert "exit status 137: killed" in page
    assert "1 finished points have no measures here" in page


def test_the_page_says_that_the_best_of_many_is_flattered(
    points: list[Point], tmp_path: Path
) -> None:
    page = page_of(points, tmp_path)
    assert "Best: point 1, <b>coef=0.2</b>, objective +0.3000" in page
    assert "this value flatters it" in page
    assert "No point has an objective yet" in page_of(points[2:], tmp_path)


def test_the_page_is_self_contained_and_escapes_what_it_shows(
    points: list[Point], tmp_path: Path
) -> None:
    page = page_of(points, tmp_path)
    assert "coef=&lt;3&gt;" in page
    assert "/shared/&lt;sweep&gt;/a" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_shows_no_keys(tmp_path: Path) -> None:
    point = Point(0, "a", replace(RUN, directory="s3://KEY:SECRET@bucket/run"))
    assert "SECRET" not in page_of([point], tmp_path)
