"""rankings: the model ranks its own responses by how well they fit the trait.

Two rankers give pair probabilities; utilities and the order follow from them by Bradley-Terry.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations, groupby
from typing import Protocol

from charactertrain import ranking
from charactertrain.artifacts import Outcome, read_rows
from charactertrain.config import RankingsSection
from charactertrain.exceptions import ChoiceError, SamplingError
from charactertrain.pipeline import Work
from charactertrain.records import Probe, Ranking, Reject, Response, Trait
from charactertrain.runtime.dataflow import ChunkJob, Source, count_reasons, run_chunks
from charactertrain.runtime.engines import SamplerSource, close_sampler
from charactertrain.runtime.sampling import ChoiceRequest, Failure, Sampler, Score, ScoreRequest
from charactertrain.stages import checks
from charactertrain.stages.context import Context, traits_shown
from charactertrain.templates import (
    JUDGE_CHOICES,
    REFERENCE_VARIANT,
    judge_conversation,
    plain_conversation,
    response_conversation,
)


def run(work: Work, context: Context) -> Outcome:
    """Check the rankers on known pairs, choose one, and rank every prompt's responses."""
    config = context.config
    traits = {trait.trait_id: trait for trait in read_rows(*work.inputs["traits"], "traits", Trait)}
    probes = read_rows(*work.inputs["prompts"], "probes", Probe)
    response_source, response_manifest = work.inputs["responses"]
    model = str(context.model_directory)
    sampler = context.session.sampler(model, model)
    qualities = ranker_check(sampler, probes, traits, config.rankings.ranker)
    chosen = choose_ranker(qualities, config.rankings)

    files = tuple(response_manifest.table("responses"))
    job = ChunkJob(
        name=f"rankings ({chosen})",
        source=Source(response_source, files, Response, whole_files=True),
        target=work.directory,
        table="rankings",
        result_type=Ranking,
        make_processor=partial(
            Ranker,
            method=chosen,
            traits=traits,
            placement=config.model.trait_placement,
            shown=config.model.traits_shown,
            settings=config.rankings,
        ),
        sampler=sampler,
        max_reject_share=config.responses.max_reject_share,
    )
    names, _, _ = run_chunks(job, context.session.pool, context.session.progress)
    summary = {"ranker": chosen, "ranker_check": checks.as_json(qualities)}
    return Outcome(tuple(names), count_reasons(work.directory, names), summary)


def ranker_check(
    source: SamplerSource, probes: Sequence[Probe], traits: dict[str, Trait], ranker: str
) -> list[checks.RankerQuality]:
    """How good the rankers are that the setting may choose."""
    qualities = []
    if ranker != "contrast":
        sampler = source.open()
        qualities.append(_judge_quality(sampler, probes, traits, ranker))
        close_sampler(sampler)
    if ranker != "judge":
        qualities.append(checks.contrast_quality(probes))
    return qualities


def _judge_quality(
    sampler: Sampler, probes: Sequence[Probe], traits: dict[str, Trait], ranker: str
) -> checks.RankerQuality:
    try:
        return checks.judge_quality(sampler, probes, traits)
    except ChoiceError:
        if ranker != "auto":
            raise
        # There is another ranker; the manifest says that this one gave no answer.
        return checks.RankerQuality("judge", 0.0, 0)


def choose_ranker(qualities: Sequence[checks.RankerQuality], settings: RankingsSection) -> str:
    """The ranker to use; raises SamplingError when none is good enough on known pairs."""
    accuracy = {quality.ranker: quality.accuracy for quality in qualities}
    answered = {quality.ranker for quality in qualities if quality.num_pairs}
    if settings.ranker != "auto":
        chosen = settings.ranker
    elif "judge" in answered and accuracy["judge"] >= settings.min_judge_accuracy:
        chosen = "judge"
    else:
        chosen = "contrast"
    if accuracy[chosen] < settings.min_accuracy:
        numbers = ", ".join(f"{q.ranker} {q.accuracy:.2f} of {q.num_pairs}" for q in qualities)
        raise SamplingError(
            f"ranker check: {chosen} tells responses written with a trait from those without in "
            f"too few cases ({numbers}; expected {settings.min_accuracy:.2f}). Labels from it "
            "would be noise. Use a more capable model, reword the traits, or show them elsewhere "
            "(model.trait_placement)."
        )
    return chosen


class PairRanker(Protocol):
    """Gives the probability that one response fits the trait better than another."""

    def __call__(self, groups: Sequence["Group"]) -> list["Comparisons | Failure"]:
        """Compare all pairs of each group's responses."""


class Group:
    """A prompt's responses, and the traits shown for it."""

    def __init__(self, responses: list[Response], traits: list[Trait]) -> None:
        """All `responses` answer one prompt."""
        self.responses, self.traits = responses, traits
        self.prompt = responses[0].prompt
        self.pairs = list(combinations(range(len(responses)), 2))


class Comparisons:
    """Pair probabilities of a group, in the order of its pairs."""

    def __init__(self, probabilities: list[float], swap_consistency: float | None) -> None:
        """`probabilities`: that the pair's first response is the better."""
        self.probabilities, self.swap_consistency = probabilities, swap_consistency


