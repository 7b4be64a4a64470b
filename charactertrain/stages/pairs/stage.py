"""pairs: rankings as preference pairs with soft labels, in the form that TRL reads.

Comparisons of the researcher's own join them, or take their place; what people said of the
rankings in the review page stands above them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from charactertrain.artifacts import Outcome, iter_rows, read_rows
from charactertrain.config.data import PairsSection
from charactertrain.exceptions import SamplingError
from charactertrain.pipeline import Work
from charactertrain.records import (
    NO_TRAIT,
    Message,
    PreferencePair,
    Prompt,
    Ranking,
    Reject,
    Response,
    Split,
    Trait,
    to_table,
)
from charactertrain.reviews import NO_REVIEW, RankingReview
from charactertrain.seeds import stable_id
from charactertrain.stages.context import Context
from charactertrain.stages.pairs.files import read_pairs
from charactertrain.stages.pairs.reviews import PairReviews
from charactertrain.storage import Directory

_SPLITS: tuple[Split, ...] = ("train", "validation")


def run(work: Work, context: Context) -> Outcome:
    """Write the pairs of every ranking, one file per file of rankings, and those of pairs.file."""
    section = context.config.pairs
    weights = {
        trait.trait_id: trait.weight for trait in read_rows(*work.inputs["traits"], "traits", Trait)
    }
    trained = {NO_TRAIT, *weights} - set(context.config.ablate)
    written = _Written(work.directory)
    reviews = PairReviews.planned(section.reviews, work.identity)
    if section.file_use == "join":
        for pairs, rejects in _pairs_of_rankings(work, weights, section.min_probability, reviews):
            written.add([pair for pair in pairs if pair.trait_id in trained], rejects)
    num_ranked = written.counts.total()
    written.add_rejects("reviews/part-000000.parquet", reviews.not_found())
    if reviews.names:
        context.session.console.print(f"  {reviews.line()}", markup=False, emoji=False)
    splits = _splits_of_families(work)
    seed = context.config.seed
    for pairs in read_pairs(section, trait_weights=weights, splits=splits, seed=seed):
        written.add([pair for pair in pairs if pair.trait_id in trained], [])
    for split in _SPLITS:
        if written.counts[split] == 0:
            raise SamplingError(f"no {split} pair is left; {_advice(section)}")
    return Outcome(
        tuple(written.files),
        dict(written.rejects),
        {
            "pairs_by_split": {split: written.counts[split] for split in _SPLITS},
            "mean_probability": written.sum_of_probabilities / written.counts.total(),
            "pairs_from_file": written.counts.total() - num_ranked,
            "prompts_by_trait": written.prompts_by_trait(),
            "ablated": list(context.config.ablate),
        }
        | ({} if section.reviews is None else {"reviews": reviews.summary()}),
    )


def _advice(section: PairsSection) -> str:
    if section.file is None:
        return "see the rejects of earlier stages"
    own = f"say in the rows of {section.file} that they are of this split, or change "
    own += f"pairs.validation_share, which is {section.validation_share}"
    return own if section.file_use == "replace" else f"see the rejects of earlier stages, {own}"


@dataclass
class _Written:
    """What the stage has written so far."""

    directory: Directory
    files: list[str] = field(default_factory=list)
    num_parts: int = 0
    counts: Counter[Split] = field(default_factory=Counter)
    """Pairs by split."""
    rejects: Counter[str] = field(default_factory=Counter)
    """By reason."""
    sum_of_probabilities: float = 0.0
    prompts: defaultdict[tuple[str, Split], set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Ids by trait and split."""

    def add(self, pairs: Sequence[PreferencePair], rejects: Sequence[Reject]) -> None:
        """Write the next file of pairs, and one of rejects if there are any."""
        name = f"pairs/part-{self.num_parts:06d}.parquet"
        self.directory.write_table(name, to_table(pairs, PreferencePair))
        self.files.append(name)
        self.num_parts += 1
        self.add_rejects(name, rejects)
        for pair in pairs:
            self.counts[pair.split] += 1
            self.sum_of_probabilities += pair.probability
            self.prompts[pair.trait_id, pair.split].add(pair.prompt_id)

    def add_rejects(self, name: str, rejects: Sequence[Reject]) -> None:
        """Write a file of rejects, if there are any."""
        if rejects:
            self.files.append(f"rejects/{name}")
            self.directory.write_table(self.files[-1], to_table(rejects, Reject))
            self.rejects.update(reject.reason for reject in rejects)

    def prompts_by_trait(self) -> dict[str, dict[str, int]]:
        """How many prompts have pairs, by trait and split."""
        trait_ids = sorted({trait_id for trait_id, _ in self.prompts})
        return {
            trait_id: {split: len(self.prompts[trait_id, split]) for split in _SPLITS}
            for trait_id in trait_ids
        }


