"""Verdicts that change with the wording, by hand and with planted chances."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from charactertrain.evaluation.effects import Bootstrap
from charactertrain.probes.flips import flip_rows
from charactertrain.records import ScriptReply

BOOTSTRAP = Bootstrap(num_resamples=200, seed=1)
REPLY = ScriptReply(
    sample_id="",
    script_id="",
    probe="paraphrase",
    condition="plain",
    cluster="p1",
    trait_id="warm",
    arm="policy",
    turn=0,
    messages=(),
    text="",
    num_tokens=1,
    finish_reason="stop",
    contrast=None,
    detected=None,
    measure="",
    score=None,
)


def twice(cluster: str, verdicts: Mapping[str, Sequence[bool]], **fields: Any) -> list[ScriptReply]:
    """Replies to one prompt, by condition."""
    return [
        replace(REPLY, cluster=cluster, condition=condition, detected=verdict, **fields)
        for condition, found in verdicts.items()
        for verdict in found
    ]


def flips(replies: list[ScriptReply], arm: str = "policy", verdict: str = "detected") -> Any:
    (row,) = [
        row
        for row in flip_rows(replies, BOOTSTRAP)
        if (row["verdict"], row["trait_id"]) == (verdict, None)
    ]
    return row["arms"].get(arm)


def test_flips_and_their_floor_are_worked_out_by_hand() -> None:
    found = flips(
        [
            # Between wordings all four pairs differ, within either none.
            *twice("p1", {"plain": (True, True), "wording-1": (False, False)}),
            # Two of four differ, and one of the two pairs within.
            *twice("p2", {"plain": (True, False), "wording-1": (True, True)}),
            # Two wordings: two of four, with both pairs differing, and none.
            *twice(
                "p3",
                {"plain": (True, False), "wording-1": (False, True), "wording-2": (False, False)},
            ),
        ]
    )
    assert found["flips"]["estimate"] == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)
    assert found["floor"]["estimate"] == pytest.approx((0 + 0.5 + 1 + 0.5) / 4)
    assert found["above_floor"]["estimate"] == pytest.approx(0.125)
    assert found["num_prompts"] == 3


def planted(chances: Mapping[str, float], *, num_prompts: int, seed: int) -> list[ScriptReply]:
    """Prompts that differ in how likely the verdict is, by up to 0.2 to either side."""
    draw = random.Random(seed)
    made = []
    for number in range(num_prompts):
        level = draw.uniform(-0.2, 0.2)
        verdicts = {
            condition: [draw.random() < chance + level for _ in range(2)]
            for condition, chance in chances.items()
        }
        made += twice(f"p{number}", verdicts)
    return made


def test_wordings_that_make_no_difference_flip_as_often_as_the_same_wording() -> None:
    alike = {"plain": 0.5, "wording-1": 0.5, "wording-2": 0.5}
    held = 0
    for seed in range(60):
        found = flips(planted(alike, num_prompts=40, seed=seed))
        assert found["floor"]["estimate"] > 0.3
        held += found["above_floor"]["ci_low"] <= 0 <= found["above_floor"]["ci_high"]
    assert held >= 52


def test_what_is_above_the_floor_is_the_square_of_the_difference_in_chances() -> None:
    found = flips(planted({"plain": 0.7, "wording-1": 0.3}, num_prompts=4000, seed=2))
    assert found["above_floor"]["estimate"] == pytest.approx(0.16, abs=0.02)
    assert found["p_value"] < 0.001
    # Also where the other wording leaves less to chance than the plain one.
    surer = flips(planted({"plain": 0.5, "wording-1": 0.8}, num_prompts=4000, seed=3))
    assert surer["above_floor"]["estimate"] == pytest.approx(0.09, abs=0.02)


def test_flips_are_of_each_arm_and_trait_and_of_the_sign_of_the_contrast() -> None:
    replies = [
        replace(reply, arm=arm, trait_id=trait, contrast=0.2 if reply.detected else -0.1)
        for arm in ("base", "policy")
        for trait in ("warm", "curious")
        for number in range(2)
        for reply in twice(f"{trait}{number}", {"plain": (True, True), "wording-1": (False, True)})
    ]
    rows = flip_rows(replies, BOOTSTRAP)
    assert [(row["verdict"], row["trait_id"]) for row in rows] == [
        (verdict, trait)
        for verdict in ("contrast_above_zero", "detected")
        for trait in (None, "warm", "curious")
    ]
    assert all(set(row["arms"]) == {"base", "policy"} for row in rows)
    assert rows[0]["arms"]["base"]["flips"]["estimate"] == pytest.approx(0.5)
    assert rows[0]["arms"]["base"]["floor"]["estimate"] == pytest.approx(0.5)
    assert [row["arms"]["base"]["num_prompts"] for row in rows[:3]] == [4, 2, 2]


def test_a_prompt_without_two_verdicts_on_two_wordings_is_left_out() -> None:
    whole = {"plain": (True, True), "wording-1": (False, False)}
    kept = [*twice("p1", whole), *twice("p2", whole)]
    short = [
        *twice("p3", {"plain": (True,), "wording-1": (False, False)}),
        *twice("p4", {"plain": (True, True), "wording-1": (False,)}),
        *twice("p5", {"wording-1": (True, True), "wording-2": (True, True)}),
    ]
    assert flips([*kept, *short])["num_prompts"] == 2
    assert flip_rows([*twice("p1", whole), *short], BOOTSTRAP) == []
