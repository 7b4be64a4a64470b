"""Gates: what a model must reach for what is done with it, or said of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """One demand on a model, and whether it is met."""

    name: str
    """Of its threshold in the config."""
    text: str
    """What is demanded, in words."""
    value: float | None
    """None: not measured."""
    ci_low: float | None
    ci_high: float | None
    threshold: float
    is_ceiling: bool
    """The value may be at most the threshold; else at least."""
    is_met: bool | None
    """None: not measured."""