def _pairs_of_rankings(
    work: Work, weights: Mapping[str, float], min_probability: float, reviews: PairReviews
) -> Iterator[tuple[list[PreferencePair], list[Reject]]]:
    """Pairs and rejects of each file of rankings."""
    batches = iter_rows(*work.inputs["rankings"], "rankings", Ranking)
    for rankings, texts in zip(batches, _responses_by_file(work), strict=True):
        pairs, rejects = [], []
        for ranking in rankings:
            kept, left_out = pairs_from_ranking(
                ranking,
                texts,
                trait_weight=weights[ranking.trait_id],
                min_probability=min_probability,
                review=reviews.of_ranking(ranking, texts),
            )
            pairs += kept
            rejects += left_out
        yield pairs, rejects


def _splits_of_families(work: Work) -> dict[str, Split]:
    """Of this run's prompts, where the stage reads them: pairs of a file may be of the same."""
    if "prompts" not in work.inputs:
        return {}
    batches = iter_rows(*work.inputs["prompts"], "prompts", Prompt)
    return {prompt.family: prompt.split for batch in batches for prompt in batch}


def _responses_by_file(work: Work) -> Iterator[dict[str, Response]]:
    """The responses of each file of rankings: each was made from one file that was not empty."""
    for batch in iter_rows(*work.inputs["responses"], "responses", Response):
        if batch:
            yield {response.response_id: response for response in batch}


def pairs_from_ranking(
    ranking: Ranking,
    responses: dict[str, Response],
    *,
    trait_weight: float,
    min_probability: float,
    review: RankingReview = NO_REVIEW,
) -> tuple[list[PreferencePair], list[Reject]]:
    """All pairs of a ranking, the better first, and rejects for those below `min_probability`.

    Weights of the pairs that are kept sum to the trait's weight, so that a prompt counts once
    however many responses it has. What people decided stands in place of the ranking's
    probability, however certain they were; pairs of what they dropped are rejects.
    """
    kept, rejects = [], []
    pairs = combinations(ranking.response_ids, 2)
    for (first, second), ranked in zip(pairs, ranking.pair_probabilities, strict=True):
        judged = review.probability(first, second)
        probability = ranked if judged is None else judged
        better, worse = (first, second) if probability >= 0.5 else (second, first)
        certainty = max(probability, 1 - probability)
        pair_id = stable_id(better, worse)
        if reason := review.dropped.get(first) or review.dropped.get(second):
            rejects.append(Reject(pair_id, ranking.trait_id, "pairs", "reviewed_out", reason))
        elif judged is None and certainty < min_probability:
            detail = f"probability {certainty:.3f} is below {min_probability}"
            rejects.append(Reject(pair_id, ranking.trait_id, "pairs", "uncertain", detail))
        else:
            kept.append((pair_id, responses[better], responses[worse], certainty))
    made = [
        PreferencePair(
            pair_id=pair_id,
            prompt_id=ranking.prompt_id,
            trait_id=ranking.trait_id,
            family=chosen.family,
            split=ranking.split,
            prompt=(Message("user", chosen.prompt),),
            chosen=(Message("assistant", chosen.text),),
            rejected=(Message("assistant", rejected.text),),
            probability=certainty,
            weight=trait_weight / len(kept),
            margin=0.0,
            chosen_id=chosen.response_id,
            rejected_id=rejected.response_id,
            chosen_variant=chosen.variant,
            rejected_variant=rejected.variant,
            chosen_tokens=len(chosen.token_ids),
            rejected_tokens=len(rejected.token_ids),
        )
        for pair_id, chosen, rejected, certainty in kept
    ]
    return made, rejects
