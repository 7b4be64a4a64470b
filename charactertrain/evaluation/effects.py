"""What each arm of an evaluation changed against the base: every measure, with its interval.

A prompt that one of two arms has no value for, its replies being rejected, is left out of both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

from charactertrain.artifacts import Json
from charactertrain.evaluation import attribution, win_rates
from charactertrain.evaluation.gates import OUTCOME_MEASURES
from charactertrain.records import NO_TRAIT, EvaluationSample, Judgement
from charactertrain.statistics import several_runs
from charactertrain.statistics.bootstrap import (
    Difference,
    SetStatistic,
    cluster_bootstrap_difference,
    cluster_jackknife_statistic,
    values_by_cluster,
)
from charactertrain.statistics.significance import holm, prompts_needed
from charactertrain.texts import measures

T = TypeVar("T")

_FIELDS = {
    "contrast": "contrast",
    "detector_rate": "detected",
    "reward": "reward",
    "gold_reward": "gold_reward",
}
"""Measures of a trait, and the sample's field that holds each."""
_OVERALL = {"length": "num_tokens", "kl": "kl"}
_OF_TEXTS: dict[str, SetStatistic[str]] = {
    "opening_share": measures.opening_share_without,
    "boilerplate_share": measures.boilerplate_share_without,
}
"""Constant phrases: a trait that has become one is a rule."""


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
        "overall": _overall(samples, natural_lengths, bootstrap)
        | {
            f"quality_{measure}": by_arm
            for measure, by_arm in _judged(
                [j for j in judgements if j.trait_id == NO_TRAIT], bootstrap
            ).items()
        },
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


def over_seeds(samples: Sequence[EvaluationSample], arms: Sequence[str]) -> Json:
    """What training changed over several runs that differ by seed alone, by trait and measure.

    Intervals are over runs and prompts: `several_runs`. Of prompts that the base and all the runs
    replied to; `num_left_out` counts the others. Empty where `arms` is one.
    """
    if len(arms) < 2:
        return {}
    traits: dict[str, Json] = {}
    for trait_id in dict.fromkeys(sample.trait_id for sample in samples):
        own = [sample for sample in samples if sample.trait_id == trait_id]
        traits[trait_id] = {}
        for measure, field in _FIELDS.items():
            having = [sample for sample in own if getattr(sample, field) is not None]
            values = _by_arm(having, partial(_number, field=field))
            by_arm = [values.get(arm, {}) for arm in ("base", *arms)]
            shared = sorted(set.intersection(*map(set, by_arm)))
            if len(shared) < 2:
                continue
            base, *others = ({p: by_prompt[p] for p in shared} for by_prompt in by_arm)
            found = as_json(several_runs.difference_over_runs([(base, own) for own in others]))
            found["num_left_out"] = len(set.union(*map(set, by_arm))) - len(shared)
            traits[trait_id][measure] = {"over_seeds": found}
    _correct(traits)
    return {
        "arms": list(arms),
        "traits": {
            trait_id: {measure: found["over_seeds"] for measure, found in by_measure.items()}
            for trait_id, by_measure in traits.items()
        },
    }


