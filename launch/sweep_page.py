"""A sweep at a glance: a table on the console, and a page that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table

from charactertrain.artifacts import Json
from charactertrain.storage import open_directory, without_keys
from launch.sweeps import Point

_MAIN_MEASURE = "contrast"
"""The measure that every trait has: nats per token."""


def best_point(points: Sequence[Point]) -> Point | None:
    """The finished point of the highest objective; None where none has one."""
    measured = [point for point in points if point.objective is not None]
    return max(measured, key=lambda point: point.objective or 0.0, default=None)


def console_table(points: Sequence[Point]) -> Table:
    """The points in order, with what each trait's contrast changed by; the best in bold."""
    traits = _traits(points)
    best = best_point(points)
    table = Table(title="policy minus base in nats per token, 95 % interval")
    for column in ("", "point", "state", "objective", *traits):
        table.add_column(column)
    for point in points:
        changes = [_change(_main_effect(point, trait)) for trait in traits]
        table.add_row(
            str(point.number),
            point.settings,
            point.state,
            _objective(point),
            *changes,
            style="bold" if point is best else "",
        )
    return table


def write_page(points: Sequence[Point], path: Path) -> None:
    """The same as one HTML document without scripts or outside resources, with all measures."""
    environment = Environment(
        loader=PackageLoader("launch", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    states = [point.state for point in points]
    text = environment.get_template("sweep.html").render(
        points=points,
        best=best_point(points),
        counts={state: states.count(state) for state in dict.fromkeys(states)},
        traits=_traits(points),
        measures=list(dict.fromkeys(row["measure"] for p in points for row in p.effects)),
        change=lambda point, trait, measure: _change(_effect(point, trait, measure)),
        objective=_objective,
        shown=without_keys,
    )
    open_directory(str(path.parent)).write_bytes(path.name, text.encode())


def _traits(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(row["trait"] for point in points for row in point.effects))


def _main_effect(point: Point, trait: str) -> Json | None:
    return _effect(point, trait, _MAIN_MEASURE)


def _effect(point: Point, trait: str, measure: str) -> Json | None:
    rows = (row for row in point.effects if (row["trait"], row["measure"]) == (trait, measure))
    return next(rows, None)


def _change(effect: Json | None) -> str:
    if effect is None:
        return "not measured"
    return f"{effect['difference']:+.3f} [{effect['ci_low']:+.3f}, {effect['ci_high']:+.3f}]"


def _objective(point: Point) -> str:
    return "" if point.objective is None else f"{point.objective:+.4f}"
