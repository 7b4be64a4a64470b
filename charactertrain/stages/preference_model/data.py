"""What the preference_model stage trains on and is measured on: pairs, as token ids by prompt."""

import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from charactertrain import chat, ranking
from charactertrain.exceptions import TrainingError
from charactertrain.models.packing import PromptGroup
from charactertrain.objectives.preference import MAX_LIST
from charactertrain.records import NO_TRAIT, PreferencePair, Reject, Split
from charactertrain.seeds import derive_seed
from charactertrain.stages.preference_model.step import RankedPair, RankedPrompt
from charactertrain.templates import Shown

_UTILITY_PRIOR = 1e-3
"""Nearly none: it holds utilities of certain labels at about 7 logits, and moves no others."""


@dataclass(frozen=True)
class Example:
    """A prompt with its ranked responses, and where they come from."""

    ranked: RankedPrompt
    family: str
    split: Split
    texts: tuple[str, ...]
    """Of the responses, in the order of the group."""
    response_ids: tuple[str, ...]
    lengths: tuple[int, ...]
    """Tokens of each response as it was sampled: a text encoded again may have more or fewer."""
    variants: tuple[str, ...]
    """How each response was written."""


def read_examples(
    pairs: Iterable[PreferencePair], tokenizer: chat.Tokenizer, *, context_tokens: int
) -> tuple[list[Example], list[Reject]]:
    """The pairs by prompt, and rejects for those that are longer than the model reads."""
    gathered: dict[str, _Gathered] = {}
    for pair in pairs:
        if pair.prompt_id not in gathered:
            gathered[pair.prompt_id] = _Gathered(pair, tokenizer)
        gathered[pair.prompt_id].add(pair, tokenizer)
    examples, rejects = [], []
    for found in gathered.values():
        example = found.example()
        longest = _longest(example.ranked.group)
        if longest > context_tokens:
            detail = f"{longest} tokens with its prompt, and model.context_tokens {context_tokens}"
            row = (example.ranked.prompt_id, example.ranked.trait_id, "preference_model")
            rejects.append(Reject(*row, "too_long", detail))
        else:
            examples.append(example)
    return examples, rejects


def _longest(group: PromptGroup) -> int:
    return len(group.prompt_token_ids) + max(map(len, group.responses))


class _Gathered:
    """A prompt's pairs so far, each response once however many pairs it is in."""

    def __init__(self, first: PreferencePair, tokenizer: chat.Tokenizer) -> None:
        self._prompt_id, self._trait_id = first.prompt_id, first.trait_id
        self._family, self._split = first.family, first.split
        self._prompt = _token_ids(chat.encode(Shown(messages=first.prompt, text=""), tokenizer))
        self._places: dict[str, int] = {}
        self._texts: list[str] = []
        self._responses: list[Sequence[int]] = []
        self._lengths: list[int] = []
        self._variants: list[str] = []
        self._pairs: list[RankedPair] = []

    def add(self, pair: PreferencePair, tokenizer: chat.Tokenizer) -> None:
        for side in ("chosen", "rejected"):
            response_id = getattr(pair, f"{side}_id")
            if response_id in self._places:
                continue
            self._places[response_id] = len(self._places)
            text, length = getattr(pair, side)[0].content, getattr(pair, f"{side}_tokens")
            self._texts.append(text)
            self._responses.append(_token_ids(chat.encode_response(text, tokenizer)))
            self._lengths.append(len(self._responses[-1]) if length is None else length)
            self._variants.append(getattr(pair, f"{side}_variant"))
        places = (self._places[pair.chosen_id], self._places[pair.rejected_id])
        self._pairs.append(RankedPair(*places, pair.probability, pair.weight, pair.margin))

    def example(self) -> Example:
        return Example(
            ranked=RankedPrompt(
                prompt_id=self._prompt_id,
                trait_id=self._trait_id,
                group=PromptGroup(self._prompt, tuple(self._responses)),
                pairs=tuple(self._pairs),
                utilities=_utilities(self._pairs, len(self._texts)),
            ),
            family=self._family,
            split=self._split,
            texts=tuple(self._texts),
            response_ids=tuple(self._places),
            lengths=tuple(self._lengths),
            variants=tuple(self._variants),
        )


