"""Everything that the report page shows, as plain values; nothing here computes.

No field has a default: what a run does not have is passed as None or an empty tuple, and the page
says that it is missing. Texts may hold anything a model can write; the page escapes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from charactertrain.report.data_view import DataView
from charactertrain.report.effects_view import (
    Arm,
    Attribution,
    ByArm,
    Measure,
    OverSeeds,
    ProbeView,
)
from charactertrain.report.preference_view import GateView
from charactertrain.report.revealed_view import RevealedPreferences
from charactertrain.report.run_view import CostView, RunView, Setting, StageView
from charactertrain.report.training_view import (
    PolicyStep,
    PreferenceModelView,
    RankerCheck,
    TemplateCheck,
)
from charactertrain.report.watch_view import WatchView

Pick = Literal["random", "win", "loss"]
"""How a prompt came to be shown: by a hash, or for the greatest rise or fall of the contrast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What one arm answered."""

    text: str
    """As it was written."""
    measures: Mapping[Measure, float]
    """Its measures; detector_rate is 0 or 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One held-out prompt with a response of each arm."""

    prompt: str
    """Text as the model was given it, without any trait."""
    kind: str
    """Kind of the prompt."""
    pick: Pick
    """How it came to be shown."""
    contrast_rise: float
    """Contrast of the policy's reply minus that of the base's, in nats per token."""
    replies: Mapping[str, Reply]
    """Reply by arm, the base's first and the policy's second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraitView:
    """One trait: what it says, what changed, and texts to judge it by."""

    trait_id: str
    """Identifier in the constitution."""
    statement: str
    """First-person statement of the trait."""
    detector: str | None
    """Python regular expression whose matches are highlighted; None without a detector."""
    effects: Mapping[Measure, ByArm]
    """Effects by measure; a measure that was not taken is absent."""
    against: Mapping[Measure, ByArm]
    """Effects of the policy with another arm in the base's place, by measure and that arm."""
    samples: tuple[Sample, ...]
    """Responses side by side, in the order to be shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One line judged by the caller."""

    text: str
    """What was judged, with its numbers."""
    ok: bool | None
    """Whether it holds; None when it could not be judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportView:
    """The whole page."""

    run: RunView
    """What was trained, on what, and how to do it again."""
    stages: tuple[StageView, ...]
    """Stages in pipeline order."""
    cost: CostView
    """What the run took."""
    settings: tuple[Setting, ...] | None
    """Settings that are not the defaults; None when the defaults are not known."""
    verdicts: tuple[Verdict, ...]
    """Lines judged by the caller."""
    traits: tuple[TraitView, ...]
    """Traits in the constitution's order."""
    arms: tuple[Arm, ...]
    """Base, then every arm that is compared with it, in the order of the tables."""
    missing_arms: Mapping[str, str]
    """Controls that this evaluation has not, by name, and how to make them."""
    judge_note: str | None
    """Who judged, and whether it bears on the labels too; None where nothing was judged."""
    gates: tuple[GateView, ...]
    """What the policy must reach for the claim that it has the character."""
    overall: Mapping[str, ByArm]
    """Effects on all held-out responses together, by measure."""
    kinds: Mapping[str, Mapping[Measure, ByArm]]
    """Effects by kind of prompt."""
    over_seeds: OverSeeds | None
    """Effects over several seeds; None where there is one."""
    attribution: tuple[Attribution, ...]
    """Which trait changed which, by runs that leave traits out or by showing them."""
    probes: tuple[ProbeView, ...]
    """Probes of robustness and of side effects."""
    revealed_preferences: RevealedPreferences | None
    """What arms take up when they are free to choose; None where nothing was offered."""
    interval_note: str | None
    """How the intervals were made, in one sentence."""
    samples_note: str | None
    """How the responses side by side were picked, in one sentence."""
    preference_model: PreferenceModelView | None
    """Training and held-out quality of the preference model."""
    policy: tuple[PolicyStep, ...]
    """Steps of policy training in order, warm start first."""
    watch: WatchView | None
    """Readings during policy training; None leaves the section out: older runs have none."""
    template_checks: tuple[TemplateCheck, ...] | None
    """Template check by trait and measure; None where no character is shown."""
    ranker_checks: tuple[RankerCheck, ...] | None
    """Every ranker that was considered; None where no character is shown."""
    data: DataView
    """What the run was trained and evaluated on."""
