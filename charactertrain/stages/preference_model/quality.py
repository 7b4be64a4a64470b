"""How good a preference model is on held-out pairs, beside what knows nothing of the texts."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from charactertrain.stages.preference_model.data import Example
from charactertrain.stages.preference_model.step import RankedPair
from charactertrain.statistics import bradley_terry, calibration, reliability
from charactertrain.statistics.bootstrap import cluster_bootstrap_difference, cluster_bootstrap_mean

_NUM_BINS = 15
_NUM_RESAMPLES = 2000
_LENGTH_SCALE = 100
"""Tokens: lengths are of about 1, so that the baseline's prior is weak."""
_LEAST_PROBABILITY = 1e-6
STRENGTHS = ((0.5, 0.6), (0.6, 0.75), (0.75, 0.9), (0.9, 1.0))
"""Bands of the label's probability, the lower end left out except for 0.5."""


@dataclass(frozen=True)
class HeldOutPair:
    """A held-out pair with what orders it."""

    example: Example
    pair: RankedPair
    margin: float
    """Reward of chosen less that of rejected."""

    @property
    def cluster(self) -> str:
        """What is resampled: its prompt."""
        return self.example.ranked.prompt_id

    @property
    def extra_tokens(self) -> int:
        """Length of chosen less that of rejected."""
        return self.example.lengths[self.pair.chosen] - self.example.lengths[self.pair.rejected]

    @property
    def variants(self) -> tuple[str, str]:
        """How chosen and rejected were written."""
        return self.example.variants[self.pair.chosen], self.example.variants[self.pair.rejected]


def held_out_pairs(
    examples: Sequence[Example], rewards: Mapping[str, Sequence[float]]
) -> list[HeldOutPair]:
    """All pairs of the examples with their margins.

    Args:
        examples: Held out.
        rewards: By prompt id, in the order of the prompt's responses.
    """
    return [
        HeldOutPair(example, pair, found[pair.chosen] - found[pair.rejected])
        for example in examples
        for found in [rewards[example.ranked.prompt_id]]
        for pair in example.ranked.pairs
    ]


Baselines = Mapping[str, Callable[[HeldOutPair], float]]


def fit_baselines(trained: Sequence[Example]) -> Baselines:
    """Margins from the length alone, and from how a response was written alone.

    Fitted to the same training pairs as the model, with their labels.
    """
    pairs = held_out_pairs(trained, {e.ranked.prompt_id: [0.0] * len(e.texts) for e in trained})
    variants = sorted({name for pair in pairs for name in pair.variants})

    def length(pair: HeldOutPair) -> list[float]:
        return [pair.extra_tokens / _LENGTH_SCALE]

    def provenance(pair: HeldOutPair) -> list[float]:
        chosen, rejected = pair.variants
        return [float(chosen == name) - float(rejected == name) for name in variants]

    return {
        "length": _fitted(pairs, length),
        "provenance": _fitted(pairs, provenance),
    }


def _fitted(
    pairs: Sequence[HeldOutPair], features: Callable[[HeldOutPair], list[float]]
) -> Callable[[HeldOutPair], float]:
    model = bradley_terry.fit(
        [features(pair) for pair in pairs],
        [pair.pair.probability for pair in pairs],
        [pair.pair.weight for pair in pairs],
    )
    return lambda pair: model.margins([features(pair)])[0]


def measure(
    selection: Sequence[HeldOutPair],
    measured: Sequence[HeldOutPair],
    baselines: Baselines,
    *,
    seed: int,
) -> dict[str, Any]:
    """Accuracy with intervals, and calibration before and after a temperature.

    Args:
        selection: Pairs on which the temperature is fitted; the weights were chosen on them.
        measured: Pairs of other prompts, on which everything is measured.
        baselines: As `fit_baselines` gives them.
        seed: Of the bootstrap.
    """
    temperature = calibration.fit_temperature(
        [pair.margin for pair in selection], [pair.pair.probability for pair in selection]
    )
    traits = sorted({pair.example.ranked.trait_id for pair in measured})
    return {
        "accuracy": accuracy(measured, baselines, seed=seed),
        "accuracy_by_trait": {
            trait: accuracy(
                [pair for pair in measured if pair.example.ranked.trait_id == trait],
                baselines,
                seed=seed,
            )
            for trait in traits
        },
        "accuracy_by_strength": [
            {
                "low": low,
                "high": high,
                **_accuracy_or_count(_of_strength(measured, low, high), seed),
            }
            for low, high in STRENGTHS
        ],
        "accuracy_same_variant": _accuracy_or_count(
            [pair for pair in measured if len(set(pair.variants)) == 1], seed
        ),
        "temperature": temperature,
        "before_temperature": _calibration(measured, 1.0, seed),
        "after_temperature": _calibration(measured, temperature, seed),
        "baseline_nll": {name: _baseline_nll(measured, of) for name, of in baselines.items()},
        "num_pairs": len(measured),
        "num_selection_pairs": len(selection),
    }


def _of_strength(pairs: Sequence[HeldOutPair], low: float, high: float) -> list[HeldOutPair]:
    return [
        pair
        for pair in pairs
        if low < max(pair.pair.probability, 1 - pair.pair.probability) <= high
    ]


