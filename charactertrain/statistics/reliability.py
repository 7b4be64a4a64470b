"""How far an order of responses can be trusted.

Shapes: K candidates, responses to one prompt; N prompts; R resamples.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from charactertrain.statistics.bootstrap import Interval, cluster_bootstrap_mean, values_by_cluster
from charactertrain.statistics.resampling import interval_quantiles, resampled

Array = NDArray[np.float64]

Group = tuple[Sequence[float], Sequence[float]]
"""Two quantities of one prompt's responses, such as their utilities and token counts."""


@dataclass(frozen=True)
class PromptReliability:
    """What is known of the order of one prompt's responses; None where it is not defined."""

    trait_id: str
    prompt_id: str
    swap_consistency: float | None
    """Of its pairs, 0 to 1: `ranking.swap_consistency`."""
    cyclic_triads: float | None
    """0 to 1: `cyclic_triad_share`. 1/4 if every winner were drawn by chance."""
    split_half: float | None
    """Kendall's tau, -1 to 1, between the utilities from two halves of the evidence."""


@dataclass(frozen=True)
class Reliability:
    """The same over prompts, with 95 % intervals; None where fewer than two prompts have it."""

    swap_consistency: Interval | None
    cyclic_triads: Interval | None
    split_half: Interval | None
    length_correlation: Interval | None
    """Of utility and token count within prompts, -1 to 1: `within_group_correlation`."""
    num_prompts: int


def cyclic_triad_share(probabilities_KK: ArrayLike) -> float | None:
    """Share of triads whose winners form a cycle, i over j over k over i: 0 to 1.

    No utilities can explain a cycle. Kendall and Babington Smith (1940),
    https://doi.org/10.1093/biomet/31.3-4.324, who set their number against the largest possible;
    a share of all triads is 1/4 in expectation if each pair's winner is drawn by chance, whatever
    the K.

    Args:
        probabilities_KK: [i][j] is the probability that i is better than j, and [j][i] the rest to
            1; nan where the two were not compared. The diagonal is not read.

    Returns:
        None if no triad has a winner (a probability other than 0.5) in all its pairs.
    """
    probabilities = np.array(probabilities_KK, float)
    if probabilities.ndim != 2 or len(set(probabilities.shape)) != 1:
        raise ValueError(f"expected a square matrix, found shape {probabilities.shape}")
    winners_KK = np.nan_to_num(np.sign(probabilities - probabilities.T))
    triads = np.array(list(combinations(range(len(winners_KK)), 3)), int).reshape(-1, 3)
    i, j, k = triads.T
    around = winners_KK[i, j] + winners_KK[j, k] + winners_KK[k, i]
    decided = winners_KK[i, j] * winners_KK[j, k] * winners_KK[k, i] != 0
    return float((np.abs(around[decided]) == 3).mean()) if decided.any() else None


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation of two quantities of the same responses, -1 to 1, corrected for ties.

    tau-b of Kendall (1945), https://doi.org/10.1093/biomet/33.3.239: pairs in the same order less
    pairs in the opposite order, over the geometric mean of the pairs not tied in a and in b.

    Args:
        a: Finite. Only equal values are tied: round utilities to `ranking.TIE_DECIMALS` first.
        b: Of the same responses.

    Returns:
        None where a or b is constant, as it is with fewer than two values.
    """
    a_K, b_K = _paired((a, b))
    signs_a_KK = np.sign(a_K[:, None] - a_K[None, :])
    signs_b_KK = np.sign(b_K[:, None] - b_K[None, :])
    untied_a, untied_b = np.abs(signs_a_KK).sum(), np.abs(signs_b_KK).sum()
    if untied_a == 0 or untied_b == 0:
        return None
    return float((signs_a_KK * signs_b_KK).sum() / math.sqrt(untied_a * untied_b))


def same_winner_share(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Share of pairs in which two rankers prefer the same response, 0 to 1.

    Args:
        first: Probability, by the first ranker, that a pair's first response is better; nan where
            the ranker did not compare the pair.
        second: By the second ranker, of the same pairs.

    Returns:
        None if there is no pair that both decide: by a probability that is not 0.5.
    """
    agreements = [
        (one > 0.5) == (other > 0.5)
        for one, other in zip(first, second, strict=True)
        if _is_decided(one) and _is_decided(other)
    ]
    return sum(agreements) / len(agreements) if agreements else None


def within_group_correlation(groups: Sequence[Group]) -> float | None:
    """Pearson's correlation of two quantities within groups, -1 to 1.

    Each group's means are taken off first, so that what differs between groups (a prompt with long
    responses) plays no part: r = S_xy / sqrt(S_xx S_yy), with sums over all groups.

    Returns:
        None where one of the two varies in no group.
    """
    correlation = float(_correlations(_summed_products(groups)[None, :])[0])
    return None if math.isnan(correlation) else correlation


