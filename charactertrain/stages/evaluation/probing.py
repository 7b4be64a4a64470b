"""The probes of an evaluation: every arm is put through scripts, and its replies are measured."""

from collections.abc import Mapping, Sequence
from functools import partial

from charactertrain.artifacts import FileEntry, Json
from charactertrain.config import RunConfig
from charactertrain.config.evaluation import ProbesSection
from charactertrain.pipeline import Work
from charactertrain.probes import file as probe_file
from charactertrain.probes import results as probe_results
from charactertrain.probes.descriptions import ON_TRAIT, Description
from charactertrain.probes.measures import EVERY_TRAIT
from charactertrain.records import (
    Prompt,
    Script,
    ScriptDraft,
    ScriptReply,
    Trait,
    from_table,
    to_table,
)
from charactertrain.runtime.chunks import FileSource
from charactertrain.runtime.dataflow import ChunkJob
from charactertrain.runtime.sampling import SamplerSource
from charactertrain.stages.context import Context, response_settings, traits_prompted
from charactertrain.stages.evaluation import probe_scripts
from charactertrain.stages.evaluation.script_replies import (
    ScriptRunner,
    ScriptScorer,
    ShownCharacter,
)
from charactertrain.storage import Directory

_REPLIES = "probe_replies"


def run_probes(
    work: Work,
    context: Context,
    prompts: Sequence[Prompt],
    traits: Mapping[str, Trait],
    samplers: Mapping[str, SamplerSource],
    base: SamplerSource,
) -> list[str]:
    """Put every arm through the configured probes; returns the files of replies and rejects.

    Args:
        work: Of the evaluation; what is there already is not made again.
        context: Of the run.
        prompts: Held out, and such as no arm was trained on.
        traits: Of the constitution, by id.
        samplers: By arm, `base` among them. `prompted` is shown the character.
        base: What replies are scored under.
    """
    pass_ = _ProbePass(work, context, traits)
    section = context.config.evaluation.probes
    chosen = probe_scripts.choose(
        prompts, list(traits.values()), per_trait=section.prompts_per_trait
    )
    scripts = [
        *probe_scripts.from_prompts(section.names, chosen),
        *_from_files(section),
        *_own_general(section, prompts),
    ]
    if not scripts:
        return []
    drafts, rejects = pass_.sample("base", "probe_drafts_base", scripts, samplers["base"])
    if probe_scripts.PREFILL in section.names:
        replies = pass_.plain_replies(drafts)
        given = probe_scripts.prefilled(chosen, replies)
        more = pass_.sample("base", "probe_prefill_drafts", given, samplers["base"])
        drafts, rejects = (*drafts, *more[0]), (*rejects, *more[1])
        scripts += given
    for arm, sampler in samplers.items():
        if arm != "base":
            more = pass_.sample(arm, f"probe_drafts_{arm}", scripts, sampler)
            drafts, rejects = (*drafts, *more[0]), (*rejects, *more[1])
    return [*pass_.score(drafts, base), *rejects]


def report(directory: Directory, names: Sequence[str], config: RunConfig) -> Json:
    """Results by probe, from the files that `run_probes` returned."""
    replies = [
        row
        for name in names
        if name.startswith(f"{_REPLIES}/")
        for row in from_table(directory.read_table(name), ScriptReply)
    ]
    section = config.evaluation
    return probe_results.probe_results(
        replies,
        _descriptions(section.probes),
        num_resamples=section.num_resamples,
        seed=config.seed,
    )


def _files(section: ProbesSection) -> dict[str, probe_file.ProbeFile]:
    return probe_file.load(section.names, section.files)


def _from_files(section: ProbesSection) -> list[Script]:
    files = _files(section)
    return [
        script for name, probe in files.items() for script in probe_scripts.from_file(name, probe)
    ]


def _own_general(section: ProbesSection, prompts: Sequence[Prompt]) -> list[Script]:
    if probe_scripts.DOSE not in section.names:
        return []
    own = probe_scripts.general(prompts, count=section.prompts_per_trait)
    return probe_scripts.on_general(own, probe=probe_scripts.DOSE, measure=EVERY_TRAIT)


def _descriptions(section: ProbesSection) -> dict[str, Description]:
    files = {
        name: Description(probe.title, probe.question, probe.better)
        for name, probe in _files(section).items()
    }
    return probe_scripts.MADE_FROM_PROMPTS | files


class _ProbePass:
    """The jobs of the probes."""

    def __init__(self, work: Work, context: Context, traits: Mapping[str, Trait]) -> None:
        self._work, self._context, self._traits = work, context, traits

    def sample(
        self, arm: str, table: str, scripts: Sequence[Script], sampler: SamplerSource
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Files of drafts and of rejects."""
        config, directory = self._context.config, self._work.directory
        name = f"{table.replace('drafts', 'scripts')}/part-000000.parquet"
        directory.write_table(name, to_table(scripts, Script))
        model = config.model
        mode = traits_prompted(model.traits_shown)
        showing = ShownCharacter(dict(self._traits), mode, model.trait_placement)
        settings = response_settings(
            temperature=1.0, max_tokens=config.evaluation.probes.max_tokens, ending="natural"
        )
        job = ChunkJob(
            name=f"evaluation: probes of {arm}",
            source=FileSource(
                directory, (FileEntry(name, 0, "", len(scripts)),), Script, whole_files=False
            ),
            target=directory,
            table=table,
            result_type=ScriptDraft,
            make_processor=partial(
                ScriptRunner,
                arm=arm,
                showing=showing if arm == "prompted" else None,
                settings=settings,
                seed=config.seed,
            ),
            sampler=sampler,
            # A long conversation may outgrow the context; the results count what is left out.
            max_reject_share=1.0,
            requests_per_row=1,
        )
        produced = self._context.session.run(job)
        return produced.files, produced.reject_files

    def plain_replies(self, names: Sequence[str]) -> dict[str, str]:
        """The base's to the prompts alone, by prompt id."""
        return {
            draft.cluster: draft.text
            for name in names
            for draft in from_table(self._work.directory.read_table(name), ScriptDraft)
            if draft.probe == ON_TRAIT
        }

    def score(self, names: Sequence[str], base: SamplerSource) -> list[str]:
        """Files of replies and of rejects."""
        directory = self._work.directory
        entries = tuple(FileEntry(name, 0, "", directory.num_rows(name)) for name in names)
        job = ChunkJob(
            name="evaluation: contrast of probes",
            source=FileSource(directory, entries, ScriptDraft, whole_files=True),
            target=directory,
            table=_REPLIES,
            result_type=ScriptReply,
            make_processor=partial(
                ScriptScorer,
                traits=dict(self._traits),
                placement=self._context.config.model.trait_placement,
            ),
            sampler=base,
            max_reject_share=1.0,
            requests_per_row=2,
        )
        produced = self._context.session.run(job)
        return [*produced.files, *produced.reject_files]
