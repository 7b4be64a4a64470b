"""What the report page shows of a run's data: prompts, rejects, rankings and labels.

As in `view`, no field has a default: what a run does not have is None or an empty tuple.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over prompts with its 95 % interval."""

    value: float
    """The estimate."""
    ci_low: float
    """Lower end of the interval."""
    ci_high: float
    """Upper end of the interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityRow:
    """How far the order of responses can be trusted; None where it was not measured."""

    subject: str
    """A trait, or all of them."""
    num_prompts: int
    """Prompts ranked."""
    swap_consistency: Estimate | None
    """Share of pairs whose winner is the same in both orders, 0 to 1."""
    cyclic_triads: Estimate | None
    """Share of triads whose preferences go in a circle, 0 to 1; 0.25 by chance."""
    split_half: Estimate | None
    """Kendall's tau between the orders from either half of the evidence, -1 to 1."""
    length_correlation: Estimate | None
    """Correlation of utility and length within prompts, -1 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How often another ranker prefers the same response of a pair."""

    subject: str
    """A trait, or all of them."""
    ranker: str
    """The other ranker."""
    same_winner: Estimate
    """Share of the pairs that both decide, 0 to 1."""
    num_prompts: int
    """Prompts on which both were asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankingView:
    """The rankings' reliability and cost."""

    ranker: str
    """The ranker whose labels were used."""
    judge: str
    """The model that judged."""
    reliability: tuple[ReliabilityRow, ...]
    """Of all prompts, and of each trait's."""
    agreement: tuple[Agreement, ...]
    """With other rankers."""
    num_comparisons: int
    """Pairs of responses."""
    tokens_per_comparison: float
    """Prompt tokens that the engine was given for a pair."""
    computed_tokens_per_comparison: float
    """Of them, those that were not found in its prefix cache."""
    cache_hit_share: float
    """Share of the prompt tokens that were, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VarietyRow:
    """How varied a trait's prompts are; None where no prompt is long enough."""

    trait_id: str | None
    """Trait at stake; None for general prompts."""
    num_prompts: int
    """Prompts that were measured."""
    distinct_1: float | None
    """Share of words that are distinct, 0 to 1."""
    distinct_2: float | None
    """Share of word bigrams that are distinct, 0 to 1."""
    distinct_3: float | None
    """Share of word trigrams that are distinct, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FacetRow:
    """What was wanted and found of one facet."""

    trait_id: str | None
    """Trait at stake; None for general prompts."""
    kind: str
    """Kind of message."""
    facet: str
    """The situation."""
    source: str
    """Who named it: the constitution, the model, or this package."""
    split: str
    """train, validation or test."""
    wanted: int
    """Messages that were wanted."""
    found: int
    """Messages that passed the filters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleRow:
    """A prompt to be looked at."""

    trait_id: str | None
    """Trait at stake; None for a general prompt."""
    kind: str
    """Kind of message."""
    facet: str
    """The situation."""
    text: str
    """The message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoverageView:
    """What the prompts cover."""

    num_asked: int
    """Messages that the model was asked for, over all rounds."""
    num_rounds: int
    """The first round and its top-ups."""
    num_missing: int
    """Messages that are missing after the last."""
    num_duplicates: int
    """Near-duplicates left out, those of held-out prompts included."""
    facets: tuple[FacetRow, ...]
    """By trait, kind and facet."""
    variety: tuple[VarietyRow, ...]
    """By trait."""
    examples: tuple[ExampleRow, ...]
    """A few of each trait and kind, chosen by a hash of the prompt's id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCount:
    """Number of prompts of one trait, family, kind and split."""

    trait_id: str | None
    """Trait at stake; None for a general prompt."""
    family: str
    """Scenario family; a family is never in two splits."""
    kind: str
    """Kind of message."""
    split: str
    """train or held-out, as the run names them."""
    count: int
    """Prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectCount:
    """Number of rows that one stage rejected for one reason."""

    stage: str
    """Name of the stage."""
    reason: str
    """Reason as recorded with the row."""
    count: int
    """Rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HistogramBin:
    """Pairs whose label strength lies from low to high."""

    low: float
    """Lower edge of the probability that the chosen response is better."""
    high: float
    """Upper edge."""
    count: int
    """Pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataView:
    """What the run was trained and evaluated on."""

    prompts: tuple[PromptCount, ...]
    """Prompt counts; empty when not recorded."""
    rejects: tuple[RejectCount, ...] | None
    """Rejected rows; an empty tuple when there were none, None when not recorded."""
    label_strength: tuple[HistogramBin, ...]
    """Histogram of the pairs' soft labels; empty when not recorded."""
    coverage: CoverageView | None
    """What the prompts cover; None when not recorded."""
    ranking: RankingView | None
    """Reliability and cost of the rankings; None when not recorded."""
