"""From replies to rows: levels, changes, interactions, slopes, losses and what is left."""

from dataclasses import replace
from typing import Any

import pytest

from charactertrain.probes.descriptions import ON_TRAIT, Description
from charactertrain.probes.results import probe_results
from charactertrain.records import NO_TRAIT, Message, ScriptReply

REPLY = ScriptReply(
    sample_id="",
    script_id="",
    probe="mine",
    condition="plain",
    cluster="p1",
    trait_id=NO_TRAIT,
    arm="base",
    turn=0,
    messages=(Message("user", "Well?"),),
    text="Yes.",
    num_tokens=2,
    finish_reason="stop",
    contrast=None,
    detected=None,
    measure="",
    score=None,
)


def replies(values: dict[str, list[float]], **fields: Any) -> list[ScriptReply]:
    """By arm, a score for each of the clusters p1, p2 and so on."""
    made = []
    for arm, scores in values.items():
        for number, score in enumerate(scores, start=1):
            own: dict[str, Any] = {"measure": "refusal", "arm": arm, "score": score}
            reply = replace(REPLY, **{**own, "cluster": f"p{number}", **fields})
            script_id = f"{reply.probe}/{reply.condition}/{reply.cluster}"
            made.append(replace(reply, script_id=script_id))
    return made


def contrasts(values: dict[str, list[float]], **fields: Any) -> list[ScriptReply]:
    scored = replies(values, **{"trait_id": "warm", "measure": "", **fields})
    return [replace(reply, contrast=reply.score, score=None) for reply in scored]


def result(made: list[ScriptReply], *, better: Any = "lower", asks: bool = False) -> dict[str, Any]:
    description = {"mine": Description("Mine", "What then?", better, asks)}
    found: dict[str, Any] = probe_results(made, description, num_resamples=200, seed=1)["mine"]
    return found


def row(found: dict[str, Any], condition: str, measure: str, trait: Any = None) -> dict[str, Any]:
    (one,) = [
        row
        for row in found["rows"]
        if (row["condition"], row["measure"], row["trait_id"]) == (condition, measure, trait)
    ]
    rows: dict[str, Any] = one
    return rows


def test_level_is_against_the_base_for_every_other_arm() -> None:
    found = result(
        replies({"base": [0.0, 0.0, 1.0], "policy": [1.0, 0.0, 1.0], "other": [0.0, 0.0, 0.0]})
    )
    assert (found["title"], found["question"], found["unit"]) == ("Mine", "What then?", "share")
    refusals = row(found, "plain", "refusal")
    assert (refusals["unit"], refusals["better"]) == ("share", "lower")
    assert set(refusals["arms"]) == {"policy", "other"}
    effect = refusals["arms"]["policy"]
    assert effect["base"] == pytest.approx(1 / 3)
    assert effect["arm"] == pytest.approx(2 / 3)
    assert effect["ci_low"] <= effect["difference"] <= effect["ci_high"]
    assert (effect["num_prompts"], effect["num_responses"]) == (3, 3)
    assert refusals["arms"]["other"]["difference"] == pytest.approx(-1 / 3)


def test_change_is_within_each_arm_and_its_difference_between_them() -> None:
    found = result(
        [
            *replies({"base": [0.0, 1.0], "policy": [0.0, 0.0]}),
            *replies({"base": [0.0, 1.0], "policy": [1.0, 0.0]}, condition="own"),
        ]
    )
    effect = row(found, "own", "refusal_change")["arms"]["policy"]
    assert (effect["base"], effect["arm"], effect["difference"]) == (0.0, 0.5, 0.5)
    assert not [r for r in found["rows"] if r["measure"].endswith("_interaction")]


def test_interaction_is_beyond_what_both_conditions_change_alone() -> None:
    found = result(
        [
            *replies({"base": [0.0, 0.2], "policy": [0.0, 0.2]}),
            *replies({"base": [0.1, 0.3], "policy": [0.2, 0.4]}, condition="sad"),
            *replies({"base": [0.3, 0.5], "policy": [0.3, 0.5]}, condition="belief"),
            *replies({"base": [0.4, 0.6], "policy": [0.9, 1.0]}, condition="sad+belief"),
        ]
    )
    effect = row(found, "sad+belief", "refusal_interaction")["arms"]["policy"]
    assert effect["base"] == pytest.approx(0.0)
    # Beyond belief alone, sadness adds 0.6 and 0.5; without it 0.2 twice.
    assert effect["arm"] == pytest.approx(0.35)


def test_losses_are_of_the_turns_of_a_conversation() -> None:
    turns: list[ScriptReply] = []
    for turn, scores in enumerate(
        (
            {"base": [1.0] * 6, "policy": [1.0] * 6},
            {"base": [1.0, 0.0] * 3, "policy": [0.0] * 6},
        )
    ):
        turns += replies(scores, condition="doubted", measure="correct", turn=turn)
    found = result(turns)
    assert row(found, "doubted, turn 1", "correct")["arms"]["policy"]["arm"] == 1.0
    assert row(found, "doubted, turn 2", "correct")["better"] == "higher"
    lost = row(found, "doubted", "correct_lost")
    assert (lost["better"], lost["unit"]) == ("lower", "share")
    assert (lost["arms"]["policy"]["base"], lost["arms"]["policy"]["arm"]) == (0.5, 1.0)


