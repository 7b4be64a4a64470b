"""rankings: the model ranks its own responses by how well they fit the trait.

A ranker gives pair probabilities; utilities and the order follow from them by Bradley-Terry. How
far the order can be trusted is measured with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, groupby

from charactertrain import ranking
from charactertrain.artifacts import Json, Manifest, Outcome, read_rows
from charactertrain.pipeline import Work
from charactertrain.records import Opinion, Probe, Ranking, Reject, Response, Trait
from charactertrain.runtime.chunks import FileSource
from charactertrain.runtime.dataflow import ChunkJob
from charactertrain.runtime.sampling import Failure, Sampler, SamplerSource
from charactertrain.seeds import derive_seed
from charactertrain.stages import checks
from charactertrain.stages.context import Context, traits_shown
from charactertrain.stages.rankings import summary as ranking_summary
from charactertrain.stages.rankings.comparisons import Candidate, Comparisons, Group, Ranker
from charactertrain.stages.rankings.judge_source import judge_name, judge_source
from charactertrain.stages.rankings.ranker_choice import check_and_choose, ranker_check
from charactertrain.stages.rankings.rankers import make_ranker
from charactertrain.statistics import reliability


def run(work: Work, context: Context) -> Outcome:
    """Check the rankers on known pairs, choose one, and rank every prompt's responses."""
    config = context.config
    traits = {trait.trait_id: trait for trait in read_rows(*work.inputs["traits"], "traits", Trait)}
    response_source, manifest = work.inputs["responses"]
    source = judge_source(context, config.rankings)
    make = partial(
        make_ranker,
        settings=config.rankings,
        placement=config.model.trait_placement,
        seed=config.seed,
    )
    qualities, chosen, others = _choice(work, context, source, make, traits)
    job = ChunkJob(
        name=f"rankings ({chosen})",
        source=FileSource(
            response_source, tuple(manifest.table("responses")), Response, whole_files=True
        ),
        target=work.directory,
        table="rankings",
        result_type=Ranking,
        make_processor=partial(
            RankingWriter,
            method=Method(
                ranker=chosen,
                others=others,
                other_share=_other_share(context, manifest),
                utility_prior=config.rankings.utility_prior,
            ),
            make=make,
            traits=traits,
            shown=config.model.traits_shown,
        ),
        sampler=source,
        max_reject_share=config.responses.max_reject_share,
        requests_per_row=2,
    )
    produced = context.session.run(job)
    summary: Json = {
        "ranker": chosen,
        "judge": judge_name(context, config.rankings),
        "ranker_check": None if qualities is None else checks.as_json(qualities),
        "engines": produced.engines,
        **ranking_summary.measured(
            work.directory, produced.files, num_resamples=2000, seed=config.seed
        ),
    }
    return Outcome((*produced.files, *produced.reject_files), produced.rejects, summary)


def _choice(
    work: Work,
    context: Context,
    source: SamplerSource,
    make: "partial[Ranker]",
    traits: dict[str, Trait],
) -> tuple[list[checks.RankerQuality] | None, str, tuple[str, ...]]:
    """How good rankers are on known pairs, the one that ranks, and those that are asked besides.

    Where no character is shown no pair is known to be of one, and qualities are None.
    """
    settings = context.config.rankings
    if context.config.model.traits_shown == "none":
        others = [name for name in settings.second_opinions if name != settings.ranker]
        return None, settings.ranker, tuple(dict.fromkeys(others))
    probes = read_rows(*work.inputs["prompts"], "probes", Probe)
    qualities, chosen = check_and_choose(
        work.directory, partial(ranker_check, source, make, probes, traits, settings), settings
    )
    answered = {quality.ranker for quality in qualities if quality.num_pairs}
    asked = [name for name in settings.second_opinions if name in answered - {chosen}]
    return qualities, chosen, tuple(asked)


def _other_share(context: Context, responses: Manifest) -> float:
    """Share of the prompts on which other rankers are asked, too."""
    num_candidates = responses.rows["responses"] + sum(responses.rejects.values())
    num_prompts = num_candidates / context.config.responses.per_prompt
    return min(1.0, context.config.rankings.second_opinion_prompts / max(1, num_prompts))


@dataclass(frozen=True)
class Method:
    """Which rankers are asked, and how utilities follow."""

    ranker: str
    others: tuple[str, ...]
    """Asked on some prompts, for their agreement."""
    other_share: float
    """Share of the prompts on which they are, chosen by a hash of the prompt's id."""
    utility_prior: float


