"""How far the rankings can be trusted and what they cost, over all prompts and for each trait."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict

from charactertrain.artifacts import Json
from charactertrain.records import Ranking, from_table, schema
from charactertrain.statistics import bootstrap, reliability
from charactertrain.statistics.reliability import PromptReliability
from charactertrain.storage import Directory


def measured(directory: Directory, names: Sequence[str], *, num_resamples: int, seed: int) -> Json:
    """Reliability overall and by trait, agreement with other rankers, and tokens a comparison.

    Args:
        directory: Of the stage.
        names: Files of rankings.
        num_resamples: Of the cluster bootstrap over prompts.
        seed: Of the bootstrap.
    """
    gathered = _Gathered()
    for table in directory.read_tables(names, schema(Ranking).names):
        for row in from_table(table, Ranking):
            gathered.add(row)

    def summary(trait_ids: Sequence[str]) -> Json:
        found = reliability.summarise(
            [prompt for trait_id in trait_ids for prompt in gathered.prompts[trait_id]],
            [length for trait_id in trait_ids for length in gathered.lengths[trait_id]],
            num_resamples=num_resamples,
            seed=seed,
        )
        return asdict(found)

    def agreement(trait_ids: Sequence[str]) -> Json:
        """Of rankers that were asked on two prompts of the traits or more."""
        by_ranker = {ranker: gathered.opinions_of(ranker, trait_ids) for ranker in gathered.rankers}
        return {
            ranker: asdict(
                bootstrap.cluster_bootstrap_mean(found, num_resamples=num_resamples, seed=seed)
            )
            for ranker, found in by_ranker.items()
            if len(found) > 1
        }

    traits = sorted(gathered.prompts)
    return {
        "reliability": summary(traits),
        "reliability_by_trait": {trait_id: summary([trait_id]) for trait_id in traits},
        "agreement": agreement(traits),
        "agreement_by_trait": {trait_id: agreement([trait_id]) for trait_id in traits},
        "cost": gathered.cost(),
    }


class _Gathered:
    """What is kept of each ranking."""

    def __init__(self) -> None:
        self.prompts: dict[str, list[PromptReliability]] = defaultdict(list)
        self.lengths: dict[str, list[reliability.Group]] = defaultdict(list)
        self._opinions: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
        """By ranker and trait, then by prompt."""
        self._prompt_tokens = self._cached_tokens = self._num_comparisons = 0

    def add(self, row: Ranking) -> None:
        self.prompts[row.trait_id].append(
            PromptReliability(
                row.trait_id,
                row.prompt_id,
                row.swap_consistency,
                row.cyclic_triads,
                row.split_half,
            )
        )
        tokens = [float(count) for count in row.num_tokens]
        self.lengths[row.trait_id].append((row.utilities, tokens))
        for opinion in row.opinions:
            if opinion.same_winner is not None:
                own = self._opinions[opinion.ranker, row.trait_id]
                own[row.prompt_id] = [opinion.same_winner]
        self._prompt_tokens += row.prompt_tokens
        self._cached_tokens += row.cached_tokens
        self._num_comparisons += len(row.pair_probabilities)

    @property
    def rankers(self) -> list[str]:
        """That were asked for an opinion."""
        return sorted({ranker for ranker, _ in self._opinions})

    def opinions_of(self, ranker: str, trait_ids: Sequence[str]) -> dict[str, list[float]]:
        """By prompt, over the traits."""
        return {
            prompt_id: opinion
            for trait_id in trait_ids
            for prompt_id, opinion in self._opinions.get((ranker, trait_id), {}).items()
        }

    def cost(self) -> Json:
        """Tokens, the chosen ranker's alone."""
        pairs, prompt_tokens = max(1, self._num_comparisons), max(1, self._prompt_tokens)
        return {
            "num_comparisons": self._num_comparisons,
            "prompt_tokens_per_comparison": self._prompt_tokens / pairs,
            "computed_tokens_per_comparison": (self._prompt_tokens - self._cached_tokens) / pairs,
            "cache_hit_share": self._cached_tokens / prompt_tokens,
        }
