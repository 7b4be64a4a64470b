"""What the report page shows of the traits that arms take up when they are free to choose.

As in `view`, no field has a default: what a run does not have is None or empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from charactertrain.report.data_view import Estimate
from charactertrain.report.effects_view import ByArm


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceReading:
    """How the replies of one arm to one kind of offer could be read."""

    arm: str
    """Whose replies."""
    condition: str
    """free, random or told."""
    num_choices: int
    """Replies that were read."""
    num_unread: int
    """Offers without a reply that could be read; each counts as half of either word."""
    num_ties: int
    """Replies that took up both words alike, or neither."""
    first_taken: Estimate | None
    """How much the word offered first is taken up, 0 to 1; None where not measured."""
    swap_consistency: Estimate | None
    """Share read alike with the words in both orders, 0 to 1; None where no judge reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RevealedPreferences:
    """Which of two traits an arm takes up where it may choose, less where it chooses at random."""

    words: Mapping[str, str]
    """The word that stands for each trait, by its id."""
    changes: Mapping[str, ByArm]
    """By trait, ratings above chance of base and arm in Elo points."""
    order_agreement: Mapping[str, Estimate | None]
    """Spearman's correlation with the base's order of all words by arm, -1 to 1; None where not
    measured."""
    num_words: int
    """Words in that order, those of traits among them."""
    recognised: Estimate | None
    """Share of the base's replies that are read as the word it was told to take up, 0 to 1; None
    where not measured."""
    readings: tuple[ChoiceReading, ...]
    """By arm and kind of offer."""
