"""prompts: the model writes messages for which each trait matters.

A plan of facets, kinds, personas, styles and lengths gives the coverage. What the filters take
away is asked for again, up to a limit. Splits are made before anything is written, of whole
facets: a facet is in one split, whichever traits share it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from charactertrain.artifacts import Outcome, read_rows
from charactertrain.exceptions import SamplingError
from charactertrain.pipeline import Work
from charactertrain.records import (
    Draft,
    Facet,
    Probe,
    Trait,
    from_table,
    to_table,
)
from charactertrain.runtime.chunks import ComputedSource
from charactertrain.runtime.dataflow import ChunkJob, Produced, count_reasons
from charactertrain.runtime.sampling import SamplerSource
from charactertrain.stages import checks
from charactertrain.stages.context import Context, response_settings
from charactertrain.stages.prompts import files as prompt_files
from charactertrain.stages.prompts import plan as prompt_plan
from charactertrain.stages.prompts import selection as prompt_selection
from charactertrain.stages.prompts.selection import Selection
from charactertrain.stages.prompts.writer import PromptWriter, drafts, topics_of_traits

_FACETS = "facets/part-000000.parquet"
_PROBES = "probes/part-000000.parquet"
_MIN_YIELD = 0.2
"""A facet that yields less is not asked for more than this makes up for."""


def run(work: Work, context: Context) -> Outcome:
    """Check that the character shows, then write, filter and split the prompts."""
    traits = read_rows(*work.inputs["traits"], "traits", Trait)
    model = str(context.model_directory)
    sampler = context.session.sampler(model, model)
    # Where no character is shown, none can show when it is asked for.
    is_checked = context.config.model.traits_shown != "none"
    shifts = _template_check(work, context, sampler, traits) if is_checked else None
    facets = _facets(work, context, sampler, traits)
    own = _own_drafts(work, context, traits, facets)
    wanted = _wanted(context, traits, facets)

    synthesis = _Synthesis(work, context, sampler, traits, facets, wanted)
    selection, rounds, num_asked = synthesis.run(own)
    files, duplicates = prompt_selection.write_prompts(selection, work.directory)
    _check_splits(work, files, traits)
    rejects = [*(name for each in rounds for name in each.reject_files), *duplicates]
    coverage = prompt_selection.coverage(work.directory, files, facets, wanted)
    missing = sum(max(0, each["wanted"] - each["found"]) for each in coverage["facets"])
    if missing:
        context.session.console.print(
            f"  {missing} of {sum(wanted)} prompts are missing after {len(rounds)} rounds; the "
            "report says where",
            style="yellow",
        )
    return Outcome(
        files=(_FACETS, *([_PROBES] if is_checked else []), *files, *rejects),
        rejects=count_reasons(work.directory, rejects),
        summary={
            "template_check": None if shifts is None else checks.as_json(shifts),
            "asked": num_asked,
            "rounds": len(rounds),
            "missing": missing,
            "coverage": coverage,
            "engines": rounds[0].engines if rounds else {},
        },
    )


def _template_check(
    work: Work, context: Context, source: SamplerSource, traits: list[Trait]
) -> list[checks.TraitShift]:
    config = context.config
    if work.directory.exists(_PROBES):
        probes = from_table(work.directory.read_table(_PROBES), Probe)
    else:
        sampler = source.open()
        settings = response_settings(
            temperature=config.responses.temperature,
            max_tokens=config.responses.max_tokens,
            ending=config.responses.ending,
        )
        probes = checks.write_probes(
            sampler,
            traits,
            settings,
            placement=config.model.trait_placement,
            num_messages=config.prompts.check_prompts,
            seed=config.seed,
        )
        sampler.close()
        work.directory.write_table(_PROBES, to_table(probes, Probe))
    shifts = checks.trait_shifts(probes, traits)
    checks.check_template(shifts, min_shift=config.prompts.min_trait_shift)
    return shifts


def _facets(
    work: Work, context: Context, source: SamplerSource, traits: Sequence[Trait]
) -> list[Facet]:
    """The facets of all traits and kinds, named once and then kept."""
    config = context.config
    if config.prompts.file_use == "replace":
        # Nothing is asked for, so nothing needs a facet.
        work.directory.write_table(_FACETS, to_table([], Facet))
    if work.directory.exists(_FACETS):
        return from_table(work.directory.read_table(_FACETS), Facet)
    sampler = source.open()
    topics = topics_of_traits(
        sampler,
        traits,
        count=config.prompts.facets_per_trait,
        synthesis=config.model.prompt_synthesis,
        seed=config.seed,
    )
    sampler.close()
    facets = prompt_plan.facets(
        topics,
        list(config.prompts.kind_shares),
        validation_share=config.prompts.validation_share,
        test_share=config.prompts.test_share,
        seed=config.seed,
    )
    work.directory.write_table(_FACETS, to_table(facets, Facet))
    return facets


def _own_drafts(
    work: Work, context: Context, traits: Sequence[Trait], facets: Sequence[Facet]
) -> list[str]:
    """Files of drafts that the researcher's own prompts become."""
    config = context.config
    names = []
    batches = prompt_files.read_prompts(
        config.prompts,
        trait_ids=[trait.trait_id for trait in traits],
        splits={facet.family: facet.split for facet in facets},
        seed=config.seed,
    )
    for index, batch in enumerate(batches):
        names.append(f"drafts_own/part-{index:06d}.parquet")
        rows = drafts(batch, threshold=config.prompts.max_similarity)
        work.directory.write_table(names[-1], to_table(rows, Draft))
    return names