class RankingWriter:
    """Ranks the responses of each prompt with the chosen method, and asks others on some."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        method: Method,
        make: "partial[Ranker]",
        traits: dict[str, Trait],
        shown: str,
    ) -> None:
        """`make` makes a ranker of a name and a sampler."""
        self._method, self._traits, self._shown = method, traits, shown
        self._ranker: Ranker = make(method.ranker, sampler)
        self._others: dict[str, Ranker] = {name: make(name, sampler) for name in method.others}

    def process(self, rows: list[Response]) -> tuple[list[Ranking], list[Reject]]:
        """Rankings, and rejects for prompts that have too few responses or cannot be compared."""
        groups, firsts, rejects = [], [], []
        for responses in _by_prompt(rows):
            first = responses[0]
            if len(responses) < 2:
                detail = f"{len(responses)} response left after the filters; a ranking needs 2"
                rejects.append(_reject(first, "too_few_responses", detail))
                continue
            shown = traits_shown(self._traits, first.trait_id, self._shown)
            candidates = tuple(Candidate(r.response_id, r.text, r.token_ids) for r in responses)
            groups.append(Group(first.prompt_id, first.prompt, tuple(shown), candidates))
            firsts.append(first)
        opinions = self._opinions(groups)
        rankings = []
        for group, first, found in zip(groups, firsts, self._ranker(groups), strict=True):
            if isinstance(found, Failure):
                rejects.append(_reject(first, found.reason, found.detail))
            else:
                asked = opinions.get(group.group_id, {})
                rankings.append(self._ranking(group, first, found, asked))
        return rankings, rejects

    def _opinions(self, groups: Sequence[Group]) -> dict[str, dict[str, Comparisons]]:
        """What the others say, by prompt and ranker; one that fails on a prompt says nothing."""
        chosen = [
            group
            for group in groups
            if derive_seed("second opinion", group.group_id) < self._method.other_share * 2**31
        ]
        found: dict[str, dict[str, Comparisons]] = {group.group_id: {} for group in chosen}
        if chosen:
            for name, ranker in self._others.items():
                for group, result in zip(chosen, ranker(chosen), strict=True):
                    if isinstance(result, Comparisons):
                        found[group.group_id][name] = result
        return found

    def _ranking(
        self,
        group: Group,
        first: Response,
        found: Comparisons,
        opinions: dict[str, Comparisons],
    ) -> Ranking:
        matrix = found.probabilities_KK
        utilities = self._utilities(matrix)
        ids = [candidate.response_id for candidate in group.candidates]
        ordered = ranking.ranking_from_utilities(ids, utilities)
        order = [ids.index(response_id) for response_id in ordered]
        return Ranking(
            prompt_id=first.prompt_id,
            trait_id=first.trait_id,
            split=first.split,
            response_ids=tuple(ordered),
            utilities=tuple(utilities[index] for index in order),
            pair_probabilities=tuple(matrix[i][j] for i, j in combinations(order, 2)),
            num_tokens=tuple(len(group.candidates[index].token_ids) for index in order),
            method=self._method.ranker,
            swap_consistency=found.swap_consistency,
            cyclic_triads=reliability.cyclic_triad_share(matrix),
            split_half=self._split_half(found),
            opinions=tuple(
                Opinion(name, reliability.same_winner_share(*_pairs(group, found, other)))
                for name, other in opinions.items()
            ),
            prompt_tokens=found.prompt_tokens,
            cached_tokens=found.cached_tokens,
        )

    def _utilities(self, matrix: list[list[float]]) -> list[float]:
        return ranking.utilities_from_probabilities(matrix, prior=self._method.utility_prior)

    def _split_half(self, found: Comparisons) -> float | None:
        if found.halves is None:
            return None
        first, second = (
            [round(utility, ranking.TIE_DECIMALS) for utility in self._utilities(half)]
            for half in found.halves
        )
        return reliability.kendall_tau(first, second)


def _pairs(group: Group, found: Comparisons, other: Comparisons) -> Iterator[list[float]]:
    for each in (found, other):
        yield [each.probabilities_KK[i][j] for i, j in group.pairs]


def _by_prompt(rows: Sequence[Response]) -> Iterator[list[Response]]:
    for _, responses in groupby(rows, key=lambda row: row.prompt_id):
        yield list(responses)


def _reject(first: Response, reason: str, detail: str) -> Reject:
    return Reject(first.prompt_id, first.trait_id, "rankings", reason, detail)
