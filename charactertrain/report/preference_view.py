"""The parts of what the report page shows of the preference model: what was found of it.

As in `view`, no field has a default: what a run does not have is None or an empty tuple.
"""

from dataclasses import dataclass
from typing import Literal

from charactertrain.report.data_view import Estimate

ShortcutReading = Literal["rewarded", "penalised", "not established"]
"""Whether the interval of a shortcut's effect lies above 0, below 0, or includes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateView:
    """What a model must reach for what is done with it or said of it, and whether it does."""

    name: str
    """Its setting."""
    measure: str
    """What is measured, in words."""
    value: float | None
    """None when it could not be measured."""
    ci_low: float
    """Lower end of the 95 % interval; NaN when there is none."""
    ci_high: float
    """Upper end of the interval; NaN when there is none."""
    threshold: float
    """What the value is held against."""
    is_ceiling: bool
    """Whether the value may be at most the threshold; otherwise it must be at least that."""
    is_met: bool | None
    """None when it could not be measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Share of held-out pairs that a model orders as labelled."""

    accuracy: float
    """0 to 1; 0.5 is chance."""
    ci_low: float
    """Lower end of the 95 % interval over prompts; NaN when there is none."""
    ci_high: float
    """Upper end of the interval; NaN when there is none."""
    num_pairs: int
    """Held-out pairs whose label prefers one response."""
    num_prompts: int
    """Prompts that they come from."""
    length_only: float | None
    """Accuracy on the same pairs by length alone; None when not measured."""
    above_length: Estimate | None
    """Accuracy less that of length alone; None when not measured."""
    provenance_only: float | None
    """Accuracy on the same pairs by how a response was written; None when not measured."""
    above_provenance: Estimate | None
    """Accuracy less that of provenance alone; None when not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrengthBand:
    """Accuracy on held-out pairs of about one label strength."""

    low: float
    """Lower end of the label's probability, left out of the band."""
    high: float
    """Upper end, in the band."""
    accuracy: Accuracy | None
    """None when the band has no pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcut:
    """What an edit that makes a response no better adds to its reward."""

    edit: str
    """Name of the edit."""
    value: float
    """Mean change of the reward, in standard deviations of rewards within prompts."""
    ci_low: float
    """Lower end of its 95 % interval over prompts."""
    ci_high: float
    """Upper end of the interval."""
    num_prompts: int
    """Prompts of which a response was edited."""
    raised_share: float
    """Share of responses whose reward rose, 0 to 1."""

    @property
    def reading(self) -> ShortcutReading:
        """What the interval allows one to say; an end at zero includes zero."""
        if self.ci_low > 0:
            return "rewarded"
        return "penalised" if self.ci_high < 0 else "not established"


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBin:
    """Held-out pairs, each from both sides, of similar predicted probability."""

    confidence: float
    """Mean predicted probability in the bin."""
    frequency: float
    """Mean of the labels' probabilities, 0 to 1."""
    count: int
    """Predictions in the bin: two of each pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Agreement of predicted probabilities with the labels."""

    bins: tuple[CalibrationBin, ...]
    """Bins by rising confidence; empty ones left out."""
    ece: float
    """Expected calibration error, 0 is best."""
    ece_ci_low: float
    """Lower end of its 95 % interval over prompts; NaN when there is none."""
    ece_ci_high: float
    """Upper end of the interval; NaN when there is none."""
    brier: float
    """Brier score, 0 is best."""
    nll: float
    """Negative log-likelihood of the labels, nats per pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """The model's training at one step."""

    step: int
    """Optimizer step."""
    loss: float
    """Training loss."""
    accuracy: float | None
    """Share of training pairs ordered as labelled, 0 to 1; None when not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutLoss:
    """The loss on pairs that are not trained on, after a step."""

    step: int
    """Optimizer step."""
    loss: float
    """Mean loss of the pairs that choose the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One of the models that the stage trains: the model, others like it, the gold model."""

    name: str
    """Its directory."""
    num_prompts: int
    """Prompts trained on."""
    num_steps: int
    """Optimizer steps taken."""
    best_step: int
    """Step whose weights were kept."""
    accuracy: Accuracy | None
    """On the same held-out pairs as the model; None when not measured."""
    same_order: Estimate | None
    """Share of held-out pairs in the model's order; None for the model itself."""