def attributed(
    samples: Sequence[EvaluationSample],
    designs: Mapping[str, Mapping[str, tuple[str, str]]],
    bootstrap: Bootstrap,
    *,
    by: Sequence[str],
) -> Json:
    """By design of the study and measure, which trait changed what: `attribution.matrix`.

    A measure that no sample has is left out.

    Args:
        samples: Of all arms.
        designs: By name of the design, for each trait the arm without it and the arm with it.
        bootstrap: How intervals are made.
        by: Measures of a trait.
    """
    return {
        design: {
            measure: attribution.matrix(
                samples,
                rows,
                _FIELDS[measure],
                num_resamples=bootstrap.num_resamples,
                seed=bootstrap.seed,
            )
            for measure in by
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
        values = _by_arm(having, partial(_number, field=field))
        effects = _compared(values, partial(_difference, bootstrap))
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
    samples: Sequence[EvaluationSample], value: Callable[[EvaluationSample], T]
) -> dict[str, dict[str, list[T]]]:
    """Values by arm and prompt."""
    values: dict[str, dict[str, list[T]]] = {}
    for arm in dict.fromkeys(sample.arm for sample in samples):
        own = [sample for sample in samples if sample.arm == arm]
        values[arm] = values_by_cluster([value(s) for s in own], [s.prompt_id for s in own])
    return values


def _paired(
    base: Mapping[str, list[T]], other: Mapping[str, list[T]]
) -> tuple[dict[str, list[T]], dict[str, list[T]]]:
    """Both on the prompts that both have."""
    both = sorted(base.keys() & other.keys())
    return {p: base[p] for p in both}, {p: other[p] for p in both}


def _compared(
    values: Mapping[str, Mapping[str, list[T]]],
    difference: Callable[[dict[str, list[T]], dict[str, list[T]]], Difference | str],
) -> Json:
    """The effect of every arm but the base; none where fewer than two prompts are in both.

    `difference` may say in words why there is none.
    """
    base = values.get("base", {})
    found = {}
    for arm, by_prompt in values.items():
        own, others = _paired(base, by_prompt)
        if arm != "base" and len(own) >= 2:
            effect = difference(own, others)
            counts = {"num_prompts": len(own), "num_responses": sum(map(len, others.values()))}
            found[arm] = unknown(effect) | counts if isinstance(effect, str) else as_json(effect)
    return found


def as_json(found: Difference) -> Json:
    """A difference as the results hold it; responses are counted per arm.

    `prompts_needed` is how many would show an effect of this size; None where there is none.
    """
    values = asdict(found)
    values["num_prompts"] = values.pop("num_clusters")
    values["num_responses"] //= 2
    size = abs(found.difference)
    values["prompts_needed"] = prompts_needed(found, half_width=size) if size > 0 else None
    return values


def unknown(note: str) -> Json:
    """An effect of which nothing can be said, and why."""
    names = ("base", "arm", "difference", "ci_low", "ci_high", "p_value")
    return {**dict.fromkeys(names), "note": note}


def _overall(
    samples: Sequence[EvaluationSample],
    natural_lengths: Mapping[str, Mapping[str, Sequence[float]]] | None,
    bootstrap: Bootstrap,
) -> Json:
    found = _of_fields(samples, _OVERALL, bootstrap)
    means = partial(_difference, bootstrap)
    if natural_lengths is not None:
        lengths = {
            arm: {prompt_id: list(values) for prompt_id, values in by_prompt.items()}
            for arm, by_prompt in natural_lengths.items()
        }
        found["natural_length"] = _compared(lengths, means)
    texts = _by_arm(samples, _text)
    found["distinct_2"] = _compared(_by_arm(samples, _words), _distinct_2)
    for measure, statistic in _OF_TEXTS.items():
        found[measure] = _compared(texts, partial(_jackknifed, statistic))
    found["within_prompt_diversity"] = _compared(
        {arm: _diversities(by_prompt) for arm, by_prompt in texts.items()}, means
    )
    return {measure: by_arm for measure, by_arm in found.items() if by_arm}


def _words(sample: EvaluationSample) -> tuple[str, ...]:
    return tuple(sample.text.split())


def _text(sample: EvaluationSample) -> str:
    return sample.text


def _distinct_2(
    base: dict[str, list[tuple[str, ...]]], other: dict[str, list[tuple[str, ...]]]
) -> Difference | str:
    """Unknown where an arm is down to single words in all prompts but one."""
    for by_prompt in (base, other):
        having = [p for p, texts in by_prompt.items() if any(len(words) > 1 for words in texts)]
        if len(having) < 2:
            return f"unknown: replies to {len(having)} prompts have two words or more"
    return cluster_jackknife_statistic(base, other, partial(measures.distinct_n_without, n=2))


def _jackknifed(
    statistic: SetStatistic[str], base: dict[str, list[str]], other: dict[str, list[str]]
) -> Difference:
    return cluster_jackknife_statistic(base, other, statistic)


def _diversities(by_prompt: Mapping[str, list[str]]) -> dict[str, list[float]]:
    """Of the prompts that were replied to several times."""
    return {
        prompt_id: [measures.within_prompt_diversity(texts)]
        for prompt_id, texts in by_prompt.items()
        if len(texts) > 1
    }


def _judged(judgements: Sequence[Judgement], bootstrap: Bootstrap) -> Json:
    """Win rates by arm; of an arm without verdicts on two prompts, that and the counts."""
    settings = {"num_resamples": bootstrap.num_resamples, "seed": bootstrap.seed}
    found: dict[str, Json] = {"win_rate": {}, "win_rate_length_controlled": {}}
    for arm in dict.fromkeys(judgement.arm for judgement in judgements):
        comparisons = [_comparison(j) for j in judgements if j.arm == arm]
        scored = [c for c in comparisons if None not in (c.shown_first, c.shown_second)]
        num_prompts = len({comparison.cluster for comparison in scored})
        if num_prompts < 2:
            note = f"unknown: the judge gave verdicts in both orders on {num_prompts} prompts"
            counts = {"num_prompts": num_prompts, "num_responses": len(scored)}
            missing = {"unscored": len(comparisons) - len(scored), "ties": 0, "inconsistent": 0}
            found["win_rate"][arm] = unknown(note) | counts | missing | {"swap_consistency": None}
            continue
        plain = win_rates.win_rate(comparisons, **settings)
        found["win_rate"][arm] = as_json(plain.rate) | {
            "soft_rate": as_json(plain.soft_rate),
            "swap_consistency": asdict(plain.swap_consistency),
            "unscored": plain.num_unscored,
            "ties": plain.num_ties,
            "inconsistent": plain.num_inconsistent,
        }
        lengths = {comparison.length_difference for comparison in scored}
        # Of replies that are all longer by as much, nothing tells the arm from its length.
        if len(lengths) > 1 or lengths == {0}:
            controlled = win_rates.length_controlled_win_rate(comparisons, **settings)
            found["win_rate_length_controlled"][arm] = as_json(controlled.rate) | {
                "length_effect": asdict(controlled.length_effect),
                "num_longer": controlled.num_longer,
            }
    return {measure: by_arm for measure, by_arm in found.items() if by_arm}


def _comparison(judgement: Judgement) -> win_rates.Comparison:
    return win_rates.Comparison(
        cluster=judgement.prompt_id,
        shown_first=judgement.arm_first,
        shown_second=judgement.arm_second,
        length_difference=judgement.length_difference,
    )


def _correct(traits: Mapping[str, Json]) -> None:
    """Add to every effect its p-value corrected by Holm over the traits of its measure and arm.

    The outcome measures are one family: a trait is shown by either of them.
    """
    families: dict[tuple[str, str], list[Json]] = {}
    for by_measure in traits.values():
        for measure, by_arm in by_measure.items():
            family = "outcome" if measure in OUTCOME_MEASURES else measure
            for arm, effect in by_arm.items():
                if effect["p_value"] is not None:
                    families.setdefault((family, arm), []).append(effect)
    for effects in families.values():
        corrected = holm([effect["p_value"] for effect in effects])
        for effect, p_holm in zip(effects, corrected, strict=True):
            effect["p_holm"] = p_holm
