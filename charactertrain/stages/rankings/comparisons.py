"""What rankers are given and what they say: groups of candidates, and pair probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from charactertrain.records import Trait
from charactertrain.runtime.sampling import Failure

Matrix = list[list[float]]


@dataclass(frozen=True)
class Candidate:
    """A response to be compared with others."""

    response_id: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, and the traits that they are held against."""

    group_id: str
    prompt: str
    traits: tuple[Trait, ...]
    candidates: tuple[Candidate, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices of all pairs of candidates."""
        return list(combinations(range(len(self.candidates)), 2))


@dataclass(frozen=True)
class Comparisons:
    """What a ranker says of a group. Shapes: K candidates."""

    probabilities_KK: Matrix
    """[i][j]: that i fits better than j."""
    halves: tuple[Matrix, Matrix] | None
    """The same from each half of the evidence; None where it cannot be halved."""
    swap_consistency: float | None
    """Share of pairs whose winner is the same in both orders; None where order plays no part."""
    prompt_tokens: int
    """That the engine was given for it."""
    cached_tokens: int
    """Of them, found in the engine's prefix cache."""


class Ranker(Protocol):
    """Compares the responses of each group."""

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """One result per group; a group whose questions cannot be asked is a failure."""


def pair_matrix(group: Group, probabilities: Sequence[float]) -> Matrix:
    """All pairs, from those of the first candidate of each pair over the second."""
    count = len(group.candidates)
    matrix = [[0.5] * count for _ in range(count)]
    for (i, j), probability in zip(group.pairs, probabilities, strict=True):
        matrix[i][j], matrix[j][i] = probability, 1 - probability
    return matrix
