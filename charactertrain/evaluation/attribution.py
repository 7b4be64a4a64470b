"""Which trait changed what: the matrix of trained or shown traits against measured ones.

Rows are traits that a run was trained with or without, or that replies were written with; columns
those whose prompts are measured.
Shapes: I rows, J columns, K prompts of a column, R resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from charactertrain.artifacts import Json
from charactertrain.records import EvaluationSample
from charactertrain.statistics.bootstrap import cluster_bootstrap_difference, values_by_cluster
from charactertrain.statistics.resampling import interval_quantiles, resampled
from charactertrain.statistics.significance import holm

Array = NDArray[np.float64]


def matrix(
    samples: Sequence[EvaluationSample],
    rows: Mapping[str, tuple[str, str]],
    field: str,
    *,
    num_resamples: int,
    seed: int,
) -> Json:
    """What each row's trait changed on the prompts of every trait.

    Args:
        samples: Of all arms.
        rows: For each trait the arm without its training and the arm with it: the run that left it
            out and the policy (leave one out), the base and the run of this trait alone, or the
            base without and with the trait shown.
        field: Of the sample, a number.
        num_resamples: Of the bootstrap over prompts.
        seed: Of the bootstrap.

    Returns:
        `cells`: the effect by row and column, with its p-value corrected over the off-diagonal
        cells (Holm) where it is one of them. `diagonal_dominance`: the mean of the diagonal less
        that of the other cells, in the field's unit, with its interval: how much more a trait
        changed itself than the others. None where a cell is missing, since an arm has no reply to
        its prompts, or all arms together share fewer than two prompts of a trait.
    """
    columns = list(dict.fromkeys(sample.trait_id for sample in samples))
    values = _values(samples, field)
    cells: dict[str, dict[str, Json]] = {row: {} for row in rows}
    for row, (without, with_it) in rows.items():
        for column in columns:
            base, other = values.get((without, column), {}), values.get((with_it, column), {})
            both = sorted(base.keys() & other.keys())
            if len(both) < 2:
                continue
            found = cluster_bootstrap_difference(
                {p: base[p] for p in both},
                {p: other[p] for p in both},
                num_resamples=num_resamples,
                seed=seed,
            )
            cells[row][column] = {
                "difference": found.difference,
                "ci_low": found.ci_low,
                "ci_high": found.ci_high,
                "p_value": found.p_value,
                "num_prompts": found.num_clusters,
            }
    _correct(cells)
    square = all(cells[row].keys() >= rows.keys() for row in rows)
    dominance = None
    if square and len(rows) > 1:
        dominance = _dominance(values, rows, num_resamples=num_resamples, seed=seed)
    return {"cells": cells, "diagonal_dominance": dominance}


def _values(
    samples: Sequence[EvaluationSample], field: str
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By arm and trait, then by prompt."""
    found: dict[tuple[str, str], list[EvaluationSample]] = {}
    for sample in samples:
        if getattr(sample, field) is not None:
            found.setdefault((sample.arm, sample.trait_id), []).append(sample)
    return {
        key: values_by_cluster([float(getattr(s, field)) for s in own], [s.prompt_id for s in own])
        for key, own in found.items()
    }


def _correct(cells: Mapping[str, Mapping[str, Json]]) -> None:
    """Off the diagonal there are many cells, of which some would differ by chance."""
    off = [
        cell
        for row, by_column in cells.items()
        for column, cell in by_column.items()
        if row != column
    ]
    for cell, p_holm in zip(off, holm([cell["p_value"] for cell in off]), strict=True):
        cell["p_holm"] = p_holm


def _dominance(
    values: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    rows: Mapping[str, tuple[str, str]],
    *,
    num_resamples: int,
    seed: int,
) -> Json | None:
    """Of the square of the rows' traits; all rows of a column have the same resampled prompts."""
    # Signed sums, which noise leaves where they are. The diagonal over the sum of all cells' sizes,
    # which suggests itself, sums up the noise of every cell: of a matrix that is all diagonal it
    # would be 0.6 with 5 traits of 40 prompts.
    columns = [
        _column(values, rows, trait_id, num_resamples=num_resamples, seed=seed + index)
        for index, trait_id in enumerate(rows)
    ]
    found = [column for column in columns if column is not None]
    if len(found) < len(columns):
        return None
    cells_IJ = np.stack([cells_I for cells_I, _, _ in found], axis=1)
    cells_IJR = np.stack([cells_IR for _, cells_IR, _ in found], axis=1)
    fewest = min(num_prompts for _, _, num_prompts in found)
    low, high = np.quantile(_excess(cells_IJR), interval_quantiles(fewest))
    return {
        "estimate": float(_excess(cells_IJ[..., None])[0]),
        "ci_low": float(low),
        "ci_high": float(high),
    }


def _excess(cells_IJR: Array) -> Array:
    """Mean of the diagonal less that of the other cells: `(R,)`."""
    num_rows = len(cells_IJR)
    diagonal_R = np.einsum("iir->r", cells_IJR)
    others_R = cells_IJR.sum(axis=(0, 1)) - diagonal_R
    excess_R: Array = diagonal_R / num_rows - others_R / (num_rows * (num_rows - 1))
    return excess_R


def _column(
    values: Mapping[tuple[str, str], Mapping[str, Sequence[float]]],
    rows: Mapping[str, tuple[str, str]],
    trait_id: str,
    *,
    num_resamples: int,
    seed: int,
) -> tuple[Array, Array, int] | None:
    """A column's cells `(I,)`, their resamples `(I, R)`, and how many prompts all arms share.

    None where they share fewer than two.
    """
    arms = sorted({arm for pair in rows.values() for arm in pair})
    prompts = sorted(set.intersection(*(set(values[arm, trait_id]) for arm in arms)))
    if len(prompts) < 2:
        return None
    sums = {arm: np.array([sum(values[arm, trait_id][p]) for p in prompts]) for arm in arms}
    counts = {
        arm: np.array([float(len(values[arm, trait_id][p])) for p in prompts]) for arm in arms
    }
    both_R = resampled(
        np.stack([column[arm] for column in (sums, counts) for arm in arms]),
        num_resamples=num_resamples,
        seed=seed,
    )
    means_R = dict(zip(arms, both_R[: len(arms)] / both_R[len(arms) :], strict=True))
    means = {arm: sums[arm].sum() / counts[arm].sum() for arm in arms}
    return (
        np.array([means[other] - means[base] for base, other in rows.values()]),
        np.stack([means_R[other] - means_R[base] for base, other in rows.values()]),
        len(prompts),
    )
