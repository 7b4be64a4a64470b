"""evaluation: base against policy on held-out prompts, no trait shown, through one sampler pool."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from charactertrain import chat, measures
from charactertrain.artifacts import FileEntry, Outcome, read_rows
from charactertrain.models import loading
from charactertrain.pipeline import Work
from charactertrain.records import (
    EvaluationSample,
    Prompt,
    Reject,
    Reply,
    Trait,
    from_table,
    to_table,
)
from charactertrain.runtime.chunks import FileSource
from charactertrain.runtime.dataflow import ChunkJob, count_reasons
from charactertrain.runtime.sampling import (
    Sample,
    Sampler,
    SampleRequest,
    SamplerSource,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.stages.context import Context, response_settings
from charactertrain.statistics import (
    Difference,
    cluster_bootstrap_difference,
    cluster_jackknife_statistic,
    values_by_cluster,
)
from charactertrain.templates import (
    REFERENCE_VARIANT,
    plain_conversation,
    response_conversation,
)

ARMS = ("base", "policy")


def run(work: Work, context: Context) -> Outcome:
    """Sample both arms, measure every reply, and compare."""
    config = context.config
    traits = {t.trait_id: t for t in read_rows(*work.inputs["traits"], "traits", Trait)}
    prompts = [
        p for p in read_rows(*work.inputs["prompts"], "prompts", Prompt) if p.split == "test"
    ]
    work.directory.write_table("questions/part-000000.parquet", to_table(prompts, Prompt))
    base = str(context.model_directory)
    policy_artifact, _ = work.inputs["policy"]
    reward_artifact, _ = work.inputs["preference_model"]
    with (
        policy_artifact.child("model").on_local_disk() as policy,
        reward_artifact.child("model").on_local_disk() as preference_model,
    ):
        samplers = {
            "base": context.session.sampler(base, base),
            "policy": context.session.sampler(base, str(policy)),
        }
        names = _sample_arms(work, context, len(prompts), samplers)
        natural = _natural_lengths(work, context, prompts, samplers)
        scored = _contrast_scores(work, context, names, samplers["base"], traits)
        rewards = context.session.sampler(
            str(preference_model), str(preference_model), kind="reward"
        )
        names += _measure(work, context, scored, rewards)
    samples = [
        row
        for name in names
        if name.startswith("samples/")
        for row in from_table(work.directory.read_table(name), EvaluationSample)
    ]
    num_resamples = config.evaluation.num_resamples
    report = compare(samples, natural, num_resamples=num_resamples, seed=config.seed)
    work.directory.write_bytes("report.json", json.dumps(report, indent=2).encode())
    files = [n for n in names if n.startswith(("samples/", "rejects/"))]
    return Outcome(
        files=("report.json", *files),
        rejects=count_reasons(work.directory, files),
        summary={
            "max_tokens": config.evaluation.max_tokens,
            "length_max_tokens": config.evaluation.length_max_tokens,
            "num_resamples": num_resamples,
        },
    )


def _sample_arms(
    work: Work, context: Context, num_prompts: int, samplers: Mapping[str, SamplerSource]
) -> list[str]:
    """Replies of each arm; the same seeds in both, so that arms differ by their weights alone."""
    evaluation = context.config.evaluation
    questions = (FileEntry("questions/part-000000.parquet", 0, "", num_prompts),)
    names = []
    for arm in ARMS:
        job = ChunkJob(
            name=f"evaluation: {arm} replies",
            source=FileSource(work.directory, questions, Prompt, whole_files=False),
            target=work.directory,
            table=f"replies_{arm}",
            result_type=Reply,
            make_processor=partial(
                ReplyWriter,
                arm=arm,
                count=evaluation.responses_per_prompt,
                settings=response_settings(
                    temperature=1.0,
                    max_tokens=evaluation.max_tokens,
                    ending="natural",
                ),
                seed=context.config.seed,
            ),
            sampler=samplers[arm],
            max_reject_share=context.config.responses.max_reject_share,
            requests_per_row=evaluation.responses_per_prompt,
        )
        produced = context.session.run(job)
        names += [*produced.files, *produced.reject_files]
    return names


class ReplyWriter:
    """Samples replies of one arm."""

    def __init__(
        self, sampler: Sampler, *, arm: str, count: int, settings: SamplingSettings, seed: int
    ) -> None:
        """`count` replies per prompt."""
        self._sampler, self._arm, self._count = sampler, arm, count
        self._settings, self._seed = settings, seed

    def process(self, rows: list[Prompt]) -> tuple[list[Reply], list[Reject]]:
        """Replies, and rejects for prompts that do not fit the context."""
        requests, prompts = [], []
        for prompt in rows:
            for index in range(self._count):
                sample_id = stable_id(self._arm, prompt.prompt_id, index)
                seed = derive_seed(self._seed, "evaluation", prompt.prompt_id, index)
                requests.append(SampleRequest(sample_id, plain_conversation(prompt.text), seed))
                prompts.append(prompt)
        replies, rejects = [], []
        results = self._sampler.sample(requests, self._settings)
        for prompt, result in zip(prompts, results, strict=True):
            if not isinstance(result, Sample):
                reject = (prompt.trait_id, "evaluation", result.reason, result.detail)
                rejects.append(Reject(result.request_id, *reject))
                continue
            replies.append(
                Reply(
                    sample_id=result.request_id,
                    prompt_id=prompt.prompt_id,
                    trait_id=prompt.trait_id,
                    arm=self._arm,
                    prompt=prompt.text,
                    text=result.text,
                    token_ids=result.token_ids,
                    sequence_logprob=result.sequence_logprob,
                    finish_reason=result.finish_reason,
                )
            )
        return replies, rejects


def _contrast_scores(
    work: Work,
    context: Context,
    names: Sequence[str],
    base: SamplerSource,
    traits: dict[str, Trait],
) -> list[str]:
    """Contrast and KL of every reply under the frozen base."""
    files = tuple(
        FileEntry(name, 0, "", work.directory.num_rows(name))
        for name in names
        if name.startswith("replies_")
    )
    job = ChunkJob(
        name="evaluation: contrast",
        source=FileSource(work.directory, files, Reply, whole_files=True),
        target=work.directory,
        table="scored",
        result_type=EvaluationSample,
        make_processor=partial(
            ReplyScorer, traits=traits, placement=context.config.model.trait_placement
        ),
        sampler=base,
        max_reject_share=context.config.responses.max_reject_share,
        requests_per_row=2,
    )
    produced = context.session.run(job)
    return [*produced.files, *produced.reject_files]


class ReplyScorer:
    """Scores replies under the base, with and without the trait."""

    def __init__(self, sampler: Sampler, *, traits: dict[str, Trait], placement: str) -> None:
        """`sampler` holds the base's weights."""
        self._sampler, self._traits, self._placement = sampler, traits, placement

    def process(self, rows: list[Reply]) -> tuple[list[EvaluationSample], list[Reject]]:
        """Samples with contrast, detector and KL; the reward is filled in later."""
        rejects = [
            Reject(row.sample_id, row.trait_id, "evaluation", "empty", "the reply has no tokens")
            for row in rows
            if not row.token_ids
        ]
        replies = [row for row in rows if row.token_ids]
        scores = iter(self._sampler.score([r for reply in replies for r in self._requests(reply)]))
        samples = []
        for reply in replies:
            shown, plain = next(scores), next(scores)
            if not isinstance(shown, Score) or not isinstance(plain, Score):
                why = ("evaluation", "not_scored", f"{shown} {plain}"[:200])
                rejects.append(Reject(reply.sample_id, reply.trait_id, *why))
                continue
            samples.append(self._sample(reply, sum(shown.logprobs), sum(plain.logprobs)))
        return samples, rejects

    def _requests(self, reply: Reply) -> list[ScoreRequest]:
        trait = self._traits[reply.trait_id]
        shown = response_conversation(
            reply.prompt, [trait], variant=REFERENCE_VARIANT, placement=self._placement
        )
        # Also the base's own replies, although they were drawn with these probabilities: in bf16
        # decoding and prefill differ, and an arm measured another way would differ by that.
        plain = plain_conversation(reply.prompt)
        return [ScoreRequest(reply.sample_id, each, reply.token_ids) for each in (shown, plain)]

    def _sample(self, reply: Reply, under_trait: float, under_base: float) -> EvaluationSample:
        """`under_trait` and `under_base`: the reply's log-probability under the base, in nats."""
        detector = self._traits[reply.trait_id].detector
        length = len(reply.token_ids)
        return EvaluationSample(
            sample_id=reply.sample_id,
            prompt_id=reply.prompt_id,
            trait_id=reply.trait_id,
            arm=reply.arm,
            prompt=reply.prompt,
            text=reply.text,
            num_tokens=length,
            finish_reason=reply.finish_reason,
            contrast=(under_trait - under_base) / length,
            detected=measures.detector_matches(detector, reply.text) if detector else None,
            reward=0.0,
            kl=(reply.sequence_logprob - under_base) / length,
        )


