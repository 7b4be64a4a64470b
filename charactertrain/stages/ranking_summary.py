"""How far the rankings can be trusted and what they cost, over all prompts and for each trait."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from charactertrain import reliability, statistics
from charactertrain.artifacts import Json
from charactertrain.records import Ranking, from_table, schema
from charactertrain.reliability import PromptReliability
from charactertrain.storage import Directory


def measured(directory: Directory, names: Sequence[str], *, num_resamples: int, seed: int) -> Json:
    """Reliability overall and by trait, agreement with other rankers, and tokens a comparison.

    Args:
        directory: Of the stage.
        names: Files of rankings.
        num_resamples: Of the cluster bootstrap over prompts.
        seed: Of the bootstrap.
    """
    prompts: dict[str, list[PromptReliability]] = defaultdict(list)
    lengths: dict[str, list[reliability.Group]] = defaultdict(list)
    opinions: dict[str, dict[str, list[float]]] = defaultdict(dict)
    prompt_tokens = cached_tokens = num_comparisons = 0
    for table in directory.read_tables(names, schema(Ranking).names):
        for row in from_table(table, Ranking):
            prompts[row.trait_id].append(
                PromptReliability(
                    row.trait_id,
                    row.prompt_id,
                    row.swap_consistency,
                    row.cyclic_triads,
                    row.split_half,
                )
            )
            tokens = [float(count) for count in row.num_tokens]
            lengths[row.trait_id].append((row.utilities, tokens))
            for opinion in row.opinions:
                if opinion.same_winner is not None:
                    opinions[opinion.ranker][row.prompt_id] = [opinion.same_winner]
            prompt_tokens += row.prompt_tokens
            cached_tokens += row.cached_tokens
            num_comparisons += len(row.pair_probabilities)

    def summary(trait_ids: Sequence[str]) -> Json:
        found = reliability.summarise(
            [prompt for trait_id in trait_ids for prompt in prompts[trait_id]],
            [length for trait_id in trait_ids for length in lengths[trait_id]],
            num_resamples=num_resamples,
            seed=seed,
        )
        return asdict(found)

    traits = sorted(prompts)
    return {
        "reliability": summary(traits),
        "reliability_by_trait": {trait_id: summary([trait_id]) for trait_id in traits},
        "agreement": {
            ranker: asdict(
                statistics.cluster_bootstrap_mean(found, num_resamples=num_resamples, seed=seed)
            )
            for ranker, found in sorted(opinions.items())
            if len(found) > 1
        },
        "cost": {
            "num_comparisons": num_comparisons,
            "prompt_tokens_per_comparison": prompt_tokens / max(1, num_comparisons),
            "computed_tokens_per_comparison": (prompt_tokens - cached_tokens)
            / max(1, num_comparisons),
            "cache_hit_share": cached_tokens / max(1, prompt_tokens),
        },
    }
