"""Measures of a text that need no judge."""

from collections.abc import Hashable, Iterator, Sequence

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


def repetition_fraction(token_ids: Sequence[Hashable], n: int) -> float:
    """Share of a text's n-grams that repeat an earlier one, in [0, 1); 0 below n tokens.

    seq-rep-n of Welleck et al. (2020), https://arxiv.org/abs/1908.04319.
    """
    ngrams = list(_ngrams(token_ids, n))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _ngrams(tokens: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)
