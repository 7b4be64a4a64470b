"""Files of rows as researchers bring them, for tests of what reads them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = Mapping[str, Any]


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_arrow(path: Path, rows: Sequence[Row]) -> Path:
    """As `Dataset.save_to_disk` does: Arrow streams beside two files of JSON."""
    path.mkdir()
    table = pa.Table.from_pylist(list(rows))
    half = (len(rows) + 1) // 2
    for index, part in enumerate((table.slice(0, half), table.slice(half))):
        name = path / f"data-{index:05d}-of-00002.arrow"
        with pa.OSFile(str(name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part)
    (path / "state.json").write_text('{"_data_files": []}')
    (path / "dataset_info.json").write_text("{}")
    return path
