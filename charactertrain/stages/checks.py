"""Checks on a few everyday messages before a run spends anything.

The template check asks whether the character shows at all when the model is asked for it. Its
responses, written with and without the trait, are the ranker check's pairs of known truth.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from charactertrain import ranking
from charactertrain.exceptions import SamplingError
from charactertrain.records import Probe, Trait
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.stages.rankings.comparisons import Candidate, Comparisons, Group, Ranker
from charactertrain.statistics import bootstrap
from charactertrain.templates import (
    CHECK_MESSAGES,
    REFERENCE_VARIANT,
    plain_conversation,
    response_conversation,
)
from charactertrain.texts import measures

_NUM_RESAMPLES = 2000
_PROBE_VARIANTS = ("none", REFERENCE_VARIANT)


@dataclass(frozen=True)
class TraitShift:
    """How far showing a trait moves the responses."""

    trait_id: str
    contrast_shown: float
    """Mean contrast of responses written with the trait shown, nats per token."""
    contrast_not_shown: float
    detector_shown: float | None
    """Share of responses in which the detector matched; None without a detector."""
    detector_not_shown: float | None
    num_responses: int
    """Of each kind."""


@dataclass(frozen=True)
class RankerQuality:
    """How often a ranker prefers the response that was written with the trait shown."""

    ranker: str
    accuracy: float
    """0 to 1; a tie counts as half."""
    ci_low: float
    """Of a 95 % interval over messages; 0 to 1 where there are too few."""
    ci_high: float
    num_pairs: int
    failure: str = ""
    """Why the first pair without an answer has none; empty if all have one."""


def write_probes(
    sampler: Sampler,
    traits: Sequence[Trait],
    settings: SamplingSettings,
    *,
    placement: str,
    num_messages: int,
    seed: int,
) -> list[Probe]:
    """Responses to everyday messages, with each trait shown and not shown."""
    requests, meta = [], []
    for trait in traits:
        for message in CHECK_MESSAGES[:num_messages]:
            for variant in _PROBE_VARIANTS:
                probe_id = stable_id("probe", trait.trait_id, message, variant)
                shown = response_conversation(
                    message, [trait], variant=variant, placement=placement
                )
                requests.append(SampleRequest(probe_id, shown, derive_seed(seed, probe_id)))
                meta.append((trait, message, variant))
    samples = [_served(sample) for sample in sampler.sample(requests, settings)]
    contrasts = contrast_scores(
        sampler,
        [
            (trait, message, sample.token_ids)
            for (trait, message, _), sample in zip(meta, samples, strict=True)
        ],
        placement=placement,
    )
    return [
        Probe(sample.request_id, trait.trait_id, message, variant, sample.text, sample.token_ids, c)
        for (trait, message, variant), sample, c in zip(meta, samples, contrasts, strict=True)
    ]


def _served(result: Sample | Failure) -> Sample:
    if isinstance(result, Failure):
        raise SamplingError(f"template check: {result.reason}: {result.detail}")
    return result


def contrast_scores(
    sampler: Sampler,
    items: Sequence[tuple[Trait, str, tuple[int, ...]]],
    *,
    placement: str,
) -> list[float]:
    """Contrast of each (trait, prompt, response tokens), in nats per token."""
    requests = []
    for trait, prompt, token_ids in items:
        shown = response_conversation(
            prompt, [trait], variant=REFERENCE_VARIANT, placement=placement
        )
        requests.append(ScoreRequest("with", shown, token_ids))
        requests.append(ScoreRequest("without", plain_conversation(prompt), token_ids))
    scores = sampler.score(requests)
    values = []
    for with_trait, without in zip(scores[::2], scores[1::2], strict=True):
        if not isinstance(with_trait, Score) or not isinstance(without, Score):
            raise SamplingError(f"contrast: a check message does not fit: {with_trait}, {without}")
        values.append(ranking.contrast_score(with_trait.logprobs, without.logprobs))
    return values


def trait_shifts(probes: Sequence[Probe], traits: Sequence[Trait]) -> list[TraitShift]:
    """The template check's result per trait."""
    shifts = []
    for trait in traits:
        shown, not_shown = (
            [p for p in probes if p.trait_id == trait.trait_id and p.variant == variant]
            for variant in (REFERENCE_VARIANT, "none")
        )
        shifts.append(
            TraitShift(
                trait_id=trait.trait_id,
                contrast_shown=fmean(p.contrast for p in shown),
                contrast_not_shown=fmean(p.contrast for p in not_shown),
                detector_shown=_detector_rate(trait, shown),
                detector_not_shown=_detector_rate(trait, not_shown),
                num_responses=len(shown),
            )
        )
    return shifts


