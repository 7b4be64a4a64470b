"""The matrix of trained and measured traits, by hand and with planted effects."""

import random
from dataclasses import replace

import pytest

from charactertrain.attribution import matrix
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
    effects: dict[tuple[str, str], float], *, num_prompts: int = 60, noise: float = 0.3
) -> list[EvaluationSample]:
    """Contrasts of every arm: that of the policy less what leaving a trait out takes away."""
    draw = random.Random(3)
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
    # The sum of the diagonal 1.5 over that of all sizes 1.9.
    assert dominance["ci_low"] <= 1.5 / 1.9 <= dominance["ci_high"]
    assert dominance["ci_high"] - dominance["ci_low"] < 0.3


def test_matrix_of_exact_values_is_worked_out_by_hand() -> None:
    effects = {("warm", "warm"): 2.0, ("warm", "curious"): -1.0, ("curious", "curious"): 1.0}
    found = matrix(
        planted(effects, num_prompts=4, noise=0.0), LEFT_OUT, "contrast", num_resamples=100, seed=1
    )
    assert found["cells"]["warm"]["curious"]["difference"] == pytest.approx(-1.0)
    dominance = found["diagonal_dominance"]
    assert dominance["estimate"] == pytest.approx(3 / 4)
    assert dominance["ci_low"] == pytest.approx(3 / 4)


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
