"""Measures of texts that need no judge.

Words are what white space parts, without regard to case.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence, Set
from itertools import combinations
from statistics import fmean

import regex

from charactertrain.exceptions import ConstitutionError

MAX_DETECTOR_SECONDS = 1.0
"""For one text; a sound pattern takes microseconds."""


def detector_matches(pattern: str, text: str) -> bool:
    """Whether a trait's detector, a regular expression, matches anywhere in the text.

    Case counts unless the pattern starts with `(?i)`.

    Raises:
        ConstitutionError: The pattern takes longer than MAX_DETECTOR_SECONDS on the text.
    """
    return next(detector_spans(pattern, text), None) is not None


def detector_spans(pattern: str, text: str) -> Iterator[tuple[int, int]]:
    """Where a detector matches in the text: start and end of each match."""
    # Not `re`, which has no time limit: nested repeats may take for ever.
    try:
        for match in regex.finditer(pattern, text, timeout=MAX_DETECTOR_SECONDS):
            yield match.span()
    except TimeoutError as error:
        raise ConstitutionError(
            f"the detector {pattern!r} took longer than {MAX_DETECTOR_SECONDS} s on a text of "
            f"{len(text)} characters: {text[:80]!r}. Simplify it: a repeat inside a repeat is the "
            "usual reason."
        ) from error


def distinct_n(token_lists: Sequence[Sequence[Hashable]], n: int) -> float:
    """Different n-grams as a share of all n-grams in a set of texts, in (0, 1].

    After Li et al. (2016), https://arxiv.org/abs/1510.03055, who divide by the number of tokens.
    It falls as a set grows: compare sets of the same number of texts and similar lengths.

    Raises:
        ValueError: No text has n tokens.
    """
    ngrams = [ngram for tokens in token_lists for ngram in _ngrams(tokens, n)]
    if not ngrams:
        raise ValueError(
            f"distinct-{n} of {len(token_lists)} texts is undefined: none has {n} tokens or more"
        )
    return len(set(ngrams)) / len(ngrams)


def distinct_n_without(
    groups: Sequence[Sequence[Sequence[Hashable]]], n: int
) -> tuple[float, list[float]]:
    """`distinct_n` of all texts, and of all without each group in turn, in one pass.

    NaN where no text that is left has n tokens.
    """
    # The one group that has an n-gram, or none: it goes with that group and with no other.
    owners: dict[tuple[Hashable, ...], int | None] = {}
    totals = []
    for index, texts in enumerate(groups):
        ngrams = [ngram for tokens in texts for ngram in _ngrams(tokens, n)]
        totals.append(len(ngrams))
        for ngram in ngrams:
            if owners.setdefault(ngram, index) != index:
                owners[ngram] = None
    own = Counter(owners.values())
    total = sum(totals)
    whole = len(owners) / total if total else math.nan
    return whole, [
        (len(owners) - own[index]) / (total - here) if total > here else math.nan
        for index, here in enumerate(totals)
    ]


def opening_share_without(
    groups: Sequence[Sequence[str]], num_words: int = 5
) -> tuple[float, list[float]]:
    """Share of responses that begin with the words that most begin with.

    Of all responses, and of all without each group in turn; NaN where none is left. A response of
    fewer words opens with all that it has, so that every response counts.
    """
    openings = [[{tuple(_words(text)[:num_words])} for text in texts] for texts in groups]
    return _frequent_share_without(openings)


def boilerplate_share_without(
    groups: Sequence[Sequence[str]], num_words: int = 5
) -> tuple[float, list[float]]:
    """Share of responses that hold the run of words, anywhere, that most of them hold.

    Of all responses, and of all without each group in turn; NaN where none is left. A response
    counts once however often it repeats the phrase; one of fewer words holds none.
    """
    return _frequent_share_without(
        [[set(_ngrams(_words(text), num_words)) for text in texts] for texts in groups]
    )


def _frequent_share_without(
    groups: Sequence[Sequence[Set[tuple[Hashable, ...]]]],
) -> tuple[float, list[float]]:
    """Of responses, given as the phrases of each, the share that has the most frequent one."""
    counts = [Counter(phrase for phrases in group for phrase in phrases) for group in groups]
    together: Counter[tuple[Hashable, ...]] = Counter()
    for own in counts:
        together.update(own)
    frequent = together.most_common()
    total = sum(map(len, groups))

    def without(left_out: Counter[tuple[Hashable, ...]], size: int) -> float:
        best = 0
        for phrase, count in frequent:
            if count <= best:  # and so are all that follow
                break
            best = max(best, count - left_out[phrase])
        return best / (total - size) if total > size else math.nan

    parts = [without(own, len(group)) for own, group in zip(counts, groups, strict=True)]
    return without(Counter(), 0), parts


def repetition_fraction(token_ids: Sequence[Hashable], n: int) -> float:
    """Share of a text's n-grams that repeat an earlier one, in [0, 1); 0 below n tokens.

    seq-rep-n of Welleck et al. (2020), https://arxiv.org/abs/1908.04319.
    """
    ngrams = list(_ngrams(token_ids, n))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def within_prompt_diversity(texts: Sequence[str]) -> float:
    """How different the responses to one prompt are, 0 (the same words) to 1 (no bigram in common).

    The mean over pairs of the Jaccard distance between their sets of word bigrams. Averages over
    pairs of one input's outputs are what Tevet and Berant (2021),
    https://arxiv.org/abs/2004.02990, measure diversity by, and Kirk et al. (2024),
    https://arxiv.org/abs/2310.06452, call it per-input diversity. Shorter texts share fewer
    bigrams by chance: compare arms of similar lengths.

    Raises:
        ValueError: There are fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} text: diversity needs two responses to a prompt at least")
    return fmean(_jaccard_distance(_words(a), _words(b)) for a, b in combinations(texts, 2))


def _jaccard_distance(first: Sequence[str], second: Sequence[str]) -> float:
    one, other = set(_ngrams(first, 2)), set(_ngrams(second, 2))
    if not one | other:  # texts of a word or none
        return float(first != second)
    return 1 - len(one & other) / len(one | other)


def _words(text: str) -> list[str]:
    return text.casefold().split()


def _ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)
