"""The order in which the policy meets its prompts: decided by the seed alone, without end."""

from collections.abc import Sequence
from functools import lru_cache

from charactertrain.records import Prompt
from charactertrain.seeds import derive_seed


class PromptStream:
    """A prompt for every number: two streams of epochs, each a permutation, mixed evenly."""

    def __init__(
        self,
        traits: Sequence[Prompt],
        general: Sequence[Prompt],
        *,
        general_share: float,
        seed: int,
    ) -> None:
        """Of every `n` numbers in a row, `general_share * n` (rounded) are general prompts."""
        assert general or general_share == 0, "a share of general prompts needs some"
        self._traits, self._general = tuple(traits), tuple(general)
        self._general_share, self._seed = general_share, seed

    def __getitem__(self, number: int) -> Prompt:
        before, here = (int(count * self._general_share) for count in (number, number + 1))
        if here > before:
            return self._drawn("general", before)
        return self._drawn("trait", number - before)

    def _drawn(self, kind: str, number: int) -> Prompt:
        prompts = self._general if kind == "general" else self._traits
        epoch, place = divmod(number, len(prompts))
        return prompts[self._order(kind, epoch)[place]]

    @lru_cache(maxsize=4)  # noqa: B019  a stream lives as long as its process
    def _order(self, kind: str, epoch: int) -> list[int]:
        prompts = self._general if kind == "general" else self._traits
        return sorted(
            range(len(prompts)),
            key=lambda i: derive_seed(self._seed, "policy", kind, epoch, prompts[i].prompt_id),
        )
