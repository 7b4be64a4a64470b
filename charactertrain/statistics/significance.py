"""Many differences at once, and how many prompts a difference needs to be seen."""

import math
from collections.abc import Sequence

from scipy.stats import norm
from scipy.stats import t as student

from charactertrain.statistics.bootstrap import Difference
from charactertrain.statistics.resampling import UPPER_TAIL


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given, of which any below 0.05 may be believed.

    The chance that any of those without a difference is among them is then below 0.05, however
    the tests depend on one another. The smallest of m is multiplied by m, the next by m - 1, and
    none is smaller than the one before: Holm (1979), https://www.jstor.org/stable/4615733.

    Raises:
        ValueError: A p-value is not within 0 to 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"expected p-values from 0 to 1, found {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def smallest_visible(found: Difference) -> float:
    """The difference from 0 that an interval as wide as this one just leaves out.

    Half the interval's width. Of studies with a true difference of that size half would find it;
    80 % would find one 1.4 times as large (Miller (2024), section 5,
    https://arxiv.org/abs/2411.00640).
    """
    return (found.ci_high - found.ci_low) / 2


def prompts_needed(found: Difference, *, half_width: float) -> int:
    """How many prompts bring the 95 % interval to at most this half width, 2 at least.

    As many responses to each prompt as now, and prompts of the same kind: the interval's width
    gives the spread s over prompts, and n are needed where t(n - 1) s / sqrt(n) is no more than
    the half width. Miller (2024), https://arxiv.org/abs/2411.00640. A spread from few prompts is
    itself uncertain, and so is the number. Without any spread it is 2, which says nothing.

    Raises:
        ValueError: The half width is not above 0.
    """
    if not half_width > 0:
        raise ValueError(f"expected a half width above 0, found {half_width}")
    error = smallest_visible(found) / _quantile(found.num_clusters)
    spread = error * math.sqrt(found.num_clusters)
    # By the normal distribution, which asks for a few too little.
    num_prompts = max(2, math.ceil((float(norm.ppf(UPPER_TAIL)) * spread / half_width) ** 2))
    while _quantile(num_prompts) * spread / math.sqrt(num_prompts) > half_width:
        num_prompts += 1
    return num_prompts


def _quantile(num_clusters: int) -> float:
    return float(student.ppf(UPPER_TAIL, num_clusters - 1))
