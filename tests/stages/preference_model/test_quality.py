"""What is measured on held-out pairs, by hand."""

import math
from collections.abc import Sequence
from typing import ClassVar

import pytest

from charactertrain.models.packing import PromptGroup
from charactertrain.records import Trait
from charactertrain.stages.preference_model import quality, shortcuts
from charactertrain.stages.preference_model.data import Example
from charactertrain.stages.preference_model.step import RankedPair, RankedPrompt

NO_BASELINES: quality.Baselines = {}


def example(
    prompt_id: str,
    pairs: Sequence[tuple[int, int, float]],
    *,
    lengths: Sequence[int],
    trait_id: str = "warm",
    variants: Sequence[str] | None = None,
) -> Example:
    """A held-out prompt with as many responses as lengths."""
    responses = tuple((10, 11) for _ in lengths)
    ranked = RankedPrompt(
        prompt_id,
        trait_id,
        PromptGroup((1, 2), responses),
        tuple(RankedPair(i, j, p, 1 / len(pairs), 0.0) for i, j, p in pairs),
        tuple(0.0 for _ in lengths),
    )
    texts = tuple(f"response {index}" for index in range(len(lengths)))
    names = tuple(variants) if variants else ("none",) * len(lengths)
    return Example(ranked, "f", "validation", texts, names, tuple(lengths), names)


EXAMPLES = [
    example("p1", [(0, 1, 0.6224593)], lengths=[5, 3]),
    example("p2", [(0, 1, 0.9)], lengths=[4, 2]),
    example("p3", [(0, 1, 0.7310586)], lengths=[2, 6], trait_id="curious"),
    example("p4", [(0, 1, 0.6)], lengths=[3, 3], trait_id="curious"),
]
REWARDS = {"p1": [2.0, 1.0], "p2": [0.0, 1.0], "p3": [1.0, -1.0], "p4": [0.5, 0.5]}


def pairs_of(*names: str) -> list[quality.HeldOutPair]:
    return quality.held_out_pairs([e for e in EXAMPLES if e.ranked.prompt_id in names], REWARDS)


def longer(pair: quality.HeldOutPair) -> float:
    return float(pair.extra_tokens)


def test_accuracy_by_hand() -> None:
    found = quality.accuracy(pairs_of("p1", "p2", "p3", "p4"), {"length": longer}, seed=1)
    # Margins 1, -1, 2 and 0: right, wrong, right, and half right.
    assert found["estimate"] == 2.5 / 4
    assert found["ci_low"] <= found["estimate"] <= found["ci_high"]
    assert (found["num_clusters"], found["num_pairs"]) == (4, 4)
    # The chosen is longer, longer, shorter, as long.
    assert found["length_only"] == 2.5 / 4
    assert found["above_length"]["estimate"] == 0.0


def test_accuracy_leaves_out_pairs_without_a_better_side() -> None:
    tied = quality.held_out_pairs(
        [example("p5", [(0, 1, 0.5)], lengths=[1, 2]), EXAMPLES[0]], {**REWARDS, "p5": [1.0, 0.0]}
    )
    assert quality.accuracy(tied, NO_BASELINES, seed=1)["num_pairs"] == 1
    assert quality.accuracy([], NO_BASELINES, seed=1)["estimate"] is None


def test_a_label_below_one_half_is_right_with_a_negative_margin() -> None:
    found = quality.held_out_pairs(
        [example("p5", [(0, 1, 0.2)], lengths=[1, 2])], {"p5": [0.0, 1.0]}
    )
    assert quality.accuracy(found, NO_BASELINES, seed=1)["estimate"] == 1.0


def test_accuracy_resamples_prompts_and_not_pairs() -> None:
    # One prompt with three right pairs and one with a wrong one.
    three = example("p1", [(0, 1, 0.9), (0, 2, 0.9), (1, 2, 0.9)], lengths=[1, 2, 3])
    one = example("p2", [(0, 1, 0.9)], lengths=[1, 2])
    pairs = quality.held_out_pairs([three, one], {"p1": [3.0, 2.0, 1.0], "p2": [0.0, 1.0]})
    found = quality.accuracy(pairs, NO_BASELINES, seed=1)
    assert found["estimate"] == 0.75
    # A resample of two prompts is all right, all wrong or as found, nothing between.
    assert (found["ci_low"], found["ci_high"]) == (0.0, 1.0)


