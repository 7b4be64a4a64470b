"""What the preference model is trained on and measured on: as token ids, shared out, shuffled."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from charactertrain import chat
from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.records import NO_TRAIT, Message, PreferencePair, Reject
from charactertrain.stages.preference_model.data import (
    Example,
    check_held_out,
    check_lists,
    halves,
    mixed,
    mixed_held_out,
    read_examples,
    selection_and_measured,
    shared_families,
    shuffled,
)
from charactertrain.stages.preference_model.step import RankedPair, RankedPrompt
from charactertrain.templates import Shown

TEXTS = {"a": "Yes!", "b": "No, thank you.", "c": "<|end|>"}


@pytest.fixture(name="tokenizer", scope="module")
def tiny_tokenizer(tiny_model: Path) -> chat.Tokenizer:
    """One token a byte, and one for each turn's beginning and end."""
    return loading.load_tokenizer(tiny_model)


def make_pair(
    chosen: str,
    rejected: str,
    probability: float = 0.8,
    *,
    prompt_id: str = "p1",
    prompt: tuple[Message, ...] = (Message("user", "Tea?"),),
) -> PreferencePair:
    """Of two of `TEXTS`, by their ids; lengths as sampled are not those of the encoded texts."""
    lengths = {"a": 4, "b": 15, "c": 2}
    return PreferencePair(
        pair_id=chosen + rejected,
        prompt_id=prompt_id,
        trait_id="warm",
        family="warm/tea",
        split="train",
        prompt=prompt,
        chosen=(Message("assistant", TEXTS[chosen]),),
        rejected=(Message("assistant", TEXTS[rejected]),),
        probability=probability,
        weight=0.5,
        margin=0.0,
        chosen_id=chosen,
        rejected_id=rejected,
        chosen_variant=f"variant of {chosen}",
        rejected_variant=f"variant of {rejected}",
        chosen_tokens=lengths[chosen],
        rejected_tokens=lengths[rejected],
    )


def read_one(pairs: list[PreferencePair], tokenizer: chat.Tokenizer) -> Example:
    examples, rejects = read_examples(pairs, tokenizer, context_tokens=1000)
    assert rejects == []
    (example,) = examples
    return example


# Reading


def test_example_holds_each_response_once_as_the_model_reads_it(
    tokenizer: chat.Tokenizer,
) -> None:
    first = make_pair("a", "b")
    second = replace(make_pair("c", "a", 0.6), weight=0.25, margin=1.5)
    example = read_one([first, second], tokenizer)
    # As the pairs say, in the same order.
    ranked = example.ranked
    assert (ranked.prompt_id, ranked.trait_id) == ("p1", "warm")
    assert ranked.pairs == (RankedPair(0, 1, 0.8, 0.5, 0.0), RankedPair(2, 0, 0.6, 0.25, 1.5))
    assert (example.family, example.split) == ("warm/tea", "train")
    assert example.texts == ("Yes!", "No, thank you.", "<|end|>")
    assert example.variants == ("variant of a", "variant of b", "variant of c")
    # As sampled; encoded again, the texts have 4, 14 and 8 tokens.
    assert example.lengths == (4, 15, 2)
    group = ranked.group
    assert decode(tokenizer, group.prompt_token_ids) == "<|user|>Tea?<|end|><|assistant|>"
    # A response that spells an end of turn does not end its turn.
    texts = [decode(tokenizer, response) for response in group.responses]
    assert texts == ["Yes!", "No, thank you.", "< |end|>"]
    for text, response in zip(TEXTS.values(), group.responses, strict=True):
        whole = chat.encode_exchange("Tea?", text, tokenizer)
        assert [*group.prompt_token_ids, *response] == whole
        assert tokenizer.encode("<|end|>")[0] not in response


def decode(tokenizer: chat.Tokenizer, token_ids: tuple[int, ...]) -> str:
    text: str = tokenizer.decode(token_ids)  # type: ignore[attr-defined]  # not used elsewhere
    return text