def _wanted(context: Context, traits: Sequence[Trait], facets: Sequence[Facet]) -> list[int]:
    section = context.config.prompts
    return prompt_plan.wanted_by_facet(
        facets, traits, per_trait=section.per_trait, shares=section.kind_shares
    )


@dataclass(frozen=True)
class _Synthesis:
    """The model's share of the stage: rounds of calls."""

    work: Work
    context: Context
    sampler: SamplerSource
    traits: Sequence[Trait]
    facets: Sequence[Facet]
    wanted: Sequence[int]
    """Messages of each facet."""

    def run(self, own: Sequence[str]) -> tuple[Selection, list[Produced], int]:
        """Rounds until each facet has what is wanted of it, or there were enough of them.

        Every round follows from the files of those before it, so a killed run goes on in its
        round.

        Args:
            own: Files of drafts of the researcher's own prompts.

        Returns:
            The drafts that are kept, what each round produced, and how many messages were asked
            for.
        """
        rounds: list[Produced] = []
        asked = [0] * len(self.facets)
        brought: Counter[tuple[str, str]] | None = None
        while True:
            names = [*own, *(name for each in rounds for name in each.files)]
            drafts_found = prompt_selection.read_drafts(self.work.directory, names)
            section = self.context.config.prompts
            selection = prompt_selection.select(drafts_found, max_similarity=section.max_similarity)
            kept = selection.kept_by_family()
            # Before the first round there are only the researcher's own.
            brought = kept if brought is None else brought
            ask = shortfall(self.facets, self.wanted, asked, kept, brought)
            if not sum(ask) or len(rounds) > section.max_top_ups:
                return selection, rounds, sum(asked)
            plan = self._plan(ask, asked)
            rounds.append(self.context.session.run(self._job(plan, len(rounds))))
            asked = [done + more for done, more in zip(asked, ask, strict=True)]

    def _plan(self, ask: Sequence[int], asked: Sequence[int]) -> prompt_plan.PromptPlan:
        config = self.context.config
        return prompt_plan.PromptPlan(
            self.facets,
            ask,
            first=asked,
            shape=prompt_plan.CallShape(
                num_messages=config.model.messages_per_call,
                languages=config.prompts.languages,
                has_axes=config.model.prompt_synthesis == "chat",
            ),
            seed=config.seed,
        )

    def _job(self, plan: prompt_plan.PromptPlan, number: int) -> ChunkJob:
        config = self.context.config
        return ChunkJob(
            name="prompts" if number == 0 else f"prompts: top-up {number}",
            source=ComputedSource(plan),
            target=self.work.directory,
            table=f"drafts_{number}",
            result_type=Draft,
            make_processor=partial(
                PromptWriter,
                traits={trait.trait_id: trait for trait in self.traits},
                section=config.prompts,
                synthesis=config.model.prompt_synthesis,
                seed=config.seed,
            ),
            sampler=self.sampler,
            # A top-up asks for what failed before, so the gate is the first round's.
            max_reject_share=1.0 if number else 1 - config.prompts.min_accepted_share,
            requests_per_row=1,
        )


def shortfall(
    facets: Sequence[Facet],
    wanted: Sequence[int],
    asked: Sequence[int],
    kept: Counter[tuple[str, str]],
    brought: Counter[tuple[str, str]],
) -> list[int]:
    """Messages to ask for of each facet, so that at its yield so far it gets what is missing.

    Args:
        facets: That messages are asked for.
        wanted: Messages of each facet.
        asked: Messages of each facet that the model was asked for so far.
        kept: Prompts by (kind, family).
        brought: Those of them that the model did not write.
    """
    more = []
    for facet, number, tried in zip(facets, wanted, asked, strict=True):
        key = (facet.kind, facet.family)
        found = kept[key]
        share = max((found - brought[key]) / tried if tried else 1.0, _MIN_YIELD)
        more.append(round(max(0, number - found) / min(1.0, share) + 0.499))
    return more


def _check_splits(work: Work, names: Sequence[str], traits: Sequence[Trait]) -> None:
    """Raise SamplingError if a trait has too few prompts in a split."""
    counts: Counter[tuple[str, str]] = Counter()
    for table in work.directory.read_tables(names, ["trait_id", "split"]):
        pairs = zip(table["trait_id"].to_pylist(), table["split"].to_pylist(), strict=True)
        counts.update(pairs)
    for trait in traits:
        for split, fewest in prompt_plan.MIN_PROMPTS.items():
            found = counts[trait.trait_id, split]
            if found < fewest:
                raise SamplingError(
                    f"trait {trait.trait_id!r}: expected {fewest} {split} prompts or more after "
                    f"the filters, found {found}. Raise prompts.per_trait or prompts.max_top_ups, "
                    "loosen the filters of prompts, bring more rows in prompts.file, or see "
                    "rejects/."
                )