def _measure(
    work: Work, context: Context, names: Sequence[str], rewards: SamplerSource
) -> list[str]:
    """Samples with the preference model's reward filled in, and the rejects of both passes."""
    files = tuple(
        FileEntry(name, 0, "", work.directory.num_rows(name))
        for name in names
        if name.startswith("scored/")
    )
    job = ChunkJob(
        name="evaluation: rewards",
        source=FileSource(work.directory, files, EvaluationSample, whole_files=True),
        target=work.directory,
        table="samples",
        result_type=EvaluationSample,
        make_processor=partial(Rewarder, tokenizer_directory=str(context.model_directory)),
        sampler=rewards,
        max_reject_share=context.config.responses.max_reject_share,
        requests_per_row=1,
    )
    produced = context.session.run(job)
    earlier = (name for name in names if name.startswith("rejects/"))
    return [*produced.files, *produced.reject_files, *earlier]


class Rewarder:
    """Fills in the preference model's reward."""

    def __init__(self, sampler: Sampler, *, tokenizer_directory: str) -> None:
        """`sampler` serves the preference model."""
        from pathlib import Path

        self._sampler = sampler
        self._tokenizer: Any = loading.load_tokenizer(Path(tokenizer_directory))

    def process(self, rows: list[EvaluationSample]) -> tuple[list[EvaluationSample], list[Reject]]:
        """The same samples with rewards; none is rejected."""
        sequences = [chat.encode_exchange(row.prompt, row.text, self._tokenizer) for row in rows]
        rewards = self._sampler.rewards(sequences)
        return [replace(row, reward=r) for row, r in zip(rows, rewards, strict=True)], []


