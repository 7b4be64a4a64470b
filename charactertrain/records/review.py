"""What people say in the review page."""

from dataclasses import dataclass
from typing import Literal

ReviewKind = Literal[
    "verdict",
    "naming",
    "drop_response",
    "restore_response",
    "drop_prompt",
    "restore_prompt",
    "wording",
]


@dataclass(frozen=True)
class ReviewEvent:
    """What a person said in the review page. Never changed: a later one may stand against it."""

    event_id: str
    at: str
    """UTC, ISO 8601."""
    reviewer: str
    kind: ReviewKind
    trait_id: str
    prompt_id: str
    """Empty where a trait's wording is edited."""
    first_id: str
    """Of a verdict's two responses the one with the lesser id; else the response, if any."""
    second_id: str
    """Of a verdict; empty otherwise."""
    first_checksum: str
    """`reviews.text_checksum` of the response that was seen; of the prompt, where it is dropped."""
    second_checksum: str
    answer: str
    """verdict: `first`, `second`, `tie`, `neither`, `unsure` or `withdrawn`. naming: a trait's id,
    `none` or `unsure`. wording: the new statement. Empty otherwise."""
    note: str
    """In the reviewer's words; the reason of what is dropped."""
    left_id: str
    """The response that stood on the left of a blind comparison; empty where it was not blind."""
    picked_by: str
    """How the item was chosen: a name of `review.picking.WAYS`, or `browsing`."""
    variant: str
    """Of a naming: how the response was written. Empty otherwise."""
