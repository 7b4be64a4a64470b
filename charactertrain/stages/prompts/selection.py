"""From drafts to prompts: near-duplicates out, over the whole dataset, and what is then covered.

Drafts are read by column and file by file, so that millions take no more of the driver's memory
than a few numbers each.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from charactertrain.artifacts import Json
from charactertrain.records import Facet, Prompt, Reject, Split, schema, to_table
from charactertrain.seeds import derive_seed
from charactertrain.storage import Directory
from charactertrain.texts import measures, near_duplicates

_ROWS_PER_FILE = 4096
_PRIORITY: tuple[Split, ...] = ("test", "validation", "train")
"""Of two near-duplicates the one in the earlier split stays: no training prompt may be a test
prompt reworded."""
_NUM_EXAMPLES = 3
_NUM_MEASURED = 500
"""Messages of a trait whose n-grams are counted: distinct-n falls as a set grows."""


@dataclass(frozen=True)
class Drafts:
    """Columns of all drafts, in the order of their files."""

    directory: Directory
    names: tuple[str, ...]
    ends: tuple[int, ...]
    """Index of the row after each file's last."""
    keys_NB: NDArray[np.int32]
    split_N: NDArray[np.int8]
    """Position in `_PRIORITY`."""
    family_N: NDArray[np.int64]
    """Position in `families`."""
    families: tuple[tuple[str, str], ...]
    """(kind, family) pairs."""

    def texts(self, rows: Sequence[int]) -> dict[int, str]:
        """Texts of the given rows."""
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        found: dict[int, str] = {}
        files = np.searchsorted(np.asarray(self.ends), wanted, side="right")
        groups = [(int(file), wanted[files == file]) for file in np.unique(files)]
        tables = self.directory.read_tables([self.names[file] for file, _ in groups], ["text"])
        for (file, members), table in zip(groups, tables, strict=True):
            start = self.ends[file - 1] if file else 0
            column = table["text"].take(pa.array(members - start)).to_pylist()
            found.update(zip(members.tolist(), column, strict=True))
        return found


def read_drafts(directory: Directory, names: Sequence[str]) -> Drafts:
    """The drafts in the given files; an empty file is allowed."""
    keys, splits, families, counts = [], [], [], []
    seen: dict[tuple[str, str], int] = {}
    for table in directory.read_tables(names, ["band_keys", "split", "kind", "family"]):
        counts.append(table.num_rows)
        if not table.num_rows:
            continue
        flat = table["band_keys"].combine_chunks().flatten().to_numpy()
        keys.append(flat.reshape(table.num_rows, -1).astype(np.int32))
        codes = {split: index for index, split in enumerate(_PRIORITY)}
        splits.append(np.array([codes[s] for s in table["split"].to_pylist()], dtype=np.int8))
        pairs = zip(table["kind"].to_pylist(), table["family"].to_pylist(), strict=True)
        families.append(np.array([seen.setdefault(p, len(seen)) for p in pairs], dtype=np.int64))
    return Drafts(
        directory=directory,
        names=tuple(names),
        ends=tuple(accumulate(counts)),
        keys_NB=np.concatenate(keys) if keys else np.zeros((0, 1), np.int32),
        split_N=np.concatenate(splits) if splits else np.zeros(0, np.int8),
        family_N=np.concatenate(families) if families else np.zeros(0, np.int64),
        families=tuple(seen),
    )


@dataclass(frozen=True)
class Selection:
    """Which drafts become prompts."""

    drafts: Drafts
    twin_of: Mapping[int, int]
    """Row of each near-duplicate -> the row that it is close to."""

    def kept_by_family(self) -> Counter[tuple[str, str]]:
        """Prompts by (kind, family)."""
        kept = np.ones(len(self.drafts.family_N), dtype=bool)
        kept[list(self.twin_of)] = False
        counts = np.bincount(self.drafts.family_N[kept], minlength=len(self.drafts.families))
        return Counter(dict(zip(self.drafts.families, counts.tolist(), strict=True)))


def select(drafts: Drafts, *, max_similarity: float) -> Selection:
    """Leave out near-duplicates, of whatever trait, kind and split."""
    order = np.argsort(drafts.split_N, kind="stable")

    def texts(positions: Sequence[int]) -> dict[int, str]:
        rows = order[np.asarray(positions, dtype=np.int64)]
        found = drafts.texts(rows.tolist())
        return {int(p): found[int(r)] for p, r in zip(positions, rows, strict=True)}

    duplicates = near_duplicates.find_duplicates(
        drafts.keys_NB[order], texts, threshold=max_similarity
    )
    twin_of = {int(order[later]): int(order[earlier]) for later, earlier in duplicates.items()}
    return Selection(drafts, twin_of)


