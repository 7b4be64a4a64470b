"""Records as Arrow tables and back: the schema follows from the dataclass."""

import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa

Row = TypeVar("Row")

_SCALARS: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
}


def _arrow_type(annotation: object) -> tuple[pa.DataType, bool]:
    """The Arrow type of an annotation and whether it may be null."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is Annotated:
        return arguments[1], False
    if origin is Literal:
        return pa.string(), False
    if origin is tuple:
        inner, _ = _arrow_type(arguments[0])
        return pa.list_(inner), False
    if origin in (types.UnionType, typing.Union):
        (inner_annotation,) = [a for a in arguments if a is not type(None)]
        return _arrow_type(inner_annotation)[0], True
    assert isinstance(annotation, type), f"no Arrow type for {annotation}"
    if is_dataclass(annotation):
        return pa.struct(list(schema(annotation))), False
    return _SCALARS[annotation], False


@cache
def _hints(row_type: type) -> dict[str, Any]:
    return typing.get_type_hints(row_type, include_extras=True)


def schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a record type."""
    hints = _hints(row_type)
    columns = []
    for field in fields(row_type):
        arrow_type, nullable = _arrow_type(hints[field.name])
        columns.append(pa.field(field.name, arrow_type, nullable=nullable))
    return pa.schema(columns)


def to_table(rows: Iterable[Any], row_type: type) -> pa.Table:
    """Records as an Arrow table."""
    found = list(rows)
    arrow_schema = schema(row_type)
    # By column: a dictionary per row costs more than a data stage's own work on it.
    columns = [
        pa.array([_arrow_value(getattr(row, column.name)) for row in found], column.type)
        for column in arrow_schema
    ]
    return pa.Table.from_arrays(columns, schema=arrow_schema)


def _arrow_value(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        return [_arrow_value(item) for item in value]
    return value


def from_table(table: pa.Table, row_type: type[Row]) -> list[Row]:
    """Records from an Arrow table that has the record type's schema."""
    hints: dict[str, Any] = _hints(row_type)  # type: ignore[arg-type]  # a class is hashable
    return [row_type(**_python_values(values, hints)) for values in table.to_pylist()]


def _python_values(values: dict[str, object], hints: dict[str, Any]) -> dict[str, Any]:
    return {name: _python_value(value, hints[name]) for name, value in values.items()}


def _python_value(value: object, annotation: object) -> object:
    if isinstance(value, list):
        inner = typing.get_args(annotation)[0]
        return tuple(_python_value(item, inner) for item in value)
    if isinstance(value, dict):
        assert isinstance(annotation, type), f"a struct column is a record, not {annotation}"
        return annotation(**_python_values(value, _hints(annotation)))
    return value
