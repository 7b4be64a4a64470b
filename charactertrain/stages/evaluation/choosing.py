"""Revealed preferences of an evaluation: every arm is offered traits, and its replies are read."""

from collections.abc import Mapping, Sequence
from functools import partial

from charactertrain.artifacts import FileEntry, Json
from charactertrain.config import RunConfig
from charactertrain.evaluation import effects, preference_results
from charactertrain.records import Offer, OfferReply, TraitChoice, from_table, to_table
from charactertrain.runtime.chunks import FileSource
from charactertrain.runtime.dataflow import ChunkJob, Produced
from charactertrain.runtime.sampling import SamplerSource
from charactertrain.stages.context import Context, response_settings
from charactertrain.stages.evaluation import trait_choices
from charactertrain.stages.evaluation.trait_choices import (
    JudgeReader,
    LikelihoodReader,
    OfferWriter,
)
from charactertrain.stages.rankings.judge_source import judge_source
from charactertrain.storage import Directory

_CHOICES = "trait_choices"


def run_choices(
    directory: Directory,
    context: Context,
    trait_ids: Sequence[str],
    samplers: Mapping[str, SamplerSource],
    base: SamplerSource,
) -> list[str]:
    """Offer traits to every arm and read what it took up; returns files of choices and rejects.

    Args:
        directory: Of the evaluation; what is there already is not made again.
        context: Of the run.
        trait_ids: Of the constitution.
        samplers: By arm, `base` among them.
        base: What replies are read by, unless a judge reads them.
    """
    offered = _offers(trait_ids, context.config)
    if not offered:
        return []
    files: list[str] = []
    rejects: list[str] = []
    for arm, sampler in samplers.items():
        # What a reading is worth is told by replies of the base, which does as it is told.
        asked = [offer for offer in offered if arm == "base" or offer.condition != "told"]
        produced = _sample(directory, context, arm, asked, sampler)
        files += produced.files
        rejects += produced.reject_files
    produced = _read(directory, context, files, base)
    return [*produced.files, *rejects, *produced.reject_files]


def report(
    directory: Directory, names: Sequence[str], trait_ids: Sequence[str], config: RunConfig
) -> Json:
    """Results from the files that `run_choices` returned; empty where nothing was offered."""
    offered = _offers(trait_ids, config)
    if not offered:
        return {}
    choices = [
        row
        for name in names
        if name.startswith(f"{_CHOICES}/")
        for row in from_table(directory.read_table(name), TraitChoice)
    ]
    return preference_results.preference_results(
        choices,
        offered,
        trait_choices.words_of(trait_ids),
        effects.Bootstrap(config.evaluation.num_resamples, config.seed),
    )


def _offers(trait_ids: Sequence[str], config: RunConfig) -> list[Offer]:
    pairs_per_trait = config.evaluation.preferences.pairs_per_trait
    if pairs_per_trait == 0:
        return []
    return trait_choices.offers(trait_ids, pairs_per_trait=pairs_per_trait, seed=config.seed)


def _sample(
    directory: Directory,
    context: Context,
    arm: str,
    offered: Sequence[Offer],
    sampler: SamplerSource,
) -> Produced:
    """The arm's replies."""
    config = context.config
    name = f"offers_{arm}/part-000000.parquet"
    directory.write_table(name, to_table(offered, Offer))
    settings = response_settings(
        temperature=1.0, max_tokens=config.evaluation.preferences.max_tokens, ending="natural"
    )
    entry = FileEntry(name, 0, "", len(offered))
    return context.session.run(
        ChunkJob(
            name=f"evaluation: trait choices of {arm}",
            source=FileSource(directory, (entry,), Offer, whole_files=False),
            target=directory,
            table=f"offer_replies_{arm}",
            result_type=OfferReply,
            make_processor=partial(
                OfferWriter,
                arm=arm,
                placement=config.model.trait_placement,
                settings=settings,
                seed=config.seed,
            ),
            sampler=sampler,
            max_reject_share=config.responses.max_reject_share,
            requests_per_row=1,
        )
    )


def _read(
    directory: Directory, context: Context, names: Sequence[str], base: SamplerSource
) -> Produced:
    """Which word each reply took up."""
    config = context.config
    entries = tuple(FileEntry(name, 0, "", directory.num_rows(name)) for name in names)
    is_judged = config.evaluation.preferences.judged
    by_likelihood = partial(LikelihoodReader, placement=config.model.trait_placement)
    return context.session.run(
        ChunkJob(
            name="evaluation: reading trait choices",
            source=FileSource(directory, entries, OfferReply, whole_files=True),
            target=directory,
            table=_CHOICES,
            result_type=TraitChoice,
            make_processor=JudgeReader if is_judged else by_likelihood,
            sampler=judge_source(context, config.evaluation.judge) if is_judged else base,
            max_reject_share=config.responses.max_reject_share,
            requests_per_row=2,
        )
    )