def _natural_lengths(
    work: Work, context: Context, prompts: Sequence[Prompt], samplers: Mapping[str, SamplerSource]
) -> dict[str, dict[str, list[float]]] | None:
    """Lengths by arm and prompt of replies that end by themselves; None if not asked for."""
    evaluation = context.config.evaluation
    if evaluation.length_prompts == 0:
        return None
    if work.directory.exists("natural_lengths.json"):
        found: dict[str, dict[str, list[float]]] = json.loads(
            work.directory.read_bytes("natural_lengths.json")
        )
        return found
    chosen = sorted(prompts, key=lambda p: derive_seed("length", p.prompt_id))
    chosen = chosen[: evaluation.length_prompts]
    settings = response_settings(
        temperature=1.0,
        max_tokens=evaluation.length_max_tokens,
        ending="natural",
    )
    lengths: dict[str, dict[str, list[float]]] = {}
    for arm in ARMS:
        sampler = samplers[arm].open()
        writer = ReplyWriter(sampler, arm=arm, count=1, settings=settings, seed=context.config.seed)
        replies, _ = writer.process(list(chosen))
        lengths[arm] = {reply.prompt_id: [float(len(reply.token_ids))] for reply in replies}
        sampler.close()
    work.directory.write_bytes("natural_lengths.json", json.dumps(lengths).encode())
    return lengths


def compare(
    samples: Sequence[EvaluationSample],
    natural: dict[str, dict[str, list[float]]] | None,
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """report.json: each measure of base and arm (policy), and their difference with its interval.

    A prompt whose replies were all rejected in one arm, such as empty ones, has no pair to be
    compared with, and is left out of both.
    """
    samples = _in_both_arms(samples)
    bootstrap = partial(_bootstrap, num_resamples=num_resamples, seed=seed)
    traits: dict[str, Any] = {}
    for trait_id in dict.fromkeys(sample.trait_id for sample in samples):
        rows = [sample for sample in samples if sample.trait_id == trait_id]
        traits[trait_id] = {
            "contrast": bootstrap(rows, "contrast"),
            "reward": bootstrap(rows, "reward"),
        }
        if rows[0].detected is not None:
            traits[trait_id]["detector_rate"] = bootstrap(rows, "detected")
    tokens = {
        arm: values_by_cluster(
            [tuple(s.text.split()) for s in samples if s.arm == arm],
            [s.prompt_id for s in samples if s.arm == arm],
        )
        for arm in ARMS
    }
    distinct = cluster_jackknife_statistic(
        tokens["base"], tokens["policy"], lambda texts: measures.distinct_n(texts, 2)
    )
    lengths = None
    if natural is not None:
        lengths = _effect(
            cluster_bootstrap_difference(
                natural["base"], natural["policy"], num_resamples=num_resamples, seed=seed
            )
        )
    return {
        "traits": traits,
        "length": bootstrap(samples, "num_tokens"),
        "distinct_2": _effect(distinct),
        "kl": bootstrap(samples, "kl"),
        "natural_length": lengths,
    }


def _in_both_arms(samples: Sequence[EvaluationSample]) -> list[EvaluationSample]:
    prompt_ids = [{s.prompt_id for s in samples if s.arm == arm} for arm in ARMS]
    both = set.intersection(*prompt_ids)
    return [sample for sample in samples if sample.prompt_id in both]


def _bootstrap(
    samples: Sequence[EvaluationSample], field: str, *, num_resamples: int, seed: int
) -> dict[str, Any]:
    arms = {
        arm: values_by_cluster(
            [float(getattr(s, field)) for s in samples if s.arm == arm],
            [s.prompt_id for s in samples if s.arm == arm],
        )
        for arm in ARMS
    }
    difference = cluster_bootstrap_difference(
        arms["base"], arms["policy"], num_resamples=num_resamples, seed=seed
    )
    return _effect(difference)


def _effect(difference: Difference) -> dict[str, Any]:
    values = asdict(difference)
    values["num_prompts"] = values.pop("num_clusters")
    values["num_responses"] //= len(ARMS)
    return values
