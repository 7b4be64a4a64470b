"""The passes of an evaluation over its rows, each resumed by the files that it leaves."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from charactertrain.artifacts import FileEntry, Json, Outcome
from charactertrain.pipeline import Work
from charactertrain.records import (
    EvaluationSample,
    Judgement,
    Matchup,
    Prompt,
    Reply,
    Trait,
    from_table,
    to_table,
)
from charactertrain.runtime.chunks import FileSource
from charactertrain.runtime.dataflow import ChunkJob, Processor, count_reasons
from charactertrain.runtime.sampling import Sampler, SamplerSource
from charactertrain.seeds import derive_seed
from charactertrain.stages.context import Context, response_settings, traits_prompted
from charactertrain.stages.evaluation import choosing, probing
from charactertrain.stages.evaluation.arms import Arm
from charactertrain.stages.evaluation.replies import Conversing, Prompted, ReplyWriter, plain
from charactertrain.stages.evaluation.reply_judge import ReplyJudge, matchups, quality_matchups
from charactertrain.stages.evaluation.reply_scores import ReplyScorer, RewardColumn, Rewarder
from charactertrain.stages.evaluation.trait_shower import TraitShower
from charactertrain.stages.preference_model.stage import GOLD
from charactertrain.stages.rankings.judge_source import judge_source

Row = TypeVar("Row")
Lengths = dict[str, dict[str, list[float]]]
_PROBES = "probe_replies"
_CHOICES = "trait_choices"
_SHOWN = "shown_"
"""Begins the names of the tables of replies that were written with each trait shown."""


@dataclass(frozen=True)
class _Pass:
    """One job of the evaluation."""

    title: str
    table: str
    """That its rows go to."""
    result_type: type
    make_processor: Callable[[Sampler], Processor]
    sampler: SamplerSource
    requests_per_row: int


class Passes:
    """Replies of every arm, then their scores, rewards and judgements, in this order."""

    def __init__(
        self, work: Work, context: Context, traits: Mapping[str, Trait], opened: ExitStack
    ) -> None:
        """Weights that are copied to local disk stay there until `opened` is left."""
        self._work, self._context, self._traits, self._opened = work, context, traits, opened
        self._section = context.config.evaluation
        self._base = str(context.model_directory)
        self._files: dict[str, tuple[str, ...]] = {}
        """By table, in the order in which tables were made."""
        self._rejects: list[str] = []
        self._samplers: dict[str, SamplerSource] = {}

    def reply(self, arm: Arm, prompts: Sequence[Prompt]) -> None:
        """Sample the arm's replies."""
        one = _Pass(
            title=f"{arm.name} replies",
            table=f"replies_{arm.name}",
            result_type=Reply,
            make_processor=partial(
                ReplyWriter,
                arm=arm.name,
                conversing=self._conversing(arm),
                count=self._section.responses_per_prompt,
                settings=response_settings(
                    temperature=1.0, max_tokens=self._section.max_tokens, ending="natural"
                ),
                seed=self._context.config.seed,
            ),
            sampler=self._sampler(arm),
            requests_per_row=self._section.responses_per_prompt,
        )
        self._run(one, self._written(f"questions_{arm.name}", prompts, Prompt))

    def _conversing(self, arm: Arm) -> Conversing:
        if arm.kind != "prompted":
            return plain
        model = self._context.config.model
        mode = traits_prompted(model.traits_shown)
        return Prompted(dict(self._traits), mode, model.trait_placement)

    def _sampler(self, arm: Arm) -> SamplerSource:
        """The base's engines, with the arm's weights."""
        if arm.name not in self._samplers:
            weights = self._base
            if arm.kind not in ("base", "prompted"):
                own, _ = self._work.inputs["policy"]
                policy = own if arm.source is None else arm.source.child("policy")
                weights = str(self._opened.enter_context(policy.child("model").on_local_disk()))
            self._samplers[arm.name] = self._context.session.sampler(self._base, weights)
        return self._samplers[arm.name]

    def show_each(self, prompts: Sequence[Prompt]) -> None:
        """The base's replies to the prompts with every trait shown; none where there are none."""
        if not prompts:
            return
        one = _Pass(
            title="replies with each trait shown",
            table=f"{_SHOWN}replies",
            result_type=Reply,
            make_processor=partial(
                TraitShower,
                traits=tuple(self._traits.values()),
                placement=self._context.config.model.trait_placement,
                settings=response_settings(
                    temperature=1.0, max_tokens=self._section.max_tokens, ending="natural"
                ),
                seed=self._context.config.seed,
            ),
            sampler=self._context.session.sampler(self._base, self._base),
            requests_per_row=len(self._traits),
        )
        self._run(one, self._written(f"{_SHOWN}questions", prompts, Prompt))

    def natural_lengths(
        self, arms: Sequence[Arm], asked: Mapping[str, Sequence[Prompt]]
    ) -> Lengths | None:
        """Tokens by arm and prompt of replies that end by themselves; None if not asked for.

        Of every arm but the one that is shown the trait, on the same prompts as far as it is asked
        them.
        """
        if self._section.length_prompts == 0:
            return None
        by_length = sorted(asked["base"], key=lambda p: derive_seed("length", p.prompt_id))
        chosen = {prompt.prompt_id for prompt in by_length[: self._section.length_prompts]}
        return {
            arm.name: self._lengths(arm, [p for p in asked[arm.name] if p.prompt_id in chosen])
            for arm in arms
            if arm.kind != "prompted"
        }

    def _lengths(self, arm: Arm, prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """A reply a prompt; those that are rejected are rejects of the stage."""
        table = f"natural_{arm.name}"
        one = _Pass(
            title=f"{arm.name} natural lengths",
            table=table,
            result_type=Reply,
            make_processor=partial(
                ReplyWriter,
                arm=arm.name,
                conversing=plain,
                count=1,
                settings=response_settings(
                    temperature=1.0, max_tokens=self._section.length_max_tokens, ending="natural"
                ),
                seed=self._context.config.seed,
            ),
            sampler=self._sampler(arm),
            requests_per_row=1,
        )
        self._run(one, self._written(f"natural_questions_{arm.name}", prompts, Prompt))
        replies = self.rows(table, Reply)
        return {reply.prompt_id: [float(len(reply.token_ids))] for reply in replies}

    def score(self) -> None:
        """Contrast, detector and KL of every reply, under the frozen base."""
        names = [
            n for table, own in self._files.items() if table.startswith("replies_") for n in own
        ]
        self._score(names, "contrast", "scored")
        shown = self._files.get(f"{_SHOWN}replies")
        if shown:
            self._score(shown, "contrast with each trait shown", f"{_SHOWN}scored")

    def _score(self, names: Sequence[str], title: str, table: str) -> None:
        one = _Pass(
            title=title,
            table=table,
            result_type=EvaluationSample,
            make_processor=partial(
                ReplyScorer,
                traits=dict(self._traits),
                placement=self._context.config.model.trait_placement,
            ),
            sampler=self._context.session.sampler(self._base, self._base),
            requests_per_row=2,
        )
        self._run(one, self._source(names, Reply))

    def reward(self) -> None:
        """The preference model's reward of every reply, and the gold model's where there is one."""
        _, manifest = self._work.inputs["preference_model"]
        has_gold = GOLD in manifest.summary["levels"]
        self._reward("model", "reward", "scored", "rewarded" if has_gold else "samples")
        if has_gold:
            self._reward(GOLD, "gold_reward", "rewarded", "samples")

    def _reward(self, model: str, column: RewardColumn, scored: str, table: str) -> None:
        source, _ = self._work.inputs["preference_model"]
        weights = str(self._opened.enter_context(source.child(model).on_local_disk()))
        title = "rewards" if model == "model" else f"{model} rewards"
        titles = {"": title, _SHOWN: f"{title} with each trait shown"}
        for prefix in ("", _SHOWN):
            names = self._files.get(f"{prefix}{scored}")
            if not names:
                continue
            one = _Pass(
                title=titles[prefix],
                table=f"{prefix}{table}",
                result_type=EvaluationSample,
                make_processor=partial(Rewarder, tokenizer_directory=self._base, column=column),
                sampler=self._context.session.sampler(weights, weights, kind="reward"),
                requests_per_row=1,
            )
            self._run(one, self._source(names, EvaluationSample))

    def judge(self) -> None:
        """Judgements of every arm against the base: by trait, and as answers."""
        judge = self._section.judge
        if judge.prompts_per_trait == judge.quality_prompts == 0:
            return
        samples = self.rows("samples", EvaluationSample)
        rows = matchups(samples, prompts_per_trait=judge.prompts_per_trait)
        rows += quality_matchups(samples, num_prompts=judge.quality_prompts)
        one = _Pass(
            title="judgements",
            table="judgements",
            result_type=Judgement,
            make_processor=partial(ReplyJudge, traits=dict(self._traits), ties=judge.ties),
            sampler=judge_source(self._context, judge),
            requests_per_row=2,
        )
        self._run(one, self._written("matchups", rows, Matchup))

    def probe(self, arms: Sequence[Arm], prompts: Sequence[Prompt]) -> None:
        """Every arm through the probes, of which some are made from the given prompts."""
        names = probing.run_probes(
            self._work,
            self._context,
            prompts,
            self._traits,
            {arm.name: self._sampler(arm) for arm in arms},
            self._context.session.sampler(self._base, self._base),
        )
        self._files[_PROBES] = tuple(name for name in names if not name.startswith("rejects/"))
        self._rejects += [name for name in names if name.startswith("rejects/")]

    def probe_report(self) -> Json:
        """Results by probe."""
        return probing.report(self._work.directory, self._files[_PROBES], self._context.config)

    def choose(self, arms: Sequence[Arm]) -> None:
        """Every arm is offered pairs of traits, and what it takes up is read."""
        names = choosing.run_choices(
            self._work.directory,
            self._context,
            list(self._traits),
            {arm.name: self._sampler(arm) for arm in arms},
            self._context.session.sampler(self._base, self._base),
        )
        self._files[_CHOICES] = tuple(name for name in names if not name.startswith("rejects/"))
        self._rejects += [name for name in names if name.startswith("rejects/")]

    def choice_report(self) -> Json:
        """Revealed preferences; empty where nothing was offered."""
        return choosing.report(
            self._work.directory,
            self._files[_CHOICES],
            list(self._traits),
            self._context.config,
        )

    def rows(self, table: str, row_type: type[Row]) -> list[Row]:
        """The rows of a pass; none where it was not made."""
        tables = (self._work.directory.read_table(name) for name in self._files.get(table, ()))
        return [row for found in tables for row in from_table(found, row_type)]

    def outcome(self, report: str, summary: Json) -> Outcome:
        """What the stage hands over: the report, samples, judgements and all rejects."""
        tables = ("samples", "judgements", f"{_SHOWN}samples", _CHOICES, _PROBES)
        kept = [name for table in tables for name in self._files.get(table, ())]
        return Outcome(
            files=(report, *kept, *self._rejects),
            rejects=count_reasons(self._work.directory, self._rejects),
            summary=summary,
        )

    def _run(self, one: _Pass, source: FileSource) -> None:
        produced = self._context.session.run(
            ChunkJob(
                name=f"evaluation: {one.title}",
                source=source,
                target=self._work.directory,
                table=one.table,
                result_type=one.result_type,
                make_processor=one.make_processor,
                sampler=one.sampler,
                max_reject_share=self._context.config.responses.max_reject_share,
                requests_per_row=one.requests_per_row,
            )
        )
        self._files[one.table] = produced.files
        self._rejects += produced.reject_files

    def _written(self, table: str, rows: Sequence[object], row_type: type) -> FileSource:
        """The rows as a source whose chunks are of the size that engines work on."""
        name = f"{table}/part-000000.parquet"
        self._work.directory.write_table(name, to_table(rows, row_type))
        entry = FileEntry(name, 0, "", len(rows))
        return FileSource(self._work.directory, (entry,), row_type, whole_files=False)

    def _source(self, names: Sequence[str], row_type: type) -> FileSource:
        """The files of an earlier pass, one chunk each."""
        directory = self._work.directory
        entries = tuple(FileEntry(name, 0, "", directory.num_rows(name)) for name in names)
        return FileSource(directory, entries, row_type, whole_files=True)
