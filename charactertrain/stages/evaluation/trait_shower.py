"""Replies of the base with each trait shown in turn, whichever trait a prompt is about."""

from collections.abc import Sequence
from dataclasses import dataclass

from charactertrain.evaluation.shown_traits import shown_arm
from charactertrain.records import Prompt, Reject, Reply, Trait
from charactertrain.runtime.sampling import Sampler, SamplingSettings
from charactertrain.stages.evaluation.replies import ReplyWriter
from charactertrain.templates import REFERENCE_VARIANT, Shown, response_conversation


@dataclass(frozen=True)
class WithTrait:
    """The prompt with one trait, as responses are asked for at their plainest."""

    trait: Trait
    placement: str

    def __call__(self, prompt: Prompt) -> Shown:
        """The conversation."""
        return response_conversation(
            prompt.text, [self.trait], variant=REFERENCE_VARIANT, placement=self.placement
        )


class TraitShower:
    """Samples one reply to each prompt with every trait."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        traits: Sequence[Trait],
        placement: str,
        settings: SamplingSettings,
        seed: int,
    ) -> None:
        """`sampler` holds the base's weights."""
        self._writers = [
            ReplyWriter(
                sampler,
                arm=shown_arm(trait.trait_id),
                conversing=WithTrait(trait, placement),
                count=1,
                settings=settings,
                seed=seed,
            )
            for trait in traits
        ]

    def process(self, rows: list[Prompt]) -> tuple[list[Reply], list[Reject]]:
        """Replies, and rejects for prompts that do not fit the context with a trait."""
        replies: list[Reply] = []
        rejects: list[Reject] = []
        for writer in self._writers:
            written, refused = writer.process(rows)
            replies += written
            rejects += refused
        return replies, rejects