def _detector_rate(trait: Trait, probes: Sequence[Probe]) -> float | None:
    if trait.detector is None:
        return None
    return fmean(measures.detector_matches(trait.detector, p.text) for p in probes)


def check_template(shifts: Sequence[TraitShift], *, min_shift: float) -> None:
    """Raise SamplingError if no trait shows when the model is asked for it."""
    weak = [s for s in shifts if s.contrast_shown - s.contrast_not_shown < min_shift]
    if len(weak) < len(shifts):
        return
    numbers = ", ".join(
        f"{s.trait_id} {s.contrast_shown - s.contrast_not_shown:+.3f}" for s in shifts
    )
    raise SamplingError(
        "template check: no trait shows in the model's responses when it is shown the trait "
        f"(rise of the contrast in nats per token: {numbers}; expected {min_shift} or more). "
        "Show it elsewhere (model.trait_placement), reword the traits, or use a more capable model."
    )


def probe_pairs(probes: Sequence[Probe]) -> list[tuple[Probe, Probe]]:
    """Pairs (written with the trait shown, written without) to the same message."""
    by_key = {(p.trait_id, p.prompt, p.variant): p for p in probes}
    return [
        (probe, by_key[probe.trait_id, probe.prompt, "none"])
        for probe in probes
        if probe.variant == REFERENCE_VARIANT
    ]


def contrast_quality(probes: Sequence[Probe]) -> RankerQuality:
    """The contrast ranker on pairs of known truth, whose contrasts the probes hold."""
    pairs = probe_pairs(probes)
    return _quality("contrast", [_win(a.contrast, b.contrast) for a, b in pairs], pairs)


def ranker_quality(
    name: str, ranker: Ranker, probes: Sequence[Probe], traits: dict[str, Trait]
) -> RankerQuality:
    """A ranker on pairs of known truth; a pair that it fails on counts as none."""
    pairs = probe_pairs(probes)
    groups = [
        Group(
            group_id=a.probe_id,
            prompt=a.prompt,
            traits=(traits[a.trait_id],),
            candidates=(
                Candidate(a.probe_id, a.text, a.token_ids),
                Candidate(b.probe_id, b.text, b.token_ids),
            ),
        )
        for a, b in pairs
    ]
    wins, answered, failures = [], [], []
    for pair, result in zip(pairs, ranker(groups), strict=True):
        if isinstance(result, Comparisons):
            wins.append(_win(result.probabilities_KK[0][1], result.probabilities_KK[1][0]))
            answered.append(pair)
        else:
            failures.append(f"{result.reason}: {result.detail}")
    quality = _quality(name, wins, answered)
    return replace(quality, failure=failures[0]) if failures else quality


def no_quality(name: str, failure: str) -> RankerQuality:
    """Of a ranker that answered nothing."""
    return RankerQuality(name, 0.0, 0.0, 1.0, 0, failure)


def _win(first: float, second: float) -> float:
    return 1.0 if first > second else 0.5 if first == second else 0.0


def _quality(
    name: str, wins: Sequence[float], pairs: Sequence[tuple[Probe, Probe]]
) -> RankerQuality:
    if not wins:
        return no_quality(name, "")
    # Pairs of one message resemble each other, whichever trait they are of.
    by_message = bootstrap.values_by_cluster(wins, [a.prompt for a, _ in pairs])
    if len(by_message) < 2:
        return RankerQuality(name, fmean(wins), 0.0, 1.0, len(wins))
    interval = bootstrap.cluster_bootstrap_mean(by_message, num_resamples=_NUM_RESAMPLES, seed=0)
    return RankerQuality(name, interval.estimate, interval.ci_low, interval.ci_high, len(wins))


def as_json(items: Sequence[TraitShift] | Sequence[RankerQuality]) -> list[dict[str, object]]:
    """For a manifest's summary."""
    return [asdict(item) for item in items]


def qualities_to_json(qualities: Sequence[RankerQuality]) -> bytes:
    """A file of the ranker check's results."""
    return json.dumps(as_json(qualities), indent=2).encode()


def qualities_from_json(data: bytes) -> list[RankerQuality]:
    """What `qualities_to_json` wrote."""
    return [RankerQuality(**values) for values in json.loads(data)]