def _token_ids(ids: Sequence[int]) -> Sequence[int]:
    # A tenth of a tuple's memory: every worker holds those of all prompts.
    return array("i", ids)


def _utilities(pairs: Sequence[RankedPair], count: int) -> tuple[float, ...]:
    """Utilities that agree with the pairs' probabilities, those of human reviews among them."""
    probabilities_KK = np.full((count, count), np.nan)
    for pair in pairs:
        probabilities_KK[pair.chosen, pair.rejected] = pair.probability
        probabilities_KK[pair.rejected, pair.chosen] = 1 - pair.probability
    return tuple(ranking.utilities_from_probabilities(probabilities_KK, prior=_UTILITY_PRIOR))


def mixed(
    examples: Sequence[Example], *, general_share: float, seed: int
) -> tuple[list[Example], int]:
    """Training examples of which `general_share` are general comparisons.

    Returns:
        The examples, and how many general ones are left over.

    Raises:
        TrainingError: There are too few general ones.
    """
    own = [example for example in examples if example.ranked.trait_id != NO_TRAIT]
    general = [example for example in examples if example.ranked.trait_id == NO_TRAIT]
    if not own:
        # Nothing but general comparisons: a preference model of quality.
        return general, 0
    wanted = round(len(own) * general_share / (1 - general_share))
    if wanted > len(general):
        raise TrainingError(
            f"preference_model.general_share {general_share} asks for {wanted} general prompts "
            f"beside {len(own)} prompts of traits, and the pairs have {len(general)}; bring more "
            "through pairs.file, or lower the share"
        )
    return own + _drawn(general, wanted, seed=seed), len(general) - wanted


def mixed_held_out(
    examples: Sequence[Example], *, general_share: float, seed: int
) -> list[Example]:
    """Held-out examples of which at most `general_share` are general comparisons.

    More of them would decide which weights are kept, and what the model is said to be worth.
    """
    own = [example for example in examples if example.ranked.trait_id != NO_TRAIT]
    general = [example for example in examples if example.ranked.trait_id == NO_TRAIT]
    if not own:
        return general
    return own + _drawn(general, round(len(own) * general_share / (1 - general_share)), seed=seed)


def _drawn(examples: Sequence[Example], count: int, *, seed: int) -> list[Example]:
    def draw(example: Example) -> int:
        return derive_seed(seed, "general", example.ranked.prompt_id)

    return sorted(examples, key=draw)[:count]