def test_slope_leaves_out_conversations_that_were_cut_short() -> None:
    turns: list[ScriptReply] = []
    for turn in range(3):
        base = [0.1, 0.1, 0.1]
        policy = [0.9 - 0.2 * turn, 0.9 - 0.4 * turn, 9.0][: 3 if turn < 2 else 2]
        turns += contrasts({"base": base, "policy": policy}, condition="turns", turn=turn)
    found = result(turns)
    effect = row(found, "turns", "contrast_slope")["arms"]["policy"]
    assert effect["arm"] == pytest.approx(-0.3)
    assert effect["num_prompts"] == 2
    assert row(found, "turns", "contrast_slope")["unit"] == "nats per token per turn"
    assert found["left_out"] == {"policy": 1}


PLAIN = contrasts(
    {"base": [0.0, 0.1, 0.0, 0.1], "policy": [1.0, 1.1, 1.2, 1.1]}, probe=ON_TRAIT, condition="x"
)
SUFFIXES = [
    *contrasts(
        {"base": [0.0, 0.1, 0.0, 0.1], "policy": [0.5, 0.6, 0.6, 0.6]}, condition="suffix-1"
    ),
    *contrasts(
        {"base": [0.0, 0.1, 0.0, 0.1], "policy": [0.9, 1.0, 1.1, 1.1]}, condition="suffix-2"
    ),
]


def test_retention_is_against_the_prompts_alone() -> None:
    found = result([*PLAIN, *SUFFIXES], better="higher", asks=True)
    assert found["unit"] == "nats per token"
    assert row(found, "plain", "contrast")["arms"]["policy"]["arm"] == pytest.approx(1.1)
    left = row(found, "suffix-1", "contrast_retention")
    assert left["unit"] == "share of the effect"
    # 2.1 / 4.2 of the four prompts' sums.
    assert left["arms"]["policy"]["arm"] == pytest.approx(0.5)
    worst = row(found, "worst", "contrast_retention")["arms"]["policy"]
    assert (worst["arm"], worst["condition"]) == (pytest.approx(0.5), "suffix-1")
    # That prompts alone are no probe.
    assert ON_TRAIT not in probe_results(
        [*PLAIN, *SUFFIXES], {"mine": Description("", "", None)}, num_resamples=200, seed=1
    )


def test_retention_is_left_out_where_nobody_asks() -> None:
    found = result([*PLAIN, *SUFFIXES], asks=False)
    assert not [r for r in found["rows"] if r["measure"].endswith("_retention")]
    assert row(found, "suffix-1", "contrast_change")["arms"]["policy"]["arm"] == pytest.approx(
        -0.525
    )


def test_traits_have_rows_of_their_own() -> None:
    curious = [
        replace(r, trait_id="curious", contrast=0.0, detected=r.arm != "base") for r in PLAIN
    ]
    made = [replace(r, probe="mine") for r in [*PLAIN, *curious]]
    found = result([replace(r, condition="plain") for r in made])
    assert row(found, "plain", "contrast", "warm")["arms"]["policy"]["arm"] == pytest.approx(1.1)
    assert row(found, "plain", "contrast", "curious")["arms"]["policy"]["arm"] == 0.0
    assert row(found, "plain", "contrast")["arms"]["policy"]["arm"] == pytest.approx(0.55)
    assert row(found, "plain", "detector_rate", "curious")["arms"]["policy"]["arm"] == 1.0
    assert not [
        r for r in found["rows"] if (r["measure"], r["trait_id"]) == ("detector_rate", "warm")
    ]


def test_reply_that_one_arm_lacks_is_left_out_and_counted() -> None:
    both = replies({"base": [0.0, 1.0, 0.0], "policy": [0.0, 1.0]})
    found = result(both)
    assert row(found, "plain", "refusal")["arms"]["policy"]["base"] == 0.5
    assert found["left_out"] == {"policy": 1}


def test_probe_without_replies_has_no_result() -> None:
    assert probe_results([], {"mine": Description("", "", None)}, num_resamples=200, seed=1) == {}


def test_examples_show_what_every_arm_said_after_the_same_words() -> None:
    made = replies({"base": [0.0, 0.0], "policy": [0.0, 0.0]}, condition="doubted")
    later = [
        replace(
            r,
            turn=1,
            text=f"{r.arm} stays",
            messages=(*r.messages, Message("assistant", r.text), Message("user", "Sure?")),
        )
        for r in made
    ]
    (example,) = result([*made, *later])["examples"]
    assert example["condition"] == "doubted"
    assert example["messages"] == [{"role": "user", "content": "Well?"}]
    assert example["replies"] == {
        "base": "Yes.\n\n> Sure?\n\nbase stays",
        "policy": "Yes.\n\n> Sure?\n\npolicy stays",
    }


def test_results_do_not_depend_on_the_order_of_replies() -> None:
    made = [*PLAIN, *SUFFIXES]
    one, other = result(made, asks=True), result(made[::-1], asks=True)
    key = lambda r: (r["condition"], r["measure"])  # noqa: E731
    assert sorted(one["rows"], key=key) == sorted(other["rows"], key=key)
    assert one["examples"] == other["examples"]
