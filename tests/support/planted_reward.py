"""A reward that is planted in place of a learnt model's; any process can open it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class EvenTokens:
    """Rewards the share of even tokens, or the lack of them."""

    sign: float
    last: int
    """Tokens of a response, which are what comes last."""

    def open(self) -> "EvenTokens":
        """This, in any process."""
        return self

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """Of the responses."""
        tails = [list(ids)[-self.last :] for ids in token_ids]
        return [self.sign * fmean(float(token % 2 == 0) for token in tail) for tail in tails]
