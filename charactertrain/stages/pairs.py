"""pairs: rankings as preference pairs with soft labels, in the form that TRL reads."""

from collections.abc import Iterator
from itertools import combinations
from statistics import fmean

from charactertrain.artifacts import Outcome, iter_rows, read_rows
from charactertrain.exceptions import SamplingError
from charactertrain.pipeline import Work
from charactertrain.records import (
    Message,
    PreferencePair,
    Ranking,
    Reject,
    Response,
    Trait,
    to_table,
)
from charactertrain.seeds import stable_id
from charactertrain.stages.context import Context


def run(work: Work, context: Context) -> Outcome:
    """Write the pairs of every ranking, one file per file of rankings."""
    weights = {
        trait.trait_id: trait.weight for trait in read_rows(*work.inputs["traits"], "traits", Trait)
    }
    responses = _responses_by_file(work)
    files, counts, probabilities = [], {"train": 0, "validation": 0}, []
    num_uncertain = 0
    batches = iter_rows(*work.inputs["rankings"], "rankings", Ranking)
    for index, (rankings, texts) in enumerate(zip(batches, responses, strict=True)):
        pairs, rejects = [], []
        for ranking in rankings:
            kept, left_out = pairs_from_ranking(
                ranking,
                texts,
                trait_weight=weights[ranking.trait_id],
                min_probability=context.config.pairs.min_probability,
            )
            pairs += kept
            rejects += left_out
        for pair in pairs:
            counts[pair.split] += 1
            probabilities.append(pair.probability)
        name = f"pairs/part-{index:06d}.parquet"
        work.directory.write_table(name, to_table(pairs, PreferencePair))
        files.append(name)
        if rejects:
            files.append(f"rejects/{name}")
            work.directory.write_table(files[-1], to_table(rejects, Reject))
            num_uncertain += len(rejects)
    for split, count in counts.items():
        if count == 0:
            raise SamplingError(f"no {split} pair is left; see the rejects of earlier stages")
    return Outcome(
        tuple(files),
        {"uncertain": num_uncertain} if num_uncertain else {},
        {"pairs_by_split": counts, "mean_probability": fmean(probabilities)},
    )


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
) -> tuple[list[PreferencePair], list[Reject]]:
    """All pairs of a ranking, the better first, and rejects for those below `min_probability`.

    Weights of the pairs that are kept sum to the trait's weight, so that a prompt counts once
    however many responses it has.
    """
    indices = combinations(range(len(ranking.response_ids)), 2)
    kept, rejects = [], []
    for (i, j), probability in zip(indices, ranking.pair_probabilities, strict=True):
        better, worse = (i, j) if probability >= 0.5 else (j, i)
        certainty = max(probability, 1 - probability)
        chosen = responses[ranking.response_ids[better]]
        rejected = responses[ranking.response_ids[worse]]
        pair_id = stable_id(chosen.response_id, rejected.response_id)
        if certainty < min_probability:
            detail = f"probability {certainty:.3f} is below {min_probability}"
            rejects.append(Reject(pair_id, ranking.trait_id, "pairs", "uncertain", detail))
        else:
            kept.append((pair_id, chosen, rejected, certainty))
    pairs = [
        PreferencePair(
            pair_id=pair_id,
            prompt_id=ranking.prompt_id,
            trait_id=ranking.trait_id,
            split=ranking.split,
            prompt=(Message("user", chosen.prompt),),
            chosen=(Message("assistant", chosen.text),),
            rejected=(Message("assistant", rejected.text),),
            probability=certainty,
            weight=trait_weight / len(kept),
            chosen_id=chosen.response_id,
            rejected_id=rejected.response_id,
            chosen_variant=chosen.variant,
            rejected_variant=rejected.variant,
            chosen_tokens=len(chosen.token_ids),
            rejected_tokens=len(rejected.token_ids),
        )
        for pair_id, chosen, rejected, certainty in kept
    ]
    return pairs, rejects
