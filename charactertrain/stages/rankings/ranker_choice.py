"""The ranker check on pairs of known truth, and the choice of a ranker that follows from it."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from charactertrain.config import RankingsSection
from charactertrain.exceptions import ChoiceError, SamplingError
from charactertrain.records import Probe, Trait
from charactertrain.runtime.sampling import Sampler, SamplerSource
from charactertrain.stages import checks
from charactertrain.stages.rankings.comparisons import Ranker
from charactertrain.storage import Directory

_JUDGES = ("judge", "judge_listwise", "rating")
"""Rankers that ask questions, in the order in which `auto` considers them."""
_RANKER_CHECK = "ranker_check.json"


def considered(settings: RankingsSection) -> list[str]:
    """Names of the rankers that are checked: those that may be chosen or asked besides."""
    if settings.ranker == "auto":
        names = [*_JUDGES, "contrast"]
    elif settings.ranker == "ensemble":
        names = ["ensemble", *settings.ensemble]
    else:
        names = [settings.ranker]
    return list(dict.fromkeys([*names, *settings.second_opinions]))


def check_and_choose(
    directory: Directory,
    check: Callable[[], list[checks.RankerQuality]],
    settings: RankingsSection,
) -> tuple[list[checks.RankerQuality], str]:
    """How good each ranker is, and the one that ranks: once, so that a resumed run has no other.

    A check that leads to no choice is not kept: what the rankers run on may be mended.

    Raises:
        SamplingError: See `choose_ranker`.
    """
    if directory.exists(_RANKER_CHECK):
        qualities = checks.qualities_from_json(directory.read_bytes(_RANKER_CHECK))
        return qualities, choose_ranker(qualities, settings)
    qualities = check()
    chosen = choose_ranker(qualities, settings)
    directory.write_bytes(_RANKER_CHECK, checks.qualities_to_json(qualities))
    return qualities, chosen


def ranker_check(
    source: SamplerSource,
    make: "partial[Ranker]",
    probes: Sequence[Probe],
    traits: dict[str, Trait],
    settings: RankingsSection,
) -> list[checks.RankerQuality]:
    """How good the rankers are that the settings may choose or ask.

    Raises:
        ChoiceError: The ranker that the settings name cannot read its letters.
    """
    qualities = []
    with contextlib.ExitStack() as opened:
        sampler: Sampler | None = None
        for name in considered(settings):
            if name == "contrast":
                qualities.append(checks.contrast_quality(probes))
                continue
            if sampler is None:
                sampler = opened.enter_context(contextlib.closing(source.open()))
            try:
                qualities.append(checks.ranker_quality(name, make(name, sampler), probes, traits))
            except ChoiceError as error:
                if name in (settings.ranker, *settings.ensemble) and settings.ranker != "auto":
                    raise
                # There are other rankers; the manifest says that this one gave no answer.
                qualities.append(checks.no_quality(name, str(error)))
    return qualities


def choose_ranker(qualities: Sequence[checks.RankerQuality], settings: RankingsSection) -> str:
    """The ranker to use; raises SamplingError when none is good enough on known pairs.

    `auto` takes the first judge whose accuracy is high enough at the lower end of its interval, so
    that it is no accident of few pairs; where there is none, the contrast.
    """
    accuracy = {quality.ranker: quality.accuracy for quality in qualities if quality.num_pairs}
    chosen: str = settings.ranker
    if settings.ranker == "auto":
        able = [
            quality.ranker
            for quality in qualities
            if quality.ranker in _JUDGES
            and quality.num_pairs
            and quality.ci_low >= settings.min_judge_accuracy
        ]
        chosen = able[0] if able else "contrast"
    if accuracy.get(chosen, 0.0) < settings.min_accuracy:
        numbers = ", ".join(f"{q.ranker} {q.accuracy:.2f} of {q.num_pairs}" for q in qualities)
        failures = {q.ranker: q.failure for q in qualities if q.failure}
        because = f" {chosen} said: {failures[chosen]}" if chosen in failures else ""
        raise SamplingError(
            f"ranker check: {chosen} tells responses written with a trait from those without in "
            f"too few cases ({numbers}; expected {settings.min_accuracy:.2f}).{because} Labels "
            "from it would be noise. Use a more capable model, reword the traits, or show them "
            "elsewhere (model.trait_placement)."
        )
    return chosen
