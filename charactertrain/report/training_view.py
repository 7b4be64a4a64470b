"""What the report page shows of how the run was made: checks and training, as plain values.

As in `view`, no field has a default: what a run does not have is None or an empty tuple.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from charactertrain.report.data_view import Estimate
from charactertrain.report.effects_view import Measure
from charactertrain.report.preference_view import (
    Accuracy,
    Calibration,
    CurvePoint,
    GateView,
    HeldOutLoss,
    Member,
    Shortcut,
    StrengthBand,
)

Phase = Literal["warm_start", "optimise"]
"""Part of policy training that a step belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceModelView:
    """Training and held-out quality of the preference model."""

    labels: Literal["ranked", "shuffled"]
    """What it was trained on; shuffled is a placebo."""
    objective: str
    """Name of what was minimised."""
    gates: tuple[GateView, ...]
    """What it must reach; empty when not recorded."""
    accuracy_overall: Accuracy | None
    """Accuracy on all held-out pairs."""
    accuracy_by_trait: Mapping[str | None, Accuracy | None]
    """Accuracy on the held-out pairs of each trait, by trait_id; None for general prompts."""
    accuracy_by_strength: tuple[StrengthBand, ...]
    """Accuracy by label strength, weakest first."""
    accuracy_same_variant: Accuracy | None
    """Accuracy on pairs whose responses were written alike, so that provenance tells nothing."""
    shortcuts: tuple[Shortcut, ...]
    """Effects of edits; empty when not measured."""
    length_correlation: Estimate | None
    """Correlation of reward and length within prompts, -1 to 1."""
    length_slope: float | None
    """Reward per token of length, within prompts."""
    before_temperature: Calibration | None
    """Calibration of the raw logits."""
    after_temperature: Calibration | None
    """Calibration of the logits divided by the temperature."""
    temperature: float | None
    """Fitted temperature; 1 changes nothing."""
    baseline_nll: Mapping[str, float]
    """Negative log-likelihood in nats per pair of what knows nothing of the texts, by name."""
    num_pairs: int
    """Held-out pairs that are measured."""
    num_selection_pairs: int
    """Other held-out pairs, which choose weights and temperature."""
    num_general_left: int
    """General prompts left out of training."""
    curve: tuple[CurvePoint, ...]
    """Training curve of the model."""
    held_out_losses: tuple[HeldOutLoss, ...]
    """Its held-out losses."""
    best_step: int | None
    """Step whose weights were kept."""
    members: tuple[Member, ...]
    """All models that were trained, the model first."""
    shared_scenarios: tuple[str, ...]
    """Scenarios of both the model and the gold model; empty is as it should be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyStep:
    """Metrics of one step of policy training; None where a phase has no such metric."""

    step: int
    """Optimizer step within its phase."""
    phase: Phase
    """Supervised warm start or optimisation against the preference model."""
    reward: float | None
    """Mean reward of the sampled responses."""
    kl: float | None
    """KL to the reference in nats per token."""
    length_tokens: float | None
    """Mean response length in tokens."""
    entropy: float | None
    """Mean entropy of the next-token distribution in nats."""
    clip_fraction: float | None
    """Share of tokens whose ratio was clipped, 0 to 1."""
    zero_variance_fraction: float | None
    """Share of groups whose rewards are all equal, so that they teach nothing, 0 to 1."""
    loss: float | None
    """Loss of the step."""
    seconds: float | None
    """Wall time of the step."""
    sample_seconds: float | None
    """Of it, waiting for rollouts."""
    train_seconds: float | None
    """Of it, the gradient and the optimizer's step."""
    sync_seconds: float | None
    """Of it, sending the weights to the engines."""
    probe_seconds: float | None
    """Of it, checking that the engines hold them."""
    max_staleness: int | None
    """Steps by which the oldest weights that wrote a token of this step were behind."""
    refills: int | None
    """Groups that took the place of such as teach nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateCheck:
    """Whether a trait shows at all when the model is asked for it."""

    trait_id: str
    """Trait that was shown to the model."""
    measure: Measure
    """Measure that was taken."""
    shown: float
    """Mean with the trait in the prompt."""
    not_shown: float
    """Mean without the trait in the prompt."""
    num_responses: int
    """Responses with the trait shown; as many without."""
    ok: bool | None
    """Whether the caller finds that the trait shows; None when not judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankerCheck:
    """A ranker measured on pairs whose better response is known."""

    ranker: str
    """Name of the ranker."""
    accuracy: float | None
    """Share of known pairs ordered right, 0 to 1; None when it was not run."""
    ci_low: float
    """Lower end of its 95 % interval over messages."""
    ci_high: float
    """Upper end of the interval."""
    num_pairs: int
    """Known pairs."""
    is_chosen: bool
    """Whether the run ranks with it."""
    reason: str
    """Why it was or was not chosen."""