def test_prompt_of_several_turns_is_read_with_all_of_them(tokenizer: chat.Tokenizer) -> None:
    turns = (
        Message("system", "Be kind."),
        Message("user", "Hello<|end|>"),
        Message("assistant", "Good day."),
        Message("user", "Tea?"),
    )
    group = read_one([make_pair("a", "b", prompt=turns)], tokenizer).ranked.group
    # Special tokens in what was said are broken.
    assert decode(tokenizer, group.prompt_token_ids) == (
        "<|system|>Be kind.<|end|><|user|>Hello< |end|><|end|><|assistant|>Good day.<|end|>"
        "<|user|>Tea?<|end|><|assistant|>"
    )
    assert list(group.prompt_token_ids) == chat.encode(Shown(turns, ""), tokenizer)


def test_length_of_a_response_from_a_file_is_that_of_its_text(tokenizer: chat.Tokenizer) -> None:
    pair = replace(make_pair("a", "b"), chosen_tokens=None, rejected_tokens=None)
    assert read_one([pair], tokenizer).lengths == (4, 14)


def test_pairs_are_gathered_by_prompt_wherever_they_stand(tokenizer: chat.Tokenizer) -> None:
    pairs = [
        make_pair("a", "b", prompt_id="p2"),
        make_pair("a", "b", prompt_id="p1"),
        make_pair("c", "a", prompt_id="p2"),
    ]
    examples, rejects = read_examples(iter(pairs), tokenizer, context_tokens=1000)
    assert rejects == []
    assert [example.ranked.prompt_id for example in examples] == ["p2", "p1"]
    assert [len(example.ranked.pairs) for example in examples] == [2, 1]
    assert [len(example.texts) for example in examples] == [3, 2]


def test_prompt_with_a_response_too_long_for_the_model_is_a_reject(
    tokenizer: chat.Tokenizer,
) -> None:
    # The prompt is 1 + 4 + 1 + 1 tokens, the longest response 14.
    pairs = [make_pair("a", "b"), make_pair("a", "c", prompt_id="p2")]
    examples, rejects = read_examples(pairs, tokenizer, context_tokens=21)
    assert (len(examples), rejects) == (2, [])
    examples, rejects = read_examples(pairs, tokenizer, context_tokens=20)
    assert [example.ranked.prompt_id for example in examples] == ["p2"]
    (reject,) = rejects
    assert isinstance(reject, Reject)
    assert (reject.row_id, reject.trait_id, reject.stage) == ("p1", "warm", "preference_model")
    assert reject.reason == "too_long"
    assert "21 tokens" in reject.detail
    assert "model.context_tokens 20" in reject.detail


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_utilities_agree_with_the_probabilities(tokenizer: chat.Tokenizer) -> None:
    planted = {"a": 1.0, "b": -0.5, "c": 0.25}
    pairs = [
        make_pair(i, j, sigmoid(planted[i] - planted[j]))
        for i, j in (("a", "b"), ("c", "b"), ("a", "c"))
    ]
    ranked = read_one(pairs, tokenizer).ranked
    for pair in ranked.pairs:
        difference = ranked.utilities[pair.chosen] - ranked.utilities[pair.rejected]
        assert sigmoid(difference) == pytest.approx(pair.probability, abs=2e-3)
    assert sum(ranked.utilities) == pytest.approx(0.0, abs=1e-9)


def test_utilities_of_responses_that_were_not_all_compared(tokenizer: chat.Tokenizer) -> None:
    # a before b and b before c by as much: a and c are twice as far apart.
    ranked = read_one([make_pair("a", "b", 0.8), make_pair("b", "c", 0.8)], tokenizer).ranked
    a, b, c = ranked.utilities
    assert a - b == pytest.approx(math.log(4), abs=0.03)
    assert a - c == pytest.approx(2 * math.log(4), abs=0.06)


def test_utilities_of_a_certain_label_and_of_a_tie_are_finite(tokenizer: chat.Tokenizer) -> None:
    a, b = read_one([make_pair("a", "b", 1.0)], tokenizer).ranked.utilities
    assert 5 < a - b < 8
    a, b = read_one([make_pair("a", "b", 0.5)], tokenizer).ranked.utilities
    assert a == pytest.approx(b, abs=1e-9)


