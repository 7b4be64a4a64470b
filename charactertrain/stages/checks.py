"""Checks on a few everyday messages before a run spends anything.

The template check asks whether the character shows at all when the model is asked for it. Its
responses, written with and without the trait, are the ranker check's pairs of known truth.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from charactertrain import measures, ranking
from charactertrain.exceptions import SamplingError
from charactertrain.records import Probe, Trait
from charactertrain.runtime.sampling import (
    ChoiceRequest,
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.templates import (
    CHECK_MESSAGES,
    JUDGE_CHOICES,
    REFERENCE_VARIANT,
    judge_conversation,
    plain_conversation,
    response_conversation,
)

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
    num_pairs: int


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
    """The contrast ranker on pairs of known truth."""
    pairs = probe_pairs(probes)
    wins = [
        1.0 if a.contrast > b.contrast else 0.5 if a.contrast == b.contrast else 0.0
        for a, b in pairs
    ]
    return RankerQuality("contrast", fmean(wins), len(pairs))


def judge_quality(
    sampler: Sampler, probes: Sequence[Probe], traits: dict[str, Trait]
) -> RankerQuality:
    """The judge, both orders averaged, on pairs of known truth."""
    pairs = probe_pairs(probes)
    requests = []
    for a, b in pairs:
        trait = traits[a.trait_id]
        for first, second in ((a, b), (b, a)):
            shown = judge_conversation([trait], a.prompt, first.text, second.text)
            requests.append(ChoiceRequest("", shown, JUDGE_CHOICES))
    answers = sampler.choose(requests)
    wins = []
    for straight, swapped in zip(answers[::2], answers[1::2], strict=True):
        if isinstance(straight, Failure) or isinstance(swapped, Failure):
            continue
        probability = ranking.debiased_probability(
            ranking.judge_probability(*straight.logprobs),
            ranking.judge_probability(*swapped.logprobs),
        )
        wins.append(1.0 if probability > 0.5 else 0.5 if probability == 0.5 else 0.0)
    return RankerQuality("judge", fmean(wins) if wins else 0.0, len(wins))


def as_json(items: Sequence[TraitShift] | Sequence[RankerQuality]) -> list[dict[str, object]]:
    """For a manifest's summary."""
    return [asdict(item) for item in items]
