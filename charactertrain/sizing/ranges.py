"""Numbers that are known between two bounds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """From the least that is expected to the most."""

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Range":
        """Both bounds by a positive factor."""
        return Range(self.low * factor, self.high * factor)

    @property
    def middle(self) -> float:
        """Half way between the two."""
        return (self.low + self.high) / 2


NOTHING = Range(0.0, 0.0)


def at_shares(ideal: float, shares: tuple[float, float]) -> Range:
    """Seconds that take `ideal` at full rate, where between these shares of the rate are reached.

    Args:
        ideal: Seconds.
        shares: The least and the most, above 0.
    """
    least, most = shares
    return Range(ideal / most, ideal / least)


def later(first: Range, second: Range) -> Range:
    """When both of two that run beside each other are done."""
    return Range(max(first.low, second.low), max(first.high, second.high))