def test_utilities_hear_a_person_who_prefers_the_other_response(
    tokenizer: chat.Tokenizer,
) -> None:
    # A cycle with one strong pair: b beats a.
    pairs = [make_pair("a", "b", 0.6), make_pair("b", "c", 0.6), make_pair("c", "a", 0.95)]
    a, b, c = read_one(pairs, tokenizer).ranked.utilities
    assert c > a
    assert b > a


# Shares


def make_example(prompt_id: str, trait_id: str = "warm", family: str | None = None) -> Example:
    """A prompt with three responses, best first."""
    pairs = tuple(
        RankedPair(i, j, probability, 1 / 3, 0.0)
        for i, j, probability in ((0, 1, 0.7), (0, 2, 0.9), (1, 2, 0.8))
    )
    group = PromptGroup((1, 2), ((3,), (4,), (5,)))
    return Example(
        ranked=RankedPrompt(prompt_id, trait_id, group, pairs, (1.1, 0.2, -1.3)),
        family=f"{trait_id}/{prompt_id}" if family is None else family,
        split="train",
        texts=("x", "y", "z"),
        response_ids=("rx", "ry", "rz"),
        lengths=(1, 1, 1),
        variants=("none", "none", "none"),
    )


def ids(examples: list[Example]) -> list[str]:
    return [example.ranked.prompt_id for example in examples]


def own_and_general(num_own: int, num_general: int) -> list[Example]:
    return [
        *(make_example(f"o{index}") for index in range(num_own)),
        *(make_example(f"g{index}", NO_TRAIT) for index in range(num_general)),
    ]


@pytest.mark.parametrize(
    ("num_own", "share", "num_general"),
    [(8, 0.2, 2), (6, 0.25, 2), (5, 0.5, 5), (3, 0.75, 9), (8, 0.0, 0), (10, 0.1, 1)],
)
def test_general_examples_are_their_share_of_all(
    num_own: int, share: float, num_general: int
) -> None:
    found, left = mixed(own_and_general(num_own, 9), general_share=share, seed=1)
    counts = Counter(example.ranked.trait_id for example in found)
    assert (counts["warm"], counts[NO_TRAIT], left) == (num_own, num_general, 9 - num_general)
    assert len(set(ids(found))) == num_own + num_general


def test_too_few_general_examples_are_refused() -> None:
    examples = own_and_general(8, 1)
    message = r"general_share 0\.2 asks for 2 general prompts.*8 prompts.*have 1"
    with pytest.raises(TrainingError, match=message):
        mixed(examples, general_share=0.2, seed=1)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_nothing_but_general_examples_are_all_taken(share: float) -> None:
    examples = own_and_general(0, 4)
    found, left = mixed(examples, general_share=share, seed=1)
    assert (sorted(ids(found)), left) == (["g0", "g1", "g2", "g3"], 0)


def test_general_examples_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    examples = own_and_general(8, 30)
    found, _ = mixed(examples, general_share=0.5, seed=1)
    again, _ = mixed(examples[::-1], general_share=0.5, seed=1)
    other, _ = mixed(examples, general_share=0.5, seed=2)
    assert set(ids(found)) == set(ids(again)) != set(ids(other))


def families_of(sizes: dict[str, list[int]]) -> list[Example]:
    """For each trait families of so many prompts."""
    return [
        make_example(f"{trait}-{number}-{index}", trait, f"{trait}/{trait} {number}")
        for trait, of_trait in sizes.items()
        for number, size in enumerate(of_trait)
        for index in range(size)
    ]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_halves_share_no_family_and_are_near_the_share(share: float) -> None:
    for seed in range(20):
        sizes = {"warm": [1, 5, 2, 2, 3, 1, 1], "curious": [2] * 10, NO_TRAIT: [1] * 30}
        examples = families_of(sizes)
        trained, gold = halves(examples, gold_share=share, seed=seed)
        assert sorted(ids(trained + gold)) == sorted(ids(examples))
        assert {e.family for e in trained}.isdisjoint({e.family for e in gold})
        counts = Counter(example.ranked.trait_id for example in gold)
        for trait, of_trait in sizes.items():
            # By no more than half of the largest family.
            assert abs(counts[trait] - share * sum(of_trait)) <= max(of_trait) / 2 + 1e-9


