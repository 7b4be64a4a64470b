"""The driver of a data stage holds no rows; CHARACTERTRAIN_SCALE_ROWS=1000000 passes so many."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = int(os.environ.get("CHARACTERTRAIN_SCALE_ROWS", "2000"))
ROWS_PER_CHUNK = 4 if ROWS < 100_000 else 256
CHUNKS_OF_TEN_MILLION_ROWS = 10_000_000 // 64


@pytest.mark.ray
@pytest.mark.slow
def test_the_driver_stays_small_however_many_rows_there_are() -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "driver_memory.py"),
        f"--rows={ROWS}",
        f"--rows-per-chunk={ROWS_PER_CHUNK}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["rows"] == ROWS
    assert found["ours"] < 2.0
    ten_million = found["ours"] + found["growth_kib_per_chunk"] / 2**20 * CHUNKS_OF_TEN_MILLION_ROWS
    assert ten_million < 2.0