def write_prompts(selection: Selection, target: Directory) -> tuple[list[str], list[str]]:
    """Write the tables `prompts` and `general`, and the rejects of near-duplicates.

    Returns:
        Names of the prompts' files, and of the rejects'.
    """
    drafts = selection.drafts
    columns = schema(Prompt).names
    files = {name: _Files(target, name) for name in ("prompts", "general", "rejects/duplicates")}
    start = 0
    twins = _twins(selection)
    for table in drafts.directory.read_tables(drafts.names, columns):
        stop = start + table.num_rows
        duplicates = [row for row in range(start, stop) if row in selection.twin_of]
        kept = np.ones(table.num_rows, dtype=bool)
        kept[[row - start for row in duplicates]] = False
        general = np.array([kind == "general" for kind in table["kind"].to_pylist()], dtype=bool)
        files["prompts"].add(table.filter(pa.array(kept & ~general)))
        files["general"].add(table.filter(pa.array(kept & general)))
        rejects = [
            _duplicate(table.slice(row - start, 1).to_pylist()[0], twins[row]) for row in duplicates
        ]
        if rejects:
            files["rejects/duplicates"].add(to_table(rejects, Reject))
        start = stop
    written = {name: each.finish() for name, each in files.items()}
    return [*written["prompts"], *written["general"]], written["rejects/duplicates"]


def _twins(selection: Selection) -> dict[int, tuple[str, str]]:
    """(split, text) of the twin of each near-duplicate."""
    drafts = selection.drafts
    texts = drafts.texts(list(selection.twin_of.values()))
    return {
        row: (_PRIORITY[drafts.split_N[twin]], texts[twin])
        for row, twin in selection.twin_of.items()
    }


def _duplicate(row: dict[str, Any], twin: tuple[str, str]) -> Reject:
    split, text = twin
    reason = "near_duplicate" if row["split"] == split else "evaluation_overlap"
    detail = f"{row['text'][:120]!r} is close to {text[:120]!r} ({split})"
    return Reject(row["prompt_id"], row["trait_id"], "prompts", reason, detail)


class _Files:
    """Gathers small tables into files of a few thousand rows."""

    def __init__(self, target: Directory, name: str) -> None:
        self._target, self._name = target, name
        self._tables: list[pa.Table] = []
        self._num_rows = 0
        self._written: list[str] = []

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._num_rows += table.num_rows
        if self._num_rows >= _ROWS_PER_FILE:
            self._write()

    def finish(self) -> list[str]:
        if self._num_rows:
            self._write()
        return self._written

    def _write(self) -> None:
        name = f"{self._name}/part-{len(self._written):06d}.parquet"
        self._target.write_table(name, pa.concat_tables(self._tables).combine_chunks())
        self._written.append(name)
        self._tables, self._num_rows = [], 0


def coverage(
    directory: Directory,
    names: Sequence[str],
    facets: Sequence[Facet],
    wanted: Sequence[int],
) -> Json:
    """What the prompts cover, for the report: counts, variety, examples.

    Args:
        directory: Of the stage.
        names: Files of prompts, general ones included.
        facets: That messages were asked for.
        wanted: Messages wanted of each facet.
    """
    counts: Counter[tuple[str, str]] = Counter()
    axes: dict[str, Counter[str]] = defaultdict(Counter)
    texts: dict[str, list[tuple[int, str]]] = defaultdict(list)
    examples: dict[tuple[str, str], list[tuple[int, Json]]] = defaultdict(list)
    for row in _rows(directory, names):
        counts[row["kind"], row["family"]] += 1
        for axis in ("persona", "style", "length", "language", "source"):
            axes[axis][row[axis]] += 1
        rank = derive_seed("coverage", row["prompt_id"])
        _keep(texts[row["trait_id"]], (rank, row["text"]), _NUM_MEASURED)
        shown = {key: row[key] for key in ("trait_id", "kind", "facet", "split", "text")}
        _keep(examples[row["trait_id"], row["kind"]], (rank, shown), _NUM_EXAMPLES)
    return {
        "facets": [
            asdict(facet) | {"wanted": number, "found": counts[facet.kind, facet.family]}
            for facet, number in zip(facets, wanted, strict=True)
        ],
        "axes": {axis: dict(sorted(found.items())) for axis, found in axes.items()},
        "variety": {
            trait_id: _variety(_lowest(found, _NUM_MEASURED)) for trait_id, found in texts.items()
        },
        "examples": [
            shown for found in examples.values() for shown in _lowest(found, _NUM_EXAMPLES)
        ],
    }


def _rows(directory: Directory, names: Sequence[str]) -> Iterator[Json]:
    for table in directory.read_tables(names, schema(Prompt).names):
        yield from table.to_pylist()


def _keep(found: list[tuple[int, Any]], item: tuple[int, Any], count: int) -> None:
    """Add an item, and let those go that are not among the `count` of lowest rank."""
    found.append(item)
    if len(found) >= 4 * count:
        found.sort(key=lambda pair: pair[0])
        del found[count:]


def _lowest(found: list[tuple[int, Any]], count: int) -> list[Any]:
    return [item for _, item in sorted(found, key=lambda pair: pair[0])[:count]]


def _variety(texts: Sequence[str]) -> Json:
    words = [text.lower().split() for text in texts]
    measured: Json = {"num_prompts": len(words)}
    for n in (1, 2, 3):
        has_any = any(len(each) >= n for each in words)
        measured[f"distinct_{n}"] = measures.distinct_n(words, n) if has_any else None
    return measured
