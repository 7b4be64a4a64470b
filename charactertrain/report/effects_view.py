"""What the report page shows of the evaluation's numbers: arms, effects, gates and probes.

As in `view`, no field has a default: what a run does not have is None or empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from charactertrain.evaluation import gates as evaluation_gates
from charactertrain.probes.measures import Better
from charactertrain.report.data_view import Estimate

BASE = "base"
POLICY = "policy"
"""Names of the two arms that every evaluation has."""

ArmKind = Literal[
    "base",
    "prompted",
    "policy",
    "seed",
    "dpo",
    "best_of_n",
    "neutral",
    "placebo",
    "ablation",
    "run",
]
"""What an arm is: prompted is the base with the trait in its prompt, seed this run with another
seed, ablation this run without some of its traits, run any other run."""

Measure = Literal[
    "contrast",
    "detector_rate",
    "win_rate",
    "win_rate_length_controlled",
    "reward",
    "gold_reward",
]
"""Per-trait measures: nats per token, shares from 0 to 1, preference models' scalars."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One of the models that answer the held-out prompts."""

    name: str
    """As in the tables."""
    kind: ArmKind
    """What it is."""
    source: str | None
    """Run directory that it comes from; None for this run's own."""
    num_unasked: int
    """Held-out prompts that it was not asked, since its own run trained on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What a judge left open, of a measure that a judge takes."""

    num_ties: int
    """Comparisons without a winner."""
    num_unscored: int
    """Comparisons without an answer that could be read."""
    num_inconsistent: int
    """Comparisons whose winner changed with the order."""
    swap_consistency: Estimate | None
    """Share of pairs with the same winner in both orders, 0 to 1; None where not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """One measure of the base and of another arm on the same held-out prompts."""

    base: float
    """Mean over the base's responses."""
    arm: float
    """Mean over the arm's responses."""
    difference: float
    """Arm minus base; NaN when it could not be measured."""
    ci_low: float
    """Lower end of the 95 % interval of the difference; NaN when there is none."""
    ci_high: float
    """Upper end of the 95 % interval of the difference; NaN when there is none."""
    p_value: float | None
    """Two-sided, of no difference; None when it was not taken."""
    p_holm: float | None
    """The same after Holm's correction over traits; None outside the traits."""
    num_responses: int
    """Responses measured, of each of the two arms."""
    num_prompts: int
    """Prompts that they answer: the clusters of the interval."""
    judged: Judged | None
    """None of a measure that no judge takes."""
    note: str | None
    """Why there are no numbers, or what they are of; None where there is nothing to say."""


ByArm = Mapping[str, Effect]
"""Effect by the arm's name; an arm that was not measured is absent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OverSeeds:
    """What training changed over runs that differ by seed alone."""

    arms: tuple[str, ...]
    """The policy and the arms of the other seeds."""
    traits: Mapping[str, Mapping[Measure, Effect]]
    """Effects by trait and measure, with intervals over runs and prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What training or showing one trait changed on the prompts of another, or on its own."""

    difference: float
    """With it minus without."""
    ci_low: float
    """Lower end of the 95 % interval over prompts; NaN when there is none."""
    ci_high: float
    """Upper end of the interval; NaN when there is none."""
    p_holm: float | None
    """Two-sided p after Holm's correction over the cells off the diagonal; None on it."""
    num_prompts: int
    """Prompts that were answered with it and without."""

    @property
    def is_established(self) -> bool:
        """Whether it is certain to be other than 0, by the rule that the gates go by."""
        found = evaluation_gates.established(self.ci_low, self.ci_high, self.p_holm)
        return found is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribution:
    """Which trait changed which, by one measure."""

    design: str
    """leave_one_out, one_trait_only or shown."""
    measure: Measure
    """What the cells are of."""
    rows: tuple[str, ...]
    """Traits that were trained, left out or shown."""
    columns: tuple[str, ...]
    """Traits on whose prompts it was measured."""
    cells: Mapping[tuple[str, str], Cell]
    """By row and column; one that was not measured is absent."""
    dominance: Estimate | None
    """Mean of the diagonal less that of the other cells; None where not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRow:
    """One measure of a probe under one condition."""

    condition: str
    """Name of the condition."""
    trait_id: str | None
    """Trait whose conversations it is of; None for all together."""
    measure: str
    """What was measured."""
    unit: str
    """Its unit or range."""
    better: Better | None
    """Which way is better; None where neither is."""
    effects: ByArm
    """Effect by arm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """How often a verdict on an arm's reply changes with the wording of its prompt."""

    flips: Estimate
    """Share of replies to two wordings of a prompt that differ in it."""
    floor: Estimate
    """The same of two replies to one wording."""
    above_floor: Estimate
    """The former less the latter."""
    p_value: float
    """Two-sided, of no difference between them."""
    num_prompts: int
    """Clusters of the intervals."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlipRow:
    """One verdict on the replies of every arm."""

    verdict: str
    """Name of what is either so or not."""
    trait_id: str | None
    """Trait whose prompts it is of; None for all together."""
    arms: Mapping[str, Flips]
    """By arm, the base among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeExample:
    """One conversation of a probe with what each arm said."""

    condition: str
    """Name of the condition."""
    trait_id: str
    """Trait at stake; the records' `NO_TRAIT` where none is."""
    messages: tuple[tuple[str, str], ...]
    """Role and text of each turn before the reply."""
    replies: Mapping[str, str]
    """Reply by arm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeView:
    """One probe of robustness or of a side effect."""

    name: str
    """Identifier."""
    title: str
    """Heading."""
    question: str
    """What it asks, as a question."""
    rows: tuple[ProbeRow, ...]
    """In the order to be shown."""
    flips: tuple[FlipRow, ...]
    """Verdicts that change with the condition; empty of a probe that does not ask."""
    left_out: Mapping[str, int]
    """Turns by arm that the arm or the base has no reply to, and that are in neither."""
    examples: tuple[ProbeExample, ...]
    """Conversations to judge it by."""
