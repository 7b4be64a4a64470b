"""What the preference model pays for a trait, of rewards that are planted by hand."""

from collections.abc import Mapping

import pytest

from charactertrain.evaluation.effects import Bootstrap
from charactertrain.evaluation.shown_traits import matrices, shown_arm
from charactertrain.records import EvaluationSample

BOOTSTRAP = Bootstrap(num_resamples=200, seed=1)
TRAITS = ("warm", "curious")
PAID = {("warm", "warm"): 2.0, ("warm", "curious"): 1.5, ("curious", "curious"): 1.0}
NUM_PROMPTS = 6


def reply(arm: str, column: str, prompt: int, reward: float, number: int = 0) -> EvaluationSample:
    return EvaluationSample(
        sample_id=f"{arm}-{column}-{prompt}-{number}",
        prompt_id=f"{column}{prompt}",
        trait_id=column,
        kind="trait",
        arm=arm,
        prompt="",
        text="",
        num_tokens=1,
        finish_reason="stop",
        contrast=reward / 10,
        detected=None,
        reward=reward,
        gold_reward=None,
        kl=0.0,
    )


def base(level: float = 0.0, number: int = 0) -> list[EvaluationSample]:
    """Prompts differ in what any reply to them is paid."""
    return [
        reply("base", column, prompt, level + prompt, number)
        for column in TRAITS
        for prompt in range(NUM_PROMPTS)
    ]


def shown(paid: Mapping[tuple[str, str], float], num_prompts: int = 4) -> list[EvaluationSample]:
    return [
        reply(shown_arm(row), column, prompt, prompt + paid.get((row, column), 0.0))
        for row in TRAITS
        for column in TRAITS
        for prompt in range(num_prompts)
    ]


def test_each_cell_is_what_showing_the_trait_adds_on_the_prompts_that_were_answered_so() -> None:
    policy = [reply("policy", "warm", prompt, 99.0) for prompt in range(NUM_PROMPTS)]
    found = matrices([*base(), *policy], shown(PAID), TRAITS, BOOTSTRAP)["shown"]
    cells = found["reward"]["cells"]
    for row in TRAITS:
        for column in TRAITS:
            assert cells[row][column]["difference"] == pytest.approx(PAID.get((row, column), 0.0))
            assert cells[row][column]["num_prompts"] == 4
            assert ("p_holm" in cells[row][column]) == (row != column)
    # The mean of 2 and 1, less that of 1.5 and 0.
    assert found["reward"]["diagonal_dominance"]["estimate"] == pytest.approx(0.75)
    assert found["contrast"]["cells"]["warm"]["curious"]["difference"] == pytest.approx(0.15)
    # Neither a gold model nor a detector was there.
    assert set(found) == {"reward", "contrast"}


def test_several_replies_of_the_base_count_by_their_mean() -> None:
    samples = [*base(level=-1.0), *base(level=1.0, number=1)]
    cells = matrices(samples, shown(PAID), TRAITS, BOOTSTRAP)["shown"]["reward"]["cells"]
    assert cells["warm"]["warm"]["difference"] == pytest.approx(2.0)


def test_what_is_paid_alike_on_all_prompts_moves_no_cell() -> None:
    plain = matrices(base(), shown(PAID), TRAITS, BOOTSTRAP)["shown"]["reward"]["cells"]
    raised = [reply(s.arm, s.trait_id, int(s.prompt_id[-1]), s.reward + 7) for s in shown(PAID)]
    other = matrices(base(level=7.0), raised, TRAITS, BOOTSTRAP)["shown"]["reward"]["cells"]
    for row in TRAITS:
        for column in TRAITS:
            assert other[row][column] == pytest.approx(plain[row][column])


def test_nothing_shown_no_matrix() -> None:
    assert matrices(base(), [], TRAITS, BOOTSTRAP) == {}
