"""What every section of the config is, and the ranges that many settings have."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NodeGroup = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""Value of the Ray label `charactertrain.dev/group`."""

_GATES = {
    "despite_gates",
    "gates",
    "max_reject_share",
    "min_accepted_share",
    "min_accuracy",
    "min_trait_shift",
    "sync_tolerance",
}
"""Settings that stop a stage and change no row of what it makes."""

_EXECUTION = {
    "resources",
    "deepspeed",
    # An endpoint's model decides; where and how it is asked does not.
    "base_url",
    "api_key_variable",
    "max_in_flight",
    "timeout_seconds",
    "max_retries",
    # By their contents, where a stage is defined.
    "compare",
    "file",
    "files",
    "judge_model",
    "reviews",
}
"""Settings that say where and how, and not what."""


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


def identity(section: Section) -> dict[str, Any]:
    """The part of a section that decides results: not resources, ZeRO settings, or gates."""
    return {
        name: identity(value) if isinstance(value, Section) else value
        for name, value in section
        if name not in _EXECUTION | _GATES
    }
