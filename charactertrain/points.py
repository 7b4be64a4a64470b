"""Names for the points of a sweep: what a run directory is called after the settings it is for."""

import re
from collections.abc import Sequence

import xxhash

_NOT_DECISIVE = re.compile(
    r"^\W*(run\.|cluster\b|logging\.|deepspeed\b|hydra\b|[^\s=]*\.resources\b)", re.ASCII
)
"""Keys that say where and how a run runs: a point goes on under others."""
_UNFIT = re.compile(r"[^\w.=,+-]+", re.ASCII)
_MAX_LENGTH = 120
"""Characters; file systems take 255 bytes, and some of them are for what is written beside."""
_NUM_DIGITS = 8


def point_name(overrides: Sequence[str]) -> str:
    """A directory's name for a point of a sweep, whatever the order of its overrides.

    Such as `experiment=demo,policy.kl.coef=0.02,seed=1`. It depends on the point's own overrides
    and on nothing else of the sweep, so that a longer sweep finds the points of a shorter one.
    Where characters had to be replaced or the name to be cut, digits of a hash keep it unique.
    """
    decisive = sorted(text for text in overrides if not _NOT_DECISIVE.match(text))
    exact = ",".join(decisive)
    name = _UNFIT.sub("-", exact)[:_MAX_LENGTH].strip("-.")
    if name != exact or not name:
        digest = xxhash.xxh3_64_hexdigest(exact.encode())[:_NUM_DIGITS]
        name = f"{name}-{digest}" if name else digest
    return name
