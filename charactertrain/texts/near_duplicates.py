"""Near-duplicates among up to ten million texts: MinHash over word sets, then an exact check.

After Broder (1997), https://doi.org/10.1109/SEQUEN.1997.666900, with the bands of Leskovec et al.,
Mining of Massive Datasets, chapter 3, http://infolab.stanford.edu/~ullman/mmds/ch3n.pdf. A
signature is cut into bands; texts that agree in a whole band are candidates, and only candidates
are compared.

Suffixes of arrays: `N` rows, `B` bands, `M` rows that share a band key, `C` candidate pairs.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import numpy as np
import regex
import xxhash
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from charactertrain.texts.filters import UNSPACED_SCRIPTS

_NUM_PERMUTATIONS = 128
_SEED = 1
_WEIGHTS = (0.05, 0.95)
"""Of false and missed candidates. At threshold 0.7: 21 bands of 6 rows, which find 93 % of the
pairs at 0.7, 99.8 % at 0.8, and take 8 % of those at 0.4 for candidates."""
_MAX_BAND_THRESHOLD = 0.95
"""Above it the best signature would be a single band, which datasketch refuses."""

_NUM_FIRST = 8
"""Members of a group that all others are compared with."""
_PAIRS_PER_READ = 2**18
"""A read may touch every file of a dataset, so there should be few; texts of twice as many rows
are held at a time."""
_PAIRS_PER_ROW, _MIN_PAIRS = 4, 2**22
"""Of a block: the bands are sorted anew for each, so there should be few."""
_LOW_BITS = np.int64(2**32 - 1)

_ASCII_WORD = re.compile(r"[\w']+")
_WORD_OR_RUN = regex.compile(rf"(?V1)(?P<run>[{UNSPACED_SCRIPTS}]+)|[\w'--[{UNSPACED_SCRIPTS}]]+")


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of two texts' word sets, in [0, 1]; 0 if both have no words.

    Case and the shape of apostrophes do not count. Words are runs of letters, digits, `_` and `'`.
    Scripts that put no spaces between words (Chinese, Japanese, Thai and a few more; Korean has
    spaces) are told by their characters, run by run, also inside a text in another script: such a
    run stands for its pairs of neighbouring characters, or for itself where it is one character.
    """
    return _jaccard(_word_set(a), _word_set(b))


def _word_set(text: str) -> frozenset[str]:
    text = text.lower()
    if text.isascii():
        # `regex` finds the same and takes three times as long.
        return frozenset(_ASCII_WORD.findall(text))
    words: set[str] = set()
    for match in _WORD_OR_RUN.finditer(text.replace("\u2019", "'")):
        run = match["run"]
        if run is None or len(run) == 1:
            words.add(match[0])
        else:
            words.update(run[start : start + 2] for start in range(len(run) - 1))
    return frozenset(words)


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    num_shared = len(a & b)
    return num_shared / max(1, len(a) + len(b) - num_shared)


def band_keys(texts: Sequence[str], *, threshold: float) -> list[tuple[int, ...]]:
    """For each text one signed 32-bit key per band of its MinHash signature.

    Keys depend on a text's word set and the threshold alone: not on the process or the machine.
    Texts whose similarity is above the threshold most likely share the key of some band. Keys for
    different thresholds cannot be compared.

    Raises:
        ValueError: The threshold is not in (0, 1].
    """
    num_bands, num_rows = _bands(threshold)
    # 26 us for a text of 20 words, 44 for 60 (one core, datasketch 2.0.0); with SHA-1, datasketch's
    # default, it is 10 more.
    signature = MinHash(num_perm=_NUM_PERMUTATIONS, seed=_SEED, hashfunc=xxhash.xxh32_intdigest)
    width = 4 * num_rows
    starts = range(0, num_bands * width, width)
    keys_NB = np.empty((len(texts), num_bands), dtype=np.uint32)
    for row, text in enumerate(texts):
        signature.clear()
        signature.update_batch([word.encode(errors="surrogatepass") for word in _word_set(text)])
        values = signature.hashvalues.astype("<u4", copy=False).tobytes()
        keys_NB[row] = [xxhash.xxh32_intdigest(values[start : start + width]) for start in starts]
    return [tuple(keys) for keys in keys_NB.view(np.int32).tolist()]