def accuracy(pairs: Sequence[HeldOutPair], baselines: Baselines, *, seed: int) -> dict[str, Any]:
    """Share of decided pairs in the label's order, with its interval, beside each baseline's.

    A margin of 0 is half right. `above_<baseline>` is the difference, paired by prompt.
    """
    hits = _hits(pairs, lambda pair: pair.margin)
    found = {**_interval(hits, seed), "num_pairs": sum(map(len, hits.values()))}
    for name, margin_of in baselines.items():
        theirs = _hits(pairs, margin_of)
        values = [hit for of_prompt in theirs.values() for hit in of_prompt]
        found[f"{name}_only"] = sum(values) / len(values) if values else None
        found[f"above_{name}"] = _difference(theirs, hits, seed)
    return found


def _accuracy_or_count(pairs: Sequence[HeldOutPair], seed: int) -> dict[str, Any]:
    return accuracy(pairs, {}, seed=seed)


def _hits(
    pairs: Sequence[HeldOutPair], margin_of: Callable[[HeldOutPair], float]
) -> dict[str, list[float]]:
    """By prompt, whether each decided pair is in the label's order."""
    hits: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        decision = np.sign(pair.pair.probability - 0.5)
        if decision != 0:
            hits[pair.cluster].append(0.5 + 0.5 * float(np.sign(margin_of(pair)) * decision))
    return dict(hits)


def _interval(by_prompt: Mapping[str, Sequence[float]], seed: int) -> dict[str, Any]:
    """Mean and 95 % interval over prompts; without ends where there are fewer than two."""
    if len(by_prompt) < 2:
        values = [value for found in by_prompt.values() for value in found]
        return {
            "estimate": sum(values) / len(values) if values else None,
            "ci_low": None,
            "ci_high": None,
            "num_clusters": len(by_prompt),
            "num_responses": len(values),
        }
    return asdict(cluster_bootstrap_mean(by_prompt, num_resamples=_NUM_RESAMPLES, seed=seed))


def _difference(
    baseline: Mapping[str, Sequence[float]], model: Mapping[str, Sequence[float]], seed: int
) -> dict[str, float] | None:
    if len(model) < 2:
        return None
    found = cluster_bootstrap_difference(baseline, model, num_resamples=_NUM_RESAMPLES, seed=seed)
    return {"estimate": found.difference, "ci_low": found.ci_low, "ci_high": found.ci_high}


def _calibration(pairs: Sequence[HeldOutPair], temperature: float, seed: int) -> dict[str, Any]:
    predicted = calibration.probabilities([pair.margin for pair in pairs], temperature)
    targets = [pair.pair.probability for pair in pairs]
    # Pairs are stored with the better first; a probability has to be judged from both sides.
    both = np.array([*predicted, *(1 - p for p in predicted)])
    both_targets = np.array([*targets, *(1 - t for t in targets)])
    bins = calibration.reliability_bins(both, both_targets, num_bins=_NUM_BINS)
    clusters = [pair.cluster for pair in pairs] * 2
    low, high = calibration.calibration_error_interval(
        both, both_targets, clusters, num_bins=_NUM_BINS, num_resamples=_NUM_RESAMPLES, seed=seed
    )
    return {
        "bins": [asdict(entry) for entry in bins],
        "ece": calibration.expected_calibration_error(both, both_targets, num_bins=_NUM_BINS),
        "ece_ci_low": low,
        "ece_ci_high": high,
        "brier": calibration.brier_score(both, both_targets),
        "nll": _nll(both, both_targets),
    }


def _baseline_nll(pairs: Sequence[HeldOutPair], margin_of: Callable[[HeldOutPair], float]) -> float:
    predicted = calibration.probabilities([margin_of(pair) for pair in pairs], 1.0)
    return _nll(predicted, [pair.pair.probability for pair in pairs])


def _nll(predicted: ArrayLike, targets: ArrayLike) -> float:
    # A temperature fitted to few pairs may round a probability to 0 or 1.
    clipped = np.clip(predicted, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return calibration.negative_log_likelihood(clipped, targets)


def length_slope(examples: Sequence[Example], rewards: Mapping[str, Sequence[float]]) -> float:
    """Reward per token of response length as sampled, within prompts, by least squares.

    The policy stage takes it off the reward, so that length earns nothing by itself.
    """
    products = squares = 0.0
    for example in examples:
        tokens, values = example.lengths, rewards[example.ranked.prompt_id]
        mean_length, mean_value = sum(tokens) / len(tokens), sum(values) / len(values)
        for length, value in zip(tokens, values, strict=True):
            products += (length - mean_length) * (value - mean_value)
            squares += (length - mean_length) ** 2
    return products / squares if squares > 0 else 0.0


def length_correlation(
    examples: Sequence[Example], rewards: Mapping[str, Sequence[float]], *, seed: int
) -> dict[str, Any] | None:
    """Correlation of reward and length within prompts, -1 to 1, with an interval over prompts."""
    found = reliability.correlation_interval(
        [(rewards[example.ranked.prompt_id], example.lengths) for example in examples],
        [example.ranked.prompt_id for example in examples],
        num_resamples=_NUM_RESAMPLES,
        seed=seed,
    )
    return None if found is None else asdict(found)


def compared(
    pairs: Sequence[HeldOutPair],
    model: Sequence[HeldOutPair],
    baselines: Baselines,
    *,
    seed: int,
) -> dict[str, Any]:
    """Another model's accuracy, and how often it orders a pair as the first one does."""
    same: dict[str, list[float]] = defaultdict(list)
    for theirs, ours in zip(pairs, model, strict=True):
        same[theirs.cluster].append(float(np.sign(theirs.margin) == np.sign(ours.margin)))
    return {
        "accuracy": accuracy(pairs, baselines, seed=seed),
        "same_order": _interval(same, seed),
    }
