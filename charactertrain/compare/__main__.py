"""The command line: `python -m charactertrain.compare RUN_DIR RUN_DIR ...`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from charactertrain.compare import comparison
from charactertrain.compare.runs import read_runs
from charactertrain.exceptions import CharacterTrainError
from charactertrain.report.comparison import render


def main(arguments: Sequence[str] | None = None) -> None:
    """Console entry point: writes the page and the JSON, or says which run lacks what."""
    parser = argparse.ArgumentParser(
        prog="charactertrain-compare", description="One page, and its numbers, of finished runs."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="directory or URI of a run")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("comparison.html"),
        help="where the page goes; the JSON goes beside it (default: comparison.html)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.out.suffix == ".json":
        parser.error(f"--out {chosen.out}: expected the name of the page, such as comparison.html")
    try:
        runs = read_runs(chosen.runs)
        numbers, page = comparison.as_json(runs), render(comparison.view(runs))
    except CharacterTrainError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    beside = chosen.out.with_suffix(".json")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(page, encoding="utf-8")
    beside.write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    print(f"{chosen.out} and {beside}: {len(runs)} runs")


if __name__ == "__main__":
    main()