def test_halves_of_single_families_are_exact() -> None:
    trained, gold = halves(families_of({"warm": [1] * 40}), gold_share=0.25, seed=3)
    assert (len(trained), len(gold)) == (30, 10)


def test_halves_of_no_share_are_all_on_one_side() -> None:
    examples = families_of({"warm": [1, 2], "curious": [3]})
    trained, gold = halves(examples, gold_share=0.0, seed=3)
    assert (len(trained), gold) == (6, [])


def test_halves_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    examples = families_of({"warm": [2] * 10, "curious": [1] * 20})
    _, gold = halves(examples, gold_share=0.5, seed=1)
    _, again = halves(examples[::-1], gold_share=0.5, seed=1)
    _, other = halves(examples, gold_share=0.5, seed=2)
    assert set(ids(gold)) == set(ids(again)) != set(ids(other))


def test_a_scenario_of_two_traits_is_on_one_side() -> None:
    for seed in range(10):
        # Facets that two traits share are one scenario, in families of a name each.
        examples = [
            make_example(f"{trait}-{number}-{index}", trait, f"{trait}/scenario {number}")
            for trait, of_one in (("warm", 1), ("curious", 3))
            for number in range(6)
            for index in range(of_one + number % 2)
        ]
        trained, gold = halves(examples, gold_share=0.5, seed=seed)
        assert trained
        assert gold
        assert shared_families(trained, gold) == []


def test_held_out_examples_are_halved_within_each_trait() -> None:
    examples = families_of({"warm": [1] * 7, "curious": [4]})
    selection, measured = selection_and_measured(examples, seed=1)
    assert sorted(ids(selection + measured)) == sorted(ids(examples))
    assert Counter(e.ranked.trait_id for e in selection) == {"warm": 3, "curious": 2}
    assert Counter(e.ranked.trait_id for e in measured) == {"warm": 4, "curious": 2}


def test_held_out_halves_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    examples = families_of({"warm": [1] * 20, "curious": [20]})
    selection, _ = selection_and_measured(examples, seed=1)
    again, _ = selection_and_measured(examples[::-1], seed=1)
    other, _ = selection_and_measured(examples, seed=2)
    assert set(ids(selection)) == set(ids(again)) != set(ids(other))


def test_trait_that_could_not_be_measured_is_refused_before_training() -> None:
    enough = families_of({"warm": [4], "curious": [3]})
    check_held_out(enough, *selection_and_measured(enough, seed=1))
    few = families_of({"warm": [4], "curious": [2]})
    with pytest.raises(TrainingError, match=r"curious 1 \+ 1, warm 2 \+ 2.*validation_share"):
        check_held_out(few, *selection_and_measured(few, seed=1))
    with pytest.raises(TrainingError, match=r"curious 0 \+ 1"):
        check_held_out(few, *selection_and_measured(families_of({"curious": [1]}), seed=1))


def test_no_held_out_prompts_are_refused() -> None:
    with pytest.raises(TrainingError, match="none"):
        check_held_out([], [], [])
    measured = families_of({"warm": [3]})
    with pytest.raises(TrainingError, match=r"warm 0 \+ 3"):
        check_held_out(measured, [], measured)


# The placebo


def winner(pair: RankedPair) -> int:
    return pair.chosen if pair.probability > 0.5 else pair.rejected


def test_shuffled_labels_are_the_same_labels_of_other_responses() -> None:
    for number in range(50):
        ranked = make_example(f"p{number}").ranked
        found = shuffled(ranked, seed=1)
        assert found.group == ranked.group
        assert sorted(found.utilities) == sorted(ranked.utilities)
        labels = [(pair.probability, pair.weight, pair.margin) for pair in ranked.pairs]
        assert [(pair.probability, pair.weight, pair.margin) for pair in found.pairs] == labels
        # Each pair of responses still once, and the ranking whole.
        assert len({frozenset((pair.chosen, pair.rejected)) for pair in found.pairs}) == 3
        for before, after in zip(ranked.pairs, found.pairs, strict=True):
            assert (
                found.utilities[after.chosen] - found.utilities[after.rejected]
                == ranked.utilities[before.chosen] - ranked.utilities[before.rejected]
            )


