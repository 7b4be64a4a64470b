"""Everything that the report page shows, as plain values; nothing here computes.

No field has a default: what a run does not have is passed as None or an empty tuple, and the page
says that it is missing. Texts may hold anything a model can write; the page escapes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from charactertrain.report.data_view import DataView
from charactertrain.report.training_view import (
    Measure,
    PolicyStep,
    PreferenceModelView,
    RankerCheck,
    TemplateCheck,
)
from charactertrain.report.watch_view import WatchView


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """One measure for base and policy on the same held-out prompts."""

    base: float
    """Mean over the base's responses."""
    policy: float
    """Mean over the policy's responses."""
    difference: float
    """Policy minus base; NaN when it could not be measured."""
    ci_low: float
    """Lower end of the 95 % interval of the difference; NaN when there is none."""
    ci_high: float
    """Upper end of the 95 % interval of the difference; NaN when there is none."""
    num_responses: int
    """Responses measured, of each of the two models."""
    num_prompts: int
    """Prompts that they answer: the clusters of the interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One held-out prompt with a response of the base and one of the policy."""

    prompt: str
    """Text as the model was given it, without any trait."""
    base_text: str
    """Response of the base."""
    policy_text: str
    """Response of the policy."""
    base_measures: Mapping[Measure, float]
    """Measures of the base's response; detector_rate is 0 or 1."""
    policy_measures: Mapping[Measure, float]
    """Measures of the policy's response; detector_rate is 0 or 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraitView:
    """One trait: what it says, what changed, and texts to judge it by."""

    trait_id: str
    """Identifier in the constitution."""
    statement: str
    """First-person statement of the trait."""
    detector: str | None
    """Python regular expression whose matches are highlighted; None without a detector."""
    effects: Mapping[Measure, Effect]
    """Effect by measure; a measure that was not taken is absent."""
    samples: tuple[Sample, ...]
    """Responses side by side, in the order to be shown; the first three are open."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OverallEffects:
    """Effects on all held-out responses together."""

    length: Effect | None
    """Response length in tokens."""
    distinct_2: Effect | None
    """Share of bigrams that are distinct, 0 to 1."""
    kl: Effect | None
    """KL of the policy from the base in nats per token; base is 0 by definition."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """What was trained, on what, and how to do it again."""

    name: str
    """Name of the run."""
    model_name: str
    """Name of the model that was trained."""
    model_path: str | None
    """Directory or hub id that it was loaded from."""
    constitution_name: str
    """Name of the constitution."""
    constitution_description: str | None
    """What the constitution says of itself."""
    created: str
    """When the report was made, ISO 8601."""
    code_version: str | None
    """Version or commit of the code."""
    hardware: str | None
    """One line: processors, memory, accelerators."""
    command: str | None
    """Command that reproduces the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageView:
    """One stage of the run."""

    name: str
    """Name of the stage."""
    num_rows: int | None
    """Rows of its artifact; None for an artifact that is not rows."""
    size_note: str | None
    """Short note on size, for an artifact that is not rows."""
    num_rejects: int | None
    """Rows rejected; None for a stage that rejects no rows."""
    wall_seconds: float | None
    """Seconds that the stage took when it ran; None when not recorded."""
    state: Literal["ran", "skipped"]
    """Skipped means that an artifact with the same fingerprint was there already."""
    fingerprint: str
    """Fingerprint of the artifact, shortened."""


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
    verdicts: tuple[Verdict, ...]
    """Lines judged by the caller."""
    traits: tuple[TraitView, ...]
    """Traits in the constitution's order."""
    overall: OverallEffects
    """Effects on all held-out responses together."""
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
