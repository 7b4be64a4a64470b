"""What the report page shows of how the run was made: provenance, settings, cost.

As in `view`, no field has a default: what a run does not have is None or empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


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
    method: str
    """How the policy was made, in words."""
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
class CostView:
    """What the run took. Held is more than used: an idle core or GPU counts."""

    wall_seconds: float
    """Of all stages together, each as it ran."""
    core_hours: float | None
    """Wall time times the machine's cores; None where GPUs did the work or cores are unknown."""
    gpu_hours: float | None
    """GPUs that a stage may hold times its wall time, summed; None without GPUs."""
    tokens: Mapping[str, int]
    """Tokens by what was done with them; what was not recorded is absent."""
    note: str
    """How these were counted, in one or two sentences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A setting of the run that is not the default."""

    key: str
    """Its place in the config, with dots."""
    default: str
    """The default's value as JSON, or that there is none."""
    value: str
    """The run's value as JSON."""
