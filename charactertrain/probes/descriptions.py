"""What a probe asks. Apart from its results, so that scripts are made without their statistics."""

from dataclasses import dataclass

from charactertrain.probes.measures import Better

ON_TRAIT = "on_trait"
"""Held-out prompts alone: `plain` of every probe that is made from them, and no probe itself."""
AGAIN = "on_trait_again"
"""The conditions of a probe that asks for flips, drawn a second time; no probe itself."""


@dataclass(frozen=True)
class Description:
    """What a probe asks."""

    title: str
    question: str
    better: Better | None
    """Of an arm's trait measures against the base's; None where neither is."""
    asks_retention: bool = False
    """Whether it is about how much of the effect on plain prompts is left."""
    asks_flips: bool = False
    """Whether it is about how often a verdict changes with the condition."""