def test_measure_fits_the_temperature_on_other_prompts_than_it_measures() -> None:
    # Labels of p1 and p3 are sigma(margin / 2).
    found = quality.measure(pairs_of("p1", "p3"), pairs_of("p2", "p4"), NO_BASELINES, seed=1)
    assert found["temperature"] == pytest.approx(2.0, rel=1e-4)
    assert (found["num_pairs"], found["num_selection_pairs"]) == (2, 2)
    assert found["accuracy"]["estimate"] == 0.25
    assert {name: row["estimate"] for name, row in found["accuracy_by_trait"].items()} == {
        "warm": 0.0,
        "curious": 0.5,
    }
    # Measured on p2 and p4: sigma(-1) for 0.9 and 0.5 for 0.6, from both sides.
    before = found["before_temperature"]
    assert before["brier"] == pytest.approx(((0.2689414 - 0.9) ** 2 + 0.1**2) / 2)
    assert before["ece"] == pytest.approx((0.9 - 0.2689414) * 2 / 4)
    assert before["ece_ci_low"] <= before["ece"] <= before["ece_ci_high"]
    assert [entry["count"] for entry in before["bins"]] == [1, 2, 1]
    nll = -0.9 * math.log(0.2689414) - 0.1 * math.log(0.7310586)
    assert before["nll"] == pytest.approx((nll + math.log(2)) / 2, rel=1e-6)
    after = found["after_temperature"]
    assert after["brier"] == pytest.approx(((0.3775407 - 0.9) ** 2 + 0.1**2) / 2, rel=1e-4)


def test_measure_by_strength_and_by_wording() -> None:
    same = example("p5", [(0, 1, 0.95)], lengths=[1, 2], variants=["mild", "mild"])
    other = example("p6", [(0, 1, 0.55)], lengths=[1, 2], variants=["mild", "none"])
    pairs = quality.held_out_pairs([same, other], {"p5": [1.0, 0.0], "p6": [0.0, 1.0]})
    found = quality.measure(pairs, pairs, NO_BASELINES, seed=1)
    rows = {(row["low"], row["high"]): row["estimate"] for row in found["accuracy_by_strength"]}
    assert rows == {(0.5, 0.6): 0.0, (0.6, 0.75): None, (0.75, 0.9): None, (0.9, 1.0): 1.0}
    assert found["accuracy_same_variant"]["estimate"] == 1.0
    assert found["accuracy_same_variant"]["ci_low"] is None


def test_baselines_know_what_the_training_labels_follow() -> None:
    # The longer is better in all, and was written strongly in half of them.
    trained = [
        example(f"t{i}", [(0, 1, 0.9)], lengths=[50, 10], variants=["strong", "none"])
        for i in range(8)
    ] + [
        example(f"s{i}", [(0, 1, 0.9)], lengths=[50, 10], variants=["none", "strong"])
        for i in range(8)
    ]
    baselines = quality.fit_baselines(trained)
    (shorter,) = quality.held_out_pairs(
        [example("p", [(0, 1, 0.9)], lengths=[10, 30], variants=["strong", "none"])],
        {"p": [0.0, 0.0]},
    )
    assert baselines["length"](shorter) < -0.5
    assert baselines["provenance"](shorter) == pytest.approx(0.0, abs=1e-3)
    assert quality.fit_baselines(trained[:8])["provenance"](shorter) > 1.0


def test_length_slope_is_within_prompts() -> None:
    # 0.5 per token in the first, none in the second, whose level is another.
    first = example("p1", [(0, 1, 0.9)], lengths=[1, 3])
    second = example("p2", [(0, 1, 0.9)], lengths=[2, 4])
    assert quality.length_slope([first, second], {"p1": [0.0, 1.0], "p2": [10.0, 10.0]}) == 0.25
    assert quality.length_slope([first], {"p1": [6.0, 5.0]}) == -0.5
    equal = example("p1", [(0, 1, 0.9)], lengths=[4, 4])
    assert quality.length_slope([equal], {"p1": [0.0, 1.0]}) == 0.0