def summarise(
    prompts: Sequence[PromptReliability],
    lengths: Sequence[Group],
    *,
    num_resamples: int,
    seed: int,
) -> Reliability:
    """Reliability over prompts, with 95 % percentile intervals under resampled prompts.

    Args:
        prompts: One entry for a prompt and trait; those with one prompt id are resampled together.
        lengths: (utilities, token counts) of each entry's responses.
        num_resamples: Of the bootstrap.
        seed: The same gives the same intervals, whatever the order of the entries.
    """
    prompt_ids = [prompt.prompt_id for prompt in prompts]

    def interval(values: Iterable[float | None]) -> Interval | None:
        present = [(v, p) for v, p in zip(values, prompt_ids, strict=True) if v is not None]
        by_prompt = values_by_cluster([v for v, _ in present], [p for _, p in present])
        if len(by_prompt) < 2:
            return None
        return cluster_bootstrap_mean(by_prompt, num_resamples=num_resamples, seed=seed)

    return Reliability(
        swap_consistency=interval(prompt.swap_consistency for prompt in prompts),
        cyclic_triads=interval(prompt.cyclic_triads for prompt in prompts),
        split_half=interval(prompt.split_half for prompt in prompts),
        length_correlation=correlation_interval(
            lengths, prompt_ids, num_resamples=num_resamples, seed=seed
        ),
        num_prompts=len(set(prompt_ids)),
    )


def correlation_interval(
    groups: Sequence[Group], prompt_ids: Sequence[str], *, num_resamples: int, seed: int
) -> Interval | None:
    """`within_group_correlation` of the prompts with two responses or more, and its interval.

    None where there is no correlation, or only one prompt that has one. A resample in which one
    quantity does not vary has no correlation and is left out, which happens only where few prompts
    vary at all.
    """
    gathered = values_by_cluster(groups, prompt_ids)
    by_prompt = {
        prompt_id: kept
        for prompt_id, all_groups in sorted(gathered.items())
        if (kept := [group for group in all_groups if len(group[0]) > 1])
    }
    kept_groups = [group for kept in by_prompt.values() for group in kept]
    estimate = within_group_correlation(kept_groups)
    if estimate is None or len(by_prompt) < 2:
        return None
    products_N3 = np.array([_summed_products(kept) for kept in by_prompt.values()])
    num_prompts = len(by_prompt)
    sums_3R = resampled(products_N3.T, num_resamples=num_resamples, seed=seed)
    correlations_R = _correlations(sums_3R.T)
    if np.isnan(correlations_R).all():
        return None
    ci_low, ci_high = np.nanquantile(correlations_R, interval_quantiles(num_prompts))
    return Interval(
        estimate=estimate,
        ci_low=float(ci_low),
        ci_high=float(ci_high),
        num_clusters=num_prompts,
        num_responses=sum(len(group[0]) for group in kept_groups),
    )


def _summed_products(groups: Sequence[Group]) -> Array:
    """S_xx, S_yy and S_xy about the groups' means: all that their correlation needs."""
    sums: Array = np.zeros(3)
    for group in groups:
        x, y = (_centred(values) for values in _paired(group))
        sums += (x @ x, y @ y, x @ y)
    return sums


def _centred(values: Array) -> Array:
    # Equal values are exactly zero: the rounding of their mean would pass for variation.
    if values.size == 0 or np.ptp(values) == 0:
        return np.zeros_like(values)
    centred: Array = values - values.mean()
    return centred


def _correlations(products_N3: Array) -> Array:
    """S_xy / sqrt(S_xx S_yy) of each row, nan where x or y does not vary."""
    s_xx, s_yy, s_xy = products_N3.T
    scale = np.sqrt(s_xx) * np.sqrt(s_yy)
    correlations_N: Array = np.full_like(scale, np.nan)
    np.divide(s_xy, scale, out=correlations_N, where=scale > 0)
    return correlations_N.clip(-1, 1)  # which rounding may pass


def _is_decided(probability: float) -> bool:
    return not math.isnan(probability) and probability != 0.5


def _paired(group: Group) -> tuple[Array, Array]:
    x, y = (np.array(values, float) for values in group)
    if x.shape != y.shape or x.ndim != 1 or not np.isfinite([x, y]).all():
        raise ValueError(
            "expected two finite quantities of the same responses, found "
            f"{list(group[0])} and {list(group[1])}"
        )
    return x, y
