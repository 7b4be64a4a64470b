"""The matrix of trained and measured traits, by hand and with planted effects."""

import random
from dataclasses import replace

import pytest

from charactertrain.evaluation.attribution import matrix
from charactertrain.records import EvaluationSample

SAMPLE = EvaluationSample(
    sample_id="",
    prompt_id="",
    trait_id="",
    kind="trait",
    arm="",
    prompt="",
    text="",
    num_tokens=1,
    finish_reason="stop",
    contrast=0.0,
    detected=None,
    reward=0.0,
    gold_reward=None,
    kl=0.0,
)
LEFT_OUT = {"warm": ("without-warm", "policy"), "curious": ("without-curious", "policy")}


def planted(
    effects: dict[tuple[str, str], float],
    *,
    num_prompts: int = 60,
    noise: float = 0.3,
    seed: int = 3,
) -> list[EvaluationSample]:
    """Contrasts of every arm: that of the policy less what leaving a trait out takes away."""
    draw = random.Random(seed)
    samples = []
    for column in ("warm", "curious"):
        for prompt in range(num_prompts):
            level = draw.gauss(0, 1)
            for arm in ("base", "policy", "without-warm", "without-curious"):
                row = arm.removeprefix("without-")
                value = level + draw.gauss(0, noise) - effects.get((row, column), 0.0)
                samples.append(
                    replace(
                        SAMPLE,
                        arm=arm,
                        prompt_id=f"{column}{prompt}",
                        trait_id=column,
                        contrast=value,
                    )
                )
    return samples


def test_matrix_finds_what_each_trait_changed_and_where() -> None:
    effects = {("warm", "warm"): 1.0, ("warm", "curious"): 0.0}
    effects |= {("curious", "curious"): 0.5, ("curious", "warm"): -0.4}
    found = matrix(planted(effects), LEFT_OUT, "contrast", num_resamples=1000, seed=1)
    for (row, column), truth in effects.items():
        cell = found["cells"][row][column]
        assert cell["ci_low"] <= truth <= cell["ci_high"]
        assert cell["num_prompts"] == 60
    assert found["cells"]["curious"]["warm"]["p_holm"] < 0.01
    assert found["cells"]["warm"]["curious"]["p_holm"] > 0.05
    assert "p_holm" not in found["cells"]["warm"]["warm"]
    dominance = found["diagonal_dominance"]
    # The mean of the diagonal, 0.75, less that of the others, -0.2.
    assert dominance["ci_low"] <= 0.95 <= dominance["ci_high"]
    assert dominance["ci_high"] - dominance["ci_low"] < 0.3


def test_matrix_of_exact_values_is_worked_out_by_hand() -> None:
    effects = {("warm", "warm"): 2.0, ("warm", "curious"): -1.0, ("curious", "curious"): 1.0}
    found = matrix(
        planted(effects, num_prompts=4, noise=0.0), LEFT_OUT, "contrast", num_resamples=100, seed=1
    )
    assert found["cells"]["warm"]["curious"]["difference"] == pytest.approx(-1.0)
    dominance = found["diagonal_dominance"]
    # Diagonal 2 and 1, others -1 and 0.
    assert dominance["estimate"] == pytest.approx(1.5 + 0.5)
    assert dominance["ci_low"] == pytest.approx(2.0)


def test_a_single_row_has_cells_and_no_dominance() -> None:
    rows = {"warm": LEFT_OUT["warm"]}
    found = matrix(planted({}), rows, "contrast", num_resamples=100, seed=1)
    assert set(found["cells"]["warm"]) == {"warm", "curious"}
    assert found["diagonal_dominance"] is None


def test_a_row_whose_arm_has_no_replies_has_no_cells() -> None:
    samples = [s for s in planted({}) if s.arm != "without-curious"]
    found = matrix(samples, LEFT_OUT, "contrast", num_resamples=100, seed=1)
    assert found["cells"]["curious"] == {}
    assert found["diagonal_dominance"] is None


def test_dominance_needs_prompts_that_all_arms_share() -> None:
    samples = planted({}, num_prompts=4)
    halves = {"without-warm": ("0", "1"), "without-curious": ("2", "3")}
    apart = [s for s in samples if s.prompt_id[-1] in halves.get(s.arm, "0123")]
    found = matrix(apart, LEFT_OUT, "contrast", num_resamples=100, seed=1)
    assert set(found["cells"]["warm"]) == {"warm", "curious"}
    assert found["diagonal_dominance"] is None


def test_dominance_of_a_matrix_that_is_all_diagonal_holds_the_truth() -> None:
    effects = {("warm", "warm"): 0.3, ("curious", "curious"): 0.3}
    held = 0
    for seed in range(40):
        samples = planted(effects, num_prompts=30, noise=0.5, seed=seed)
        found = matrix(samples, LEFT_OUT, "contrast", num_resamples=200, seed=seed)
        dominance = found["diagonal_dominance"]
        held += dominance["ci_low"] <= 0.3 <= dominance["ci_high"]
    assert held >= 34