def test_length_correlation_of_rewards_that_follow_length() -> None:
    examples = [example(f"p{i}", [(0, 1, 0.9)], lengths=[1, 3 + i]) for i in range(4)]
    rewards = {f"p{i}": [1.0, 3.0 + i] for i in range(4)}
    found = quality.length_correlation(examples, rewards, seed=1)
    assert found is not None
    assert (found["estimate"], found["ci_low"]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_compared_counts_pairs_in_the_same_order() -> None:
    ours, theirs = pairs_of("p1", "p2"), pairs_of("p1", "p2")
    turned = {**REWARDS, "p2": [1.0, 0.0]}
    theirs = quality.held_out_pairs(EXAMPLES[:2], turned)
    found = quality.compared(theirs, ours, NO_BASELINES, seed=1)
    assert found["same_order"]["estimate"] == 0.5
    assert found["accuracy"]["estimate"] == 1.0


def test_a_model_that_is_certain_and_wrong_has_a_finite_likelihood() -> None:
    # Pairs in order without error: the temperature falls to its least, and one wrong pair follows.
    right = [example(f"r{i}", [(0, 1, 1.0)], lengths=[1, 2]) for i in range(4)]
    wrong = example("w", [(0, 1, 1.0)], lengths=[1, 2])
    rewards = {f"r{i}": [2.0, 0.0] for i in range(4)} | {"w": [0.0, 2.0]}
    found = quality.measure(
        quality.held_out_pairs(right, rewards),
        quality.held_out_pairs([*right, wrong], rewards),
        NO_BASELINES,
        seed=1,
    )
    assert found["after_temperature"]["nll"] == pytest.approx(-math.log(1e-6) / 5, rel=1e-3)


# Shortcuts


class Characters:
    """A tokenizer of characters."""

    added_tokens_decoder: ClassVar[dict[int, object]] = {}

    def encode(self, text: str, **options: object) -> list[int]:
        return [ord(character) for character in text]


WARM = Trait("warm", "I am warm.", (), None, 1.0, "t")


def test_edited_responses_leave_out_what_does_not_fit_and_prompts_without_a_trait() -> None:
    examples = [EXAMPLES[0], example("g", [(0, 1, 0.9)], lengths=[1, 2], trait_id="general")]
    tokenizer = Characters()
    (edited,) = shortcuts.edited_responses(
        examples, {"warm": WARM}, tokenizer, context_tokens=60, seed=1
    )
    assert edited.prompt_id == "p1"
    assert edited.group.prompt_token_ids == (1, 2)
    texts = ["".join(map(chr, ids)) for ids in edited.group.responses]
    by_name = dict(zip(edited.edits, texts, strict=True))
    original = EXAMPLES[0].texts[edited.place]
    assert by_name["repetition"] == f"{original} {original}"
    assert by_name["trait quoted"] == f"I am warm. {original}"
    assert "padding" not in by_name


def test_effects_are_in_units_of_the_spread_within_prompts() -> None:
    edited = [
        shortcuts.EditedResponse(name, 0, ("emoji",), PromptGroup((1,), ((2,),)))
        for name in ("p1", "p2")
    ]
    # Rewards of p1 and p2: 2, 1 and 0, 1. Variance about the means, over two degrees: 0.5.
    found = shortcuts.effects(edited, [[2.5], [1.0]], EXAMPLES[:2], REWARDS, seed=1)
    assert found["emoji"]["estimate"] == pytest.approx(0.75 / math.sqrt(0.5))
    assert (found["emoji"]["num_prompts"], found["emoji"]["raised_share"]) == (2, 1.0)
    assert shortcuts.effects(edited[:1], [[2.5]], EXAMPLES[:2], REWARDS, seed=1) == {}