@lru_cache
def _bands(threshold: float) -> tuple[int, int]:
    """How many bands, and how many rows of the signature in each."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected a number in (0, 1], found {threshold}")
    chosen = MinHashLSH(
        threshold=min(threshold, _MAX_BAND_THRESHOLD),
        num_perm=_NUM_PERMUTATIONS,
        weights=_WEIGHTS,
    )
    return chosen.b, chosen.r


def find_duplicates(
    keys_NB: NDArray[np.int32],
    texts: Callable[[Sequence[int]], Mapping[int, str]],
    *,
    threshold: float,
) -> dict[int, int]:
    """Row of each duplicate -> the earlier row that it is close to; all other rows are kept.

    Rows come in order of priority. A row is a duplicate if its similarity to an earlier row that
    is kept and shares a band key with it is above the threshold. A row close to a duplicate alone
    is kept.

    Not every pair in a group of one key is compared, but each member with the group's first 8 and
    with the one before it; where one of these is a duplicate, with the row that it is close to.
    So many copies of one text take linear time, and are found wherever in a group they begin. A
    near-duplicate is missed where, in every band that it shares with its kept twin, none of these
    is the twin or a duplicate of it.

    Takes O(N) memory besides the keys: pairs are gathered for so many rows at a time that there
    are at most 4 N, or 4 million.

    Args:
        keys_NB: `band_keys` of the rows, for the same threshold.
        texts: Gives the texts of rows, which are different and ascending; called for candidates
            alone, about half a million at a time.
        threshold: In (0, 1]; at 1 there are no duplicates.
    """
    duplicates: dict[int, int] = {}
    for pairs_C in _candidate_blocks(keys_NB):
        for start in range(0, len(pairs_C), _PAIRS_PER_READ):
            _compare(pairs_C[start : start + _PAIRS_PER_READ], texts, threshold, duplicates)
    return duplicates


def _compare(
    pairs_C: NDArray[np.int64],
    texts: Callable[[Sequence[int]], Mapping[int, str]],
    threshold: float,
    duplicates: dict[int, int],
) -> None:
    """Add the duplicates among candidate pairs that come in ascending order.

    All pairs of a row come before those in which it is the earlier one: whether the earlier row
    is kept is known when it is asked. If it is not, the row that it is close to takes its place.
    """
    later_C, earlier_C = (pairs_C >> 32).tolist(), (pairs_C & _LOW_BITS).tolist()
    pairs = [
        (later, duplicates.get(earlier, earlier))
        for later, earlier in zip(later_C, earlier_C, strict=True)
        if later not in duplicates
    ]
    rows = sorted({row for pair in pairs for row in pair})
    found = texts(rows) if rows else {}
    word_sets = {row: _word_set(found[row]) for row in rows}
    for later, group in groupby(pairs, key=itemgetter(0)):
        for kept in sorted({duplicates.get(earlier, earlier) for _, earlier in group}):
            if _jaccard(word_sets[later], word_sets[kept]) > threshold:
                duplicates[later] = kept
                break


def _candidate_blocks(keys_NB: NDArray[np.int32]) -> Iterator[NDArray[np.int64]]:
    """All candidate pairs once, each as `later << 32 | earlier`, in ascending order over blocks."""
    num_rows, num_bands = keys_NB.shape
    counts_N = np.zeros(num_rows, dtype=np.int64)
    for band in range(num_bands):
        members_M, ranks_M = _groups(keys_NB[:, band])
        # A member of rank 8 or less has all members before it among the first 8.
        counts_N[members_M] += np.minimum(ranks_M, _NUM_FIRST + 1)
    ends_N = np.cumsum(counts_N, out=counts_N)
    total = int(ends_N[-1]) if num_rows else 0
    if not total:
        return
    size = max(_PAIRS_PER_ROW * num_rows, _MIN_PAIRS)
    stops = np.searchsorted(ends_N, np.arange(size, total, size), side="right").tolist()
    first = 0
    for stop in [*stops, num_rows]:
        found = [_pairs(*_groups(keys_NB[:, band]), first, stop) for band in range(num_bands)]
        pairs_C = np.concatenate(found)
        del found
        pairs_C.sort()
        yield pairs_C[np.diff(pairs_C, prepend=-1) != 0]
        first = stop


def _groups(keys_N: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows whose key another row has too, group by group and ascending; rank of each in its group.

    Rows alone with their key, most of them in most datasets, are left out.
    """
    order_N = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order_N]
    same_as_last = np.zeros(len(order_N) + 1, dtype=bool)
    np.equal(sorted_N[1:], sorted_N[:-1], out=same_as_last[1:-1])
    shared_N = same_as_last[:-1] | same_as_last[1:]
    members_M = order_N[shared_N]
    is_first_M = ~same_as_last[:-1][shared_N]
    positions_M = np.arange(len(members_M))
    starts_M = np.maximum.accumulate(np.where(is_first_M, positions_M, 0))
    return members_M, positions_M - starts_M


def _pairs(
    members_M: NDArray[np.int64], ranks_M: NDArray[np.int64], first: int, stop: int
) -> NDArray[np.int64]:
    """Candidate pairs of one band whose later row is in `range(first, stop)`."""
    is_wanted_M = (members_M >= first) & (members_M < stop)
    found = []
    for offset in range(_NUM_FIRST):
        later = np.flatnonzero(is_wanted_M & (ranks_M > offset))
        if not len(later):
            break
        found.append(_encoded(members_M[later], members_M[later - ranks_M[later] + offset]))
    later = np.flatnonzero(is_wanted_M & (ranks_M > _NUM_FIRST))
    found.append(_encoded(members_M[later], members_M[later - 1]))
    return np.concatenate(found)


def _encoded(later_C: NDArray[np.int64], earlier_C: NDArray[np.int64]) -> NDArray[np.int64]:
    return (later_C << 32) | earlier_C
