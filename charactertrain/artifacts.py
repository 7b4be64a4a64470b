"""What a stage leaves behind: a directory that exists if and only if its manifest does.

The manifest is written last and atomically. Readers open the files that it lists and never list
the directory, so whatever a killed attempt left behind is harmless.
"""

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import xxhash

from charactertrain.exceptions import ArtifactError
from charactertrain.records import from_table, schema
from charactertrain.storage import Directory

MANIFEST_NAME = "manifest.json"
UNFINISHED_NAME = "unfinished.json"
_NUM_READERS = 16
_MAX_SHOWN = 100
"""Characters of a value in a message."""

Json = dict[str, Any]
Row = TypeVar("Row")


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact."""

    name: str
    size_bytes: int
    checksum: str
    """xxh3-128, hexadecimal."""
    num_rows: int | None
    """Rows of a parquet file; None for any other file."""


@dataclass(frozen=True)
class Identity:
    """What decides a stage's result: equal identities give equal artifacts."""

    stage: str
    config: Json
    """The part of the stage's config that bears on the result; never where or how it runs."""
    inputs: dict[str, str]
    """Fingerprint of each input artifact, by stage name."""

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits."""
        return xxhash.xxh3_128(canonical_json(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """An artifact's own account of itself."""

    identity: Identity
    fingerprint: str
    files: tuple[FileEntry, ...]
    rows: dict[str, int]
    """Rows by table: the directory that holds its parquet files."""
    rejects: dict[str, int]
    """Rejected rows by reason."""
    summary: Json
    """What the stage wants its readers to know: measures, checks, resolved settings."""
    resolved_config: Json
    """The stage's whole config, identity and execution."""
    code_version: str
    created_at: str
    """UTC, ISO 8601."""
    wall_seconds: float

    def table(self, name: str) -> list[FileEntry]:
        """The parquet files of one table, in order."""
        return [entry for entry in self.files if entry.name.startswith(f"{name}/")]


@dataclass(frozen=True)
class Outcome:
    """What a stage hands over to be committed."""

    files: tuple[str, ...]
    """Names relative to the stage's directory."""
    rejects: dict[str, int] = field(default_factory=dict)
    summary: Json = field(default_factory=dict)