@pytest.mark.parametrize("num_responses", [2, 3, 5])
def test_shuffled_labels_say_nothing_of_the_responses(num_responses: int) -> None:
    num_prompts = 2000
    pairs = tuple(
        RankedPair(i, j, 0.9, 1.0, 0.0)
        for i in range(num_responses)
        for j in range(i + 1, num_responses)
    )
    group = PromptGroup((1,), ((2,),) * num_responses)
    utilities = tuple(-float(i) for i in range(num_responses))
    same = 0
    best: Counter[int] = Counter()
    for number in range(num_prompts):
        found = shuffled(RankedPrompt(f"p{number}", "warm", group, pairs, utilities), seed=7)
        # The response of the lower place was the better one in every pair.
        same += sum(winner(pair) == min(pair.chosen, pair.rejected) for pair in found.pairs)
        best[found.utilities.index(0.0)] += 1
    assert same / (num_prompts * len(pairs)) == pytest.approx(0.5, abs=0.04)
    for place in range(num_responses):
        assert best[place] / num_prompts == pytest.approx(1 / num_responses, abs=0.04)


def test_shuffling_depends_on_the_seed_and_on_the_prompt_alone() -> None:
    prompts = [make_example(f"p{number}").ranked for number in range(30)]
    found = [shuffled(ranked, seed=1) for ranked in prompts]
    assert [shuffled(ranked, seed=1) for ranked in reversed(prompts)] == found[::-1]
    assert [shuffled(ranked, seed=2) for ranked in prompts] != found
    assert len({of_one.utilities for of_one in found}) == 6


def test_halves_of_a_trait_of_one_family_are_by_prompt_and_said_to_be() -> None:
    examples = families_of({"warm": [9], "curious": [2, 2, 2, 2]})
    trained, gold = halves(examples, gold_share=0.5, seed=3)
    counts = Counter(e.ranked.trait_id for e in gold)
    assert counts == {"warm": 4, "curious": 4}
    assert len(trained) + len(gold) == len(examples)
    (shared,) = shared_families(trained, gold)
    assert shared == "warm 0"


def test_a_trait_of_one_prompt_has_no_half() -> None:
    with pytest.raises(TrainingError, match=r"'warm' has one training prompt.*gold_share=0"):
        halves(families_of({"warm": [1]}), gold_share=0.5, seed=3)


def test_a_trait_that_is_trained_and_not_held_out_is_refused_before_training() -> None:
    trained, held_out = families_of({"warm": [4], "curious": [4]}), families_of({"warm": [8]})
    with pytest.raises(TrainingError, match=r"curious 0 \+ 0|warm 4 \+ 4"):
        check_held_out(trained, *selection_and_measured(held_out, seed=1))
    general = families_of({"warm": [4], NO_TRAIT: [4]})
    check_held_out(general, *selection_and_measured(held_out, seed=1))


def test_held_out_general_comparisons_are_no_more_than_their_share() -> None:
    examples = families_of({"warm": [6], NO_TRAIT: [1] * 40})
    assert len(mixed_held_out(examples, general_share=0.0, seed=1)) == 6
    found = mixed_held_out(examples, general_share=0.25, seed=1)
    assert Counter(e.ranked.trait_id for e in found) == {"warm": 6, NO_TRAIT: 2}
    # Fewer than asked for are no reason to stop, nor are none of a trait.
    assert len(mixed_held_out(examples[:7], general_share=0.5, seed=1)) == 7
    assert len(mixed_held_out(examples[6:], general_share=0.0, seed=1)) == 40


def test_lists_are_checked_for_the_loss_that_takes_whole_rankings() -> None:
    (example,) = families_of({"warm": [1]})
    check_lists([example])
    long = replace(example, texts=("a",) * 11)
    with pytest.raises(TrainingError, match="has 11; use objective bradley_terry"):
        check_lists([long])
    pair = replace(example.ranked.pairs[0], margin=0.5)
    ahead = replace(example, ranked=replace(example.ranked, pairs=(pair,)))
    with pytest.raises(TrainingError, match="has a margin"):
        check_lists([ahead])