def halves(
    examples: Sequence[Example], *, gold_share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples for the models that the policy is trained against, and others for the gold model.

    Of each trait's prompts about `gold_share`, by family, so that no scenario is on both sides. A
    trait whose families do not allow it, such as one of a single family, is divided by prompt:
    `shared_families` names what is then on both sides.

    Raises:
        TrainingError: A trait has a single prompt.
    """
    if gold_share == 0:
        return list(examples), []
    families, undivided = _gold_families(examples, gold_share=gold_share, seed=seed)
    prompts = _gold_prompts(examples, undivided, gold_share=gold_share, seed=seed)

    def is_gold(example: Example) -> bool:
        if example.ranked.trait_id in undivided:
            return example.ranked.prompt_id in prompts
        return _scenario(example) in families

    gold = [example for example in examples if is_gold(example)]
    return [example for example in examples if not is_gold(example)], gold


def _gold_families(
    examples: Sequence[Example], *, gold_share: float, seed: int
) -> tuple[set[str], set[str]]:
    """Families for the gold model, and the traits that they do not divide."""
    families: dict[str, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    for example in examples:
        families[_scenario(example)][example.ranked.trait_id] += 1
        totals[example.ranked.trait_id] += 1
    taken: Counter[str] = Counter()
    chosen = set()
    for family in sorted(families, key=lambda name: derive_seed(seed, "gold", name)):
        sizes = families[family]
        # Whichever brings the traits that it is of nearer to their share.
        change = sum(
            abs(taken[trait] + size - gold_share * totals[trait])
            - abs(taken[trait] - gold_share * totals[trait])
            for trait, size in sizes.items()
        )
        if change < 0 and all(taken[t] + size < totals[t] for t, size in sizes.items()):
            chosen.add(family)
            taken += sizes
    return chosen, {trait for trait in totals if not 0 < taken[trait] < totals[trait]}


def _gold_prompts(
    examples: Sequence[Example], traits: Collection[str], *, gold_share: float, seed: int
) -> set[str]:
    """Prompts of the given traits for the gold model."""
    chosen: set[str] = set()
    for trait in sorted(traits):
        ids = [e.ranked.prompt_id for e in examples if e.ranked.trait_id == trait]
        if len(ids) < 2:
            raise TrainingError(
                f"trait {trait!r} has one training prompt, and the model and the gold model need "
                "one each; raise prompts.per_trait, or set preference_model.gold_share=0"
            )
        ids.sort(key=lambda prompt_id: derive_seed(seed, "gold", prompt_id))
        chosen.update(ids[: max(1, int(gold_share * len(ids)))])
    return chosen


def shared_families(trained: Sequence[Example], gold: Sequence[Example]) -> list[str]:
    """Scenarios that both halves have prompts of, in order."""
    return sorted(set(map(_scenario, trained)) & set(map(_scenario, gold)))


def _scenario(example: Example) -> str:
    """The family without its trait: traits that share a facet share its scenario."""
    return example.family.partition("/")[2] or example.family


def shuffled(ranked: RankedPrompt, *, seed: int) -> RankedPrompt:
    """The prompt with its labels handed to its responses at random: a placebo.

    Rankings stay whole, so that the placebo differs in what they are of and in nothing else.
    """
    order = list(range(len(ranked.group.responses)))
    random.Random(derive_seed(seed, "placebo", ranked.prompt_id)).shuffle(order)
    utilities = [0.0] * len(order)
    for place, utility in enumerate(ranked.utilities):
        utilities[order[place]] = utility
    pairs = tuple(
        replace(pair, chosen=order[pair.chosen], rejected=order[pair.rejected])
        for pair in ranked.pairs
    )
    return replace(ranked, pairs=pairs, utilities=tuple(utilities))


def selection_and_measured(
    examples: Sequence[Example], *, seed: int
) -> tuple[list[Example], list[Example]]:
    """Held-out examples by which weights and temperature are chosen, and those that are measured.

    Half of each trait's prompts each.
    """
    by_trait: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_trait[example.ranked.trait_id].append(example)
    selection: list[Example] = []
    measured: list[Example] = []
    for found in by_trait.values():
        found.sort(key=lambda example: derive_seed(seed, "selection", example.ranked.prompt_id))
        selection += found[: len(found) // 2]
        measured += found[len(found) // 2 :]
    return selection, measured


def check_held_out(
    trained: Sequence[Example], selection: Sequence[Example], measured: Sequence[Example]
) -> None:
    """Raise TrainingError, before anything is trained, if a trait could not be measured."""
    counts = Counter(example.ranked.trait_id for example in measured)
    traits = {example.ranked.trait_id for example in [*trained, *measured]}
    if len(traits) > 1:
        # Of quality in general no trait is claimed.
        traits.discard(NO_TRAIT)
    if not trained or not selection or any(counts[trait] < 2 for trait in traits):
        raise TrainingError(
            f"held-out prompts by trait: {_counts(selection, counts)}. Half of them choose the "
            "weights and the temperature, the others are measured, and an interval needs two. "
            "Raise prompts.per_trait or prompts.validation_share; pairs.validation_share where the "
            "pairs are those of a file."
        )


def check_lists(examples: Sequence[Example]) -> None:
    """Raise TrainingError if the Plackett-Luce loss cannot take the examples.

    It sums over all subsets of a prompt's responses, and knows no margins of pairs.
    """
    for example in examples:
        size, prompt_id = len(example.texts), example.ranked.prompt_id
        if size > MAX_LIST:
            raise TrainingError(
                f"preference_model.objective plackett_luce takes {MAX_LIST} responses to a prompt "
                f"at most, and prompt {prompt_id} has {size}; use objective bradley_terry"
            )
        if any(pair.margin != 0 for pair in example.ranked.pairs):
            raise TrainingError(
                "preference_model.objective plackett_luce compares whole rankings, and a pair of "
                f"prompt {prompt_id} has a margin; use objective bradley_terry"
            )


def _counts(selection: Sequence[Example], counts: Mapping[str, int]) -> str:
    chosen = Counter(example.ranked.trait_id for example in selection)
    names = sorted({*counts, *chosen})
    return ", ".join(f"{name} {chosen[name]} + {counts.get(name, 0)}" for name in names) or "none"