class ContrastRanker:
    """How much likelier the model finds a response when shown the trait, per token."""

    def __init__(self, sampler: Sampler, *, placement: str, temperature: float) -> None:
        """`temperature` in nats per token."""
        self._sampler, self._placement, self._temperature = sampler, placement, temperature

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """Two prefills per response, shared by all its pairs."""
        requests = [request for group in groups for request in self._requests(group)]
        scores = iter(self._sampler.score(requests))
        results: list[Comparisons | Failure] = []
        for group in groups:
            pairs = [(next(scores), next(scores)) for _ in group.responses]
            failures = [score for pair in pairs for score in pair if isinstance(score, Failure)]
            if failures:
                results.append(failures[0])
                continue
            contrasts = [
                ranking.contrast_score(with_trait.logprobs, without.logprobs)
                for with_trait, without in pairs
                if isinstance(with_trait, Score) and isinstance(without, Score)
            ]
            probabilities = [self._probability(contrasts[i], contrasts[j]) for i, j in group.pairs]
            results.append(Comparisons(probabilities, None))
        return results

    def _probability(self, first: float, second: float) -> float:
        return ranking.pair_probability_from_contrast(first, second, temperature=self._temperature)

    def _requests(self, group: Group) -> list[ScoreRequest]:
        shown = response_conversation(
            group.prompt, group.traits, variant=REFERENCE_VARIANT, placement=self._placement
        )
        plain = plain_conversation(group.prompt)
        return [
            ScoreRequest(response.response_id, conversation, response.token_ids)
            for response in group.responses
            for conversation in (shown, plain)
        ]


class JudgeRanker:
    """The model is shown two responses in both orders and says which fits better."""

    def __init__(self, sampler: Sampler) -> None:
        """Ask `sampler`."""
        self._sampler = sampler

    def __call__(self, groups: Sequence[Group]) -> list[Comparisons | Failure]:
        """Two questions per pair."""
        requests = [request for group in groups for request in self._requests(group)]
        answers = iter(self._sampler.choose(requests))
        results: list[Comparisons | Failure] = []
        for group in groups:
            both = []
            failure = None
            for _ in group.pairs:
                straight, swapped = next(answers), next(answers)
                if isinstance(straight, Failure) or isinstance(swapped, Failure):
                    failure = straight if isinstance(straight, Failure) else swapped
                    continue
                both.append(
                    (
                        ranking.judge_probability(*straight.logprobs),
                        ranking.judge_probability(*swapped.logprobs),
                    )
                )
            if isinstance(failure, Failure):
                results.append(failure)
                continue
            probabilities = [ranking.debiased_probability(*orders) for orders in both]
            results.append(Comparisons(probabilities, ranking.swap_consistency(both)))
        return results

    def _requests(self, group: Group) -> list[ChoiceRequest]:
        requests = []
        for i, j in group.pairs:
            for first, second in ((i, j), (j, i)):
                shown = judge_conversation(
                    group.traits,
                    group.prompt,
                    group.responses[first].text,
                    group.responses[second].text,
                )
                requests.append(ChoiceRequest(group.responses[i].response_id, shown, JUDGE_CHOICES))
        return requests


class Ranker:
    """Ranks the responses of each prompt with the chosen method."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        method: str,
        traits: dict[str, Trait],
        placement: str,
        shown: str,
        settings: RankingsSection,
    ) -> None:
        """`method` is `judge` or `contrast`."""
        self._traits, self._shown, self._settings, self._method = traits, shown, settings, method
        self._ranker: PairRanker
        if method == "judge":
            self._ranker = JudgeRanker(sampler)
        else:
            self._ranker = ContrastRanker(
                sampler, placement=placement, temperature=settings.contrast_temperature
            )

    def process(self, rows: list[Response]) -> tuple[list[Ranking], list[Reject]]:
        """Rankings, and rejects for prompts that have too few responses or cannot be compared."""
        groups, rejects = [], []
        for prompt_id, responses in groupby(rows, key=lambda row: row.prompt_id):
            members = list(responses)
            if len(members) < 2:
                detail = f"{len(members)} response left after the filters; a ranking needs 2"
                rejects.append(Reject(prompt_id, "rankings", "too_few_responses", detail))
                continue
            shown = traits_shown(self._traits, members[0].trait_id, self._shown)
            groups.append(Group(members, shown))
        rankings = []
        for group, comparisons in zip(groups, self._ranker(groups), strict=True):
            if isinstance(comparisons, Failure):
                prompt_id = group.responses[0].prompt_id
                rejects.append(
                    Reject(prompt_id, "rankings", comparisons.reason, comparisons.detail)
                )
                continue
            rankings.append(self._ranking(group, comparisons))
        return rankings, rejects

    def _ranking(self, group: Group, comparisons: Comparisons) -> Ranking:
        count = len(group.responses)
        matrix = [[0.5] * count for _ in range(count)]
        for (i, j), probability in zip(group.pairs, comparisons.probabilities, strict=True):
            matrix[i][j], matrix[j][i] = probability, 1 - probability
        utilities = ranking.utilities_from_probabilities(matrix, prior=self._settings.utility_prior)
        ids = [response.response_id for response in group.responses]
        ordered = ranking.ranking_from_utilities(ids, utilities)
        order = [ids.index(response_id) for response_id in ordered]
        first = group.responses[0]
        return Ranking(
            prompt_id=first.prompt_id,
            trait_id=first.trait_id,
            split=first.split,
            response_ids=tuple(ordered),
            utilities=tuple(utilities[index] for index in order),
            pair_probabilities=tuple(matrix[i][j] for i, j in combinations(order, 2)),
            method=self._method,
            swap_consistency=comparisons.swap_consistency,
        )
