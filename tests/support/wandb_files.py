"""What an offline run of wandb left: its records, by wandb's own protocol.

The file is a LevelDB log: blocks of 32 KiB of pieces, each with checksum, length, and whether it is
a whole record or its first, a middle or its last part. wandb ships no reader for Python.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32768, 7
_FULL, _LAST = 1, 4


def records(directory: Path) -> list[Any]:
    """All whole records of the offline run in a directory; a kill may have cut the last."""
    from wandb.proto import wandb_internal_pb2

    (file,) = directory.glob("*.wandb")
    found = []
    for data in _pieces(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        found.append(record)
    return found


def _pieces(text: bytes) -> Iterator[bytes]:
    assert text.startswith(b":W&B"), "a file of wandb's"
    place, parts = _HEADER, b""
    while place + _HEADER <= len(text):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", text[place : place + _HEADER])
        place += _HEADER
        if kind == 0 or place + length > len(text):
            return
        parts += text[place : place + length]
        place += length
        if kind in (_FULL, _LAST):
            yield parts
            parts = b""


def history(directory: Path) -> list[dict[str, Any]]:
    """The rows of the run's history."""
    rows = []
    for record in records(directory):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def run_record(directory: Path) -> Any:
    """What the run says of itself."""
    return next(r.run for r in records(directory) if r.WhichOneof("record_type") == "run")


def artifact_records(directory: Path) -> list[Any]:
    """Artifacts, those that were used among them."""
    return [r.artifact for r in records(directory) if r.WhichOneof("record_type") == "artifact"]


def offline_runs(directory: Path) -> list[Path]:
    """Offline runs that `wandb sync` finds below a run directory."""
    return sorted(path.parent for path in directory.glob("wandb/offline-run-*/*.wandb"))
