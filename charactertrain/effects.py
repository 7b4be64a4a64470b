"""What each arm of an evaluation changed against the base: every measure, with its interval.

A prompt that one of two arms has no value for, its replies being rejected, is left out of both.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from charactertrain import attribution, measures
from charactertrain.records import EvaluationSample, Judgement
from charactertrain.significance import holm
from charactertrain.statistics import (
    Difference,
    cluster_bootstrap_difference,
    cluster_jackknife_statistic,
    values_by_cluster,
)
from charactertrain.win_rates import Comparison, length_controlled_win_rate, win_rate

Json = dict[str, Any]
T = TypeVar("T")

_FIELDS = {
    "contrast": "contrast",
    "detector_rate": "detected",
    "reward": "reward",
    "gold_reward": "gold_reward",
}
"""Measures of a trait, and the sample's field that holds each."""
_OVERALL = {"length": "num_tokens", "kl": "kl"}


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made."""

    num_resamples: int
    seed: int


def results(
    samples: Sequence[EvaluationSample],
    judgements: Sequence[Judgement],
    natural_lengths: Mapping[str, Mapping[str, Sequence[float]]] | None,
    bootstrap: Bootstrap,
) -> Json:
    """Effects of every arm by trait, over all replies and by kind of prompt.

    `policy_against` holds the policy's effects with each other arm in the base's place.

    Args:
        samples: Of all arms, the base's among them.
        judgements: Of arms against the base.
        natural_lengths: Tokens by arm and prompt, of replies that end by themselves; None where
            they were not measured.
        bootstrap: How intervals are made.
    """
    trait_ids = list(dict.fromkeys(sample.trait_id for sample in samples))
    traits = {
        trait_id: _of_fields([s for s in samples if s.trait_id == trait_id], _FIELDS, bootstrap)
        | _judged([j for j in judgements if j.trait_id == trait_id], bootstrap)
        for trait_id in trait_ids
    }
    _correct(traits)
    kinds = list(dict.fromkeys(sample.kind for sample in samples))
    others = dict.fromkeys(s.arm for s in samples if s.arm not in ("base", "policy"))
    return {
        "traits": traits,
        "overall": _overall(samples, natural_lengths, bootstrap),
        "kinds": {
            kind: _of_fields([s for s in samples if s.kind == kind], _FIELDS, bootstrap)
            for kind in kinds
        },
        "policy_against": {
            arm: {
                trait_id: _against([s for s in samples if s.trait_id == trait_id], arm, bootstrap)
                for trait_id in trait_ids
            }
            for arm in others
        },
    }


def _against(samples: Sequence[EvaluationSample], arm: str, bootstrap: Bootstrap) -> Json:
    """Effects of the policy in which `arm` stands in the base's place, by measure."""
    names = {arm: "base", "policy": "policy"}
    pair = [replace(s, arm=names[s.arm]) for s in samples if s.arm in names]
    found = _of_fields(pair, _FIELDS, bootstrap)
    return {measure: by_arm["policy"] for measure, by_arm in found.items()}


def attributed(
    samples: Sequence[EvaluationSample],
    designs: Mapping[str, Mapping[str, tuple[str, str]]],
    bootstrap: Bootstrap,
) -> Json:
    """By design of the study and measure, which trait changed what: `attribution.matrix`."""
    return {
        design: {
            measure: attribution.matrix(
                samples,
                rows,
                _FIELDS[measure],
                num_resamples=bootstrap.num_resamples,
                seed=bootstrap.seed,
            )
            for measure in ("contrast", "detector_rate")
            if any(getattr(sample, _FIELDS[measure]) is not None for sample in samples)
        }
        for design, rows in designs.items()
    }


def _of_fields(
    samples: Sequence[EvaluationSample], fields: Mapping[str, str], bootstrap: Bootstrap
) -> Json:
    """Effects by measure and arm; a measure that no sample has is left out."""
    found = {}
    for measure, field in fields.items():
        having = [sample for sample in samples if getattr(sample, field) is not None]
        effects = _by_arm(having, partial(_number, field=field), partial(_difference, bootstrap))
        if effects:
            found[measure] = effects
    return found


def _number(sample: EvaluationSample, field: str) -> float:
    return float(getattr(sample, field))


def _difference(
    bootstrap: Bootstrap, base: Mapping[str, list[float]], other: Mapping[str, list[float]]
) -> Difference:
    return cluster_bootstrap_difference(
        base, other, num_resamples=bootstrap.num_resamples, seed=bootstrap.seed
    )