def canonical_json(value: object) -> str:
    """One spelling for equal values; raises TypeError on what has no stable identity."""
    return json.dumps(_checked(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checked(value: object) -> object:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no stable identity")
        return value
    if isinstance(value, list | tuple):
        return [_checked(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _checked(item) for key, item in value.items()}
    raise TypeError(f"a {type(value).__name__} has no stable identity: {value!r}")


def read_manifest(directory: Directory) -> Manifest | None:
    """The directory's manifest, or None where there is no artifact."""
    if not directory.exists(MANIFEST_NAME):
        return None
    try:
        values = json.loads(directory.read_bytes(MANIFEST_NAME))
        values["identity"] = Identity(**values["identity"])
        values["files"] = tuple(FileEntry(**entry) for entry in values["files"])
        manifest = Manifest(**values)
        if manifest.fingerprint != manifest.identity.fingerprint:
            raise ValueError("its fingerprint is not that of its identity")
        return manifest
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(directory, MANIFEST_NAME, error) from error


def _damaged(directory: Directory, name: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{directory.uri}/{name} cannot be read: {type(error).__name__}: {error}. It was changed "
        "or damaged after it was written; move the directory away and run again."
    )


def begin(directory: Directory, identity: Identity) -> None:
    """Mark work in progress, so that only the same work goes on in this directory."""
    record = {"fingerprint": identity.fingerprint, "identity": asdict(identity)}
    directory.write_bytes(UNFINISHED_NAME, json.dumps(record, indent=2).encode())


def unfinished(directory: Directory) -> Identity | None:
    """The identity of work in progress, or None where there is none."""
    if not directory.exists(UNFINISHED_NAME):
        return None
    try:
        return Identity(**json.loads(directory.read_bytes(UNFINISHED_NAME))["identity"])
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(directory, UNFINISHED_NAME, error) from error


def commit(
    directory: Directory,
    identity: Identity,
    outcome: Outcome,
    *,
    resolved_config: Json,
    code_version: str,
    wall_seconds: float,
) -> Manifest:
    """Make the files an artifact by writing the manifest; returns it."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        entries = tuple(pool.map(partial(_entry, directory), sorted(outcome.files)))
    rows: dict[str, int] = {}
    for entry in entries:
        if entry.num_rows is not None:
            table = entry.name.rpartition("/")[0]
            rows[table] = rows.get(table, 0) + entry.num_rows
    manifest = Manifest(
        identity=identity,
        fingerprint=identity.fingerprint,
        files=entries,
        rows=rows,
        rejects=dict(sorted(outcome.rejects.items())),
        summary=outcome.summary,
        resolved_config=resolved_config,
        code_version=code_version,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=round(wall_seconds, 3),
    )
    text = json.dumps(asdict(manifest), indent=2, allow_nan=False)
    directory.write_bytes(MANIFEST_NAME, text.encode())
    directory.delete(UNFINISHED_NAME)
    return manifest


def _entry(directory: Directory, name: str) -> FileEntry:
    num_rows = None
    if name.endswith(".parquet"):
        num_rows = directory.num_rows(name)
    return FileEntry(name, directory.size(name), directory.checksum(name), num_rows)


def require(directory: Directory, stage: str) -> Manifest:
    """The manifest of an artifact that must exist, with every file present at its size."""
    manifest = read_manifest(directory)
    if manifest is None:
        raise ArtifactError(
            f"no {stage} artifact in {directory.uri}: {MANIFEST_NAME} is missing. "
            f"Run the {stage} stage first, or point the run at the directory that has it."
        )
    if manifest.identity.stage != stage:
        raise ArtifactError(
            f"{directory.uri} holds a {manifest.identity.stage} artifact, expected {stage}."
        )
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        sizes = list(pool.map(partial(_size, directory), [entry.name for entry in manifest.files]))
    for entry, found in zip(manifest.files, sizes, strict=True):
        if found != entry.size_bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ArtifactError(
                f"{directory.uri}/{entry.name} {state}, the manifest says {entry.size_bytes} "
                f"bytes. Restore the file, or move {directory.uri} away and run again."
            )
    return manifest


def take(source: Directory, target: Directory, stage: str) -> Manifest:
    """Make the artifact in `source` one of `target` too; its manifest. Both are local."""
    manifest = require(source, stage)
    for entry in manifest.files:
        target.take(source, entry.name)
    target.write_bytes(MANIFEST_NAME, source.read_bytes(MANIFEST_NAME))
    return manifest


def _size(directory: Directory, name: str) -> int | None:
    return directory.size(name) if directory.exists(name) else None


def verify_checksums(directory: Directory, manifest: Manifest) -> None:
    """Read every file and compare its checksum; raises ArtifactError for the first that differs."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        checksums = list(pool.map(directory.checksum, [entry.name for entry in manifest.files]))
    for entry, found in zip(manifest.files, checksums, strict=True):
        if found != entry.checksum:
            raise ArtifactError(
                f"{directory.uri}/{entry.name}: checksum {found}, the manifest says "
                f"{entry.checksum}. The file changed after the stage finished; restore it."
            )


def read_rows(
    directory: Directory, manifest: Manifest, table: str, row_type: type[Row]
) -> list[Row]:
    """All rows of a table of an artifact, in file order."""
    return [row for batch in iter_rows(directory, manifest, table, row_type) for row in batch]


def iter_rows(
    directory: Directory, manifest: Manifest, table: str, row_type: type[Row]
) -> Iterator[list[Row]]:
    """The rows of a table, one file at a time."""
    expected = schema(row_type)
    for entry in manifest.table(table):
        found = directory.read_table(entry.name)
        check_schema(found, expected, f"{directory.uri}/{entry.name}")
        yield from_table(found.select(expected.names), row_type)


def check_schema(table: pa.Table, expected: pa.Schema, where: str) -> None:
    """Raise ArtifactError naming the first column that is missing or has another type."""
    for column in expected:
        if column.name not in table.column_names:
            raise ArtifactError(
                f"{where}: column {column.name!r} is missing; expected {expected.names}, "
                f"found {table.column_names}."
            )
        found = table.schema.field(column.name).type
        if found != column.type:
            raise ArtifactError(
                f"{where}: column {column.name!r} is {found}, expected {column.type}."
            )


def differences(ours: Identity, theirs: Identity) -> list[str]:
    """Lines that say how two identities of one stage differ, `ours` being asked for."""
    left = _flatten({"config": ours.config, "inputs": ours.inputs})
    right = _flatten({"config": theirs.config, "inputs": theirs.inputs})
    lines = []
    for key in sorted(left.keys() | right.keys()):
        asked, found = left.get(key, "(absent)"), right.get(key, "(absent)")
        if canonical_json(asked) != canonical_json(found):
            ours_shown, theirs_shown = _shown(repr(asked), repr(found))
            lines.append(f"{key}: this run asks for {ours_shown}, there is {theirs_shown}")
    return lines


def _shown(ours: str, theirs: str) -> tuple[str, str]:
    """The two values; long ones from a little before where they begin to differ."""
    common = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
    start = max(0, common - _MAX_SHOWN // 4)
    return _cut(ours, start), _cut(theirs, start)


def _cut(value: str, start: int) -> str:
    if len(value) <= _MAX_SHOWN:
        return value
    end = "..." if len(value) > start + _MAX_SHOWN else ""
    return f"{'...' if start else ''}{value[start : start + _MAX_SHOWN]}{end}"


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Values by their path; lists of mappings, such as a constitution's traits, by index too."""
    if isinstance(value, Mapping) and value:
        items = [(f".{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        items = [(f"[{index}]", item) for index, item in enumerate(value)]
    else:
        return {prefix.removeprefix("."): value}
    flat: dict[str, object] = {}
    for step, item in items:
        flat.update(_flatten(item, prefix + step))
    return flat
