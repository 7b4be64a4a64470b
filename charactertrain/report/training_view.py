"""What the report page shows of how the run was made: checks and training, as plain values.

As in `view`, no field has a default: what a run does not have is None or an empty tuple.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Measure = Literal["contrast", "detector_rate", "reward"]
"""Per-trait measures: nats per token, a share from 0 to 1, the preference model's scalar."""

Phase = Literal["warm_start", "optimise"]
"""Part of policy training that a step belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """The preference model's training at one step."""

    step: int
    """Optimizer step."""
    loss: float
    """Training loss in nats per pair."""
    accuracy: float | None
    """Share of training pairs ordered as labelled, 0 to 1; None when not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Share of held-out pairs that a model orders as labelled."""

    accuracy: float
    """0 to 1; 0.5 is chance."""
    ci_low: float
    """Lower end of the 95 % interval; NaN when there is none."""
    ci_high: float
    """Upper end of the 95 % interval; NaN when there is none."""
    num_pairs: int
    """Held-out pairs."""
    length_only: float | None
    """Accuracy on the same pairs by length alone; None when not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBin:
    """Held-out pairs of similar predicted probability."""

    confidence: float
    """Mean predicted probability of the pairs in the bin."""
    frequency: float
    """How often the prediction was right, 0 to 1."""
    count: int
    """Pairs in the bin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Agreement of predicted probabilities with what was observed."""

    bins: tuple[CalibrationBin, ...]
    """Bins by rising confidence; empty ones left out."""
    ece: float
    """Expected calibration error, 0 is best."""
    brier: float
    """Brier score, 0 is best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceModelView:
    """Training and held-out quality of the preference model."""

    curve: tuple[CurvePoint, ...]
    """Training curve."""
    accuracy_overall: Accuracy | None
    """Accuracy on all held-out pairs."""
    accuracy_by_trait: Mapping[str, Accuracy]
    """Accuracy on the held-out pairs of each trait, by trait_id."""
    before_temperature: Calibration | None
    """Calibration of the raw logits."""
    after_temperature: Calibration | None
    """Calibration of the logits divided by the temperature."""
    temperature: float | None
    """Fitted temperature; 1 changes nothing."""


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