def _by_arm(
    samples: Sequence[EvaluationSample],
    value: Callable[[EvaluationSample], T],
    difference: Callable[[dict[str, list[T]], dict[str, list[T]]], Difference],
) -> Json:
    """The effect of every arm but the base; none where fewer than two prompts are in both."""
    values: dict[str, dict[str, list[T]]] = {}
    for arm in dict.fromkeys(sample.arm for sample in samples):
        own = [sample for sample in samples if sample.arm == arm]
        values[arm] = values_by_cluster([value(s) for s in own], [s.prompt_id for s in own])
    base = values.pop("base", {})
    found = {}
    for arm, by_prompt in values.items():
        both = base.keys() & by_prompt.keys()
        if len(both) >= 2:
            found[arm] = as_json(difference(_only(base, both), _only(by_prompt, both)))
    return found


def _only(by_prompt: Mapping[str, list[T]], prompt_ids: Iterable[str]) -> dict[str, list[T]]:
    return {prompt_id: by_prompt[prompt_id] for prompt_id in sorted(prompt_ids)}


def as_json(found: Difference) -> Json:
    """A difference as the results hold it; responses are counted per arm."""
    values = asdict(found)
    values["num_prompts"] = values.pop("num_clusters")
    values["num_responses"] //= 2
    return values


def _overall(
    samples: Sequence[EvaluationSample],
    natural_lengths: Mapping[str, Mapping[str, Sequence[float]]] | None,
    bootstrap: Bootstrap,
) -> Json:
    found = _of_fields(samples, _OVERALL, bootstrap)
    if natural_lengths is not None:
        base = natural_lengths["base"]
        found["natural_length"] = {
            arm: as_json(
                cluster_bootstrap_difference(
                    {p: base[p] for p in sorted(base.keys() & lengths.keys())},
                    {p: lengths[p] for p in sorted(base.keys() & lengths.keys())},
                    num_resamples=bootstrap.num_resamples,
                    seed=bootstrap.seed,
                )
            )
            for arm, lengths in natural_lengths.items()
            if arm != "base"
        }
    texts = partial(_by_arm, samples)
    found["distinct_2"] = texts(_words, partial(_jackknife, partial(measures.distinct_n, n=2)))
    found["opening_share"] = texts(_text, partial(_jackknife, _opening_share))
    if _has_several(samples):
        found["within_prompt_diversity"] = texts(_text, partial(_mean_diversity, bootstrap))
    return found


def _words(sample: EvaluationSample) -> tuple[str, ...]:
    return tuple(sample.text.split())


def _text(sample: EvaluationSample) -> str:
    return sample.text


def _jackknife(
    statistic: Callable[[list[T]], float],
    base: dict[str, list[T]],
    other: dict[str, list[T]],
) -> Difference:
    return cluster_jackknife_statistic(base, other, statistic)


def _opening_share(texts: Sequence[str]) -> float:
    return measures.opening_share(texts).share


def _has_several(samples: Sequence[EvaluationSample]) -> bool:
    """Whether any arm replied to a prompt more than once."""
    return len(samples) > len({(sample.arm, sample.prompt_id) for sample in samples})


def _mean_diversity(
    bootstrap: Bootstrap, base: dict[str, list[str]], other: dict[str, list[str]]
) -> Difference:
    """Of prompts that both arms replied to several times; each is one value."""
    several = [p for p in base if min(len(base[p]), len(other[p])) > 1]
    return _difference(
        bootstrap,
        {p: [measures.within_prompt_diversity(base[p])] for p in several},
        {p: [measures.within_prompt_diversity(other[p])] for p in several},
    )


def _judged(judgements: Sequence[Judgement], bootstrap: Bootstrap) -> Json:
    """Win rates by arm; measures without a judgement are left out."""
    found: Json = {}
    for arm in dict.fromkeys(judgement.arm for judgement in judgements):
        comparisons = [_comparison(j) for j in judgements if j.arm == arm]
        if len({comparison.cluster for comparison in comparisons}) < 2:
            continue
        settings = {"num_resamples": bootstrap.num_resamples, "seed": bootstrap.seed}
        plain = win_rate(comparisons, **settings)
        controlled = length_controlled_win_rate(comparisons, **settings)
        found.setdefault("win_rate", {})[arm] = plain
        found.setdefault("win_rate_length_controlled", {})[arm] = controlled
    return found


def _comparison(judgement: Judgement) -> Comparison:
    return Comparison(
        cluster=judgement.prompt_id,
        arm_first=judgement.arm_first,
        arm_second=judgement.arm_second,
        length_difference=judgement.length_difference,
    )


def _correct(traits: Mapping[str, Json]) -> None:
    """Add to every effect its p-value corrected for there being several traits (Holm)."""
    columns: dict[tuple[str, str], list[Json]] = {}
    for by_measure in traits.values():
        for measure, by_arm in by_measure.items():
            for arm, effect in by_arm.items():
                columns.setdefault((measure, arm), []).append(effect)
    for effects in columns.values():
        corrected = holm([effect["p_value"] for effect in effects])
        for effect, p_holm in zip(effects, corrected, strict=True):
            effect["p_holm"] = p_holm
