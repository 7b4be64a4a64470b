"""What every arm changed against the base, by hand and with a planted character."""

import random
from dataclasses import replace
from typing import Any

import pytest

from charactertrain.evaluation.effects import Bootstrap, over_seeds, results
from charactertrain.records import NO_TRAIT, EvaluationSample, Judgement
from charactertrain.statistics.significance import holm


def sample(arm: str, prompt_id: str, trait_id: str = "warm", **values: Any) -> EvaluationSample:
    return replace(
        EvaluationSample(
            sample_id="",
            prompt_id=prompt_id,
            trait_id=trait_id,
            kind="trait",
            arm=arm,
            prompt="",
            text="one two three",
            num_tokens=10,
            finish_reason="stop",
            contrast=0.0,
            detected=False if trait_id == "warm" else None,
            reward=0.0,
            gold_reward=None,
            kl=0.0,
        ),
        **values,
    )


SAMPLES = [
    sample("base", "p1", contrast=0.1, reward=1.0, num_tokens=10),
    sample("base", "p1", contrast=0.3, reward=2.0, num_tokens=20, text="one two one two"),
    sample("base", "p2", contrast=0.2, reward=0.0, num_tokens=30, text="four five"),
    sample("policy", "p1", contrast=0.5, reward=2.0, num_tokens=8, detected=True, kl=0.2),
    sample("policy", "p1", contrast=0.7, reward=4.0, num_tokens=12, detected=True, kl=0.4),
    sample("policy", "p2", contrast=0.0, reward=3.0, num_tokens=40, kl=0.0),
    *(
        sample(arm, prompt_id, "curious", reward=reward, num_tokens=10)
        for arm, prompt_id, reward in (
            ("base", "q1", 1.0),
            ("base", "q2", 1.0),
            ("policy", "q1", 0.0),
            ("policy", "q2", 1.0),
        )
    ),
]


def report(samples: list[EvaluationSample] = SAMPLES, natural: Any = None) -> dict[str, Any]:
    return results(samples, [], natural, Bootstrap(200, 1))


def effect(measure: str, trait_id: str = "warm", arm: str = "policy") -> dict[str, Any]:
    found: dict[str, Any] = report()["traits"][trait_id][measure][arm]
    return found


def overall(measure: str, found: dict[str, Any] | None = None) -> dict[str, Any]:
    effect: dict[str, Any] = (found or report())["overall"][measure]["policy"]
    return effect


def test_results_are_means_over_replies_by_trait() -> None:
    contrast = effect("contrast")
    assert contrast["base"] == pytest.approx(0.2)
    assert contrast["arm"] == pytest.approx(0.4)
    assert contrast["difference"] == pytest.approx(0.2)
    # Resamples of two prompts: p1 alone rose by 0.4, p2 alone fell by 0.2.
    assert contrast["ci_low"] == pytest.approx(-0.2)
    assert contrast["ci_high"] == pytest.approx(0.4)
    assert (contrast["num_prompts"], contrast["num_responses"]) == (2, 3)
    assert (effect("reward")["base"], effect("reward")["arm"]) == (1.0, 3.0)
    assert effect("detector_rate")["base"] == 0.0
    assert effect("detector_rate")["arm"] == pytest.approx(2 / 3)


def test_results_leave_out_measures_that_were_not_taken() -> None:
    assert set(report()["traits"]["curious"]) == {"contrast", "reward"}
    assert effect("reward", "curious")["difference"] == -0.5
    with_gold = [replace(s, gold_reward=s.reward) for s in SAMPLES]
    assert report(with_gold)["traits"]["warm"]["gold_reward"]["policy"]["arm"] == 3.0


def test_results_take_length_kl_and_distinct_2_over_all_replies() -> None:
    assert overall("length")["base"] == pytest.approx((10 + 20 + 30 + 10 + 10) / 5)
    assert overall("length")["arm"] == pytest.approx((8 + 12 + 40 + 10 + 10) / 5)
    assert overall("kl")["base"] == 0.0
    assert overall("kl")["arm"] == pytest.approx(0.6 / 5)
    # Base: bigrams 12 23, 12 21 12, 45, and twice 12 23: 4 different of 10. Policy: 2 of 10.
    assert overall("distinct_2")["base"] == pytest.approx(4 / 10)
    assert overall("distinct_2")["arm"] == pytest.approx(2 / 10)
    assert overall("distinct_2")["num_prompts"] == 4
    assert overall("distinct_2")["num_responses"] == 5
    # All of the policy's replies begin alike, and three of the base's five.
    assert (overall("opening_share")["base"], overall("opening_share")["arm"]) == (0.6, 1.0)
    long = [replace(s, text=f"{s.prompt_id} so it is as I say") for s in SAMPLES]
    phrases = [replace(s, text=s.text if s.arm == "base" else s.sample_id) for s in long]
    shares = overall("boilerplate_share", report(phrases))
    assert (shares["base"], shares["arm"]) == (1.0, 0.0)


def test_within_prompt_diversity_is_of_prompts_with_several_replies() -> None:
    more = [replace(s, text="six seven") for s in SAMPLES if s.prompt_id in ("q1", "q2")]
    diversity = overall("within_prompt_diversity", report([*SAMPLES, *more]))
    # Base p1: 1 of 3 bigrams... of q1 and q2 both: nothing in common.
    assert diversity["num_prompts"] == 3
    assert diversity["base"] == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert diversity["arm"] == pytest.approx((0 + 1 + 1) / 3)


def test_natural_lengths_are_there_only_where_they_were_measured() -> None:
    assert "natural_length" not in report()["overall"]
    natural = {
        "base": {"p1": [20.0], "p2": [40.0], "p9": [99.0]},
        "policy": {"p1": [10.0], "p2": [20.0]},
    }
    lengths = overall("natural_length", report(natural=natural))
    assert (lengths["base"], lengths["arm"], lengths["difference"]) == (30.0, 15.0, -15.0)
    assert lengths["num_prompts"] == 2


def test_a_prompt_that_one_arm_has_no_reply_to_is_left_out_of_that_arms_effects() -> None:
    alone = [
        sample("base", "p3", reward=99.0, num_tokens=99),
        sample("policy", "q3", "curious", reward=99.0, num_tokens=99),
    ]
    assert report([*SAMPLES, *alone])["traits"] == report()["traits"]


def test_every_arm_is_compared_with_the_base_and_the_policy_with_every_arm() -> None:
    other = [replace(s, arm="other", contrast=0.9) for s in SAMPLES if s.arm == "policy"]
    found = report([*SAMPLES, *other])
    assert found["traits"]["warm"]["contrast"]["policy"] == effect("contrast")
    assert found["traits"]["warm"]["contrast"]["other"]["arm"] == pytest.approx(0.9)
    against = found["policy_against"]["other"]["warm"]["contrast"]
    assert (against["base"], against["arm"]) == (pytest.approx(0.9), pytest.approx(0.4))


def test_kinds_of_prompts_are_compared_by_themselves() -> None:
    samples = [replace(s, kind="identity") if s.prompt_id == "p2" else s for s in SAMPLES]
    samples += [replace(s, prompt_id="p4") for s in samples if s.kind == "identity"]
    identity = report(samples)["kinds"]["identity"]["contrast"]["policy"]
    assert (identity["base"], identity["arm"], identity["num_prompts"]) == (0.2, 0.0, 2)


def test_p_values_are_corrected_over_traits_and_both_outcome_measures() -> None:
    found = report()["traits"]
    rewards = [found[trait_id]["reward"]["policy"] for trait_id in ("warm", "curious")]
    assert [e["p_holm"] for e in rewards] == holm([e["p_value"] for e in rewards])
    outcomes = [
        found["warm"]["contrast"]["policy"],
        found["warm"]["detector_rate"]["policy"],
        found["curious"]["contrast"]["policy"],
    ]
    assert [e["p_holm"] for e in outcomes] == holm([e["p_value"] for e in outcomes])


def test_an_arm_that_is_down_to_single_words_has_no_distinct_2_and_says_why() -> None:
    collapsed = [replace(s, text="yes") if s.arm == "policy" else s for s in SAMPLES]
    found = overall("distinct_2", report(collapsed))
    assert found["difference"] is None
    assert found["note"] == "unknown: replies to 0 prompts have two words or more"
    assert overall("opening_share", report(collapsed))["arm"] == 1.0


def test_effects_over_seeds_are_of_prompts_that_all_runs_replied_to() -> None:
    other = [replace(s, arm="again") for s in SAMPLES if s.arm == "policy"]
    more = [sample("base", "p7"), sample("policy", "p7", contrast=9.0)]
    found = over_seeds([*SAMPLES, *other, *more], ["policy", "again"])["traits"]["warm"]["contrast"]
    assert (found["num_prompts"], found["num_left_out"]) == (2, 1)
    assert found["difference"] == pytest.approx(0.2)


def test_an_arm_without_verdicts_says_so() -> None:
    judgements = [judgement("p1", None, None), judgement("p2", None, 0.4)]
    found = results(SAMPLES, judgements, None, Bootstrap(200, 1))["traits"]["warm"]
    rate = found["win_rate"]["policy"]
    assert (rate["arm"], rate["unscored"], rate["num_prompts"]) == (None, 2, 0)
    assert "verdicts in both orders on 0 prompts" in rate["note"]
    assert "win_rate_length_controlled" not in found


def test_a_planted_character_is_measured_back_by_trait_and_arm() -> None:
    """Arms that show a trait with a known probability, 200 prompts, two replies each."""
    planted = {
        "warm": {"base": 0.1, "policy": 0.6, "other": 0.3},
        "curious": {"base": 0.5, "policy": 0.5, "other": 0.2},
    }
    draw = random.Random(1)
    samples = [
        sample(arm, f"{trait_id}{prompt}", trait_id, detected=draw.random() < probability)
        for trait_id, by_arm in planted.items()
        for arm, probability in by_arm.items()
        for prompt in range(200)
        for _ in range(2)
    ]
    found = results(samples, [], None, Bootstrap(500, 1))["traits"]
    for trait_id, by_arm in planted.items():
        for arm in ("policy", "other"):
            rate = found[trait_id]["detector_rate"][arm]
            assert rate["ci_low"] <= by_arm[arm] - by_arm["base"] <= rate["ci_high"]
            assert rate["ci_high"] - rate["ci_low"] < 0.2
    assert found["curious"]["detector_rate"]["policy"]["p_holm"] > 0.05
    assert found["warm"]["detector_rate"]["policy"]["p_holm"] < 1e-6


def judgement(prompt_id: str, arm_first: float | None, arm_second: float | None) -> Judgement:
    return Judgement(f"m-{prompt_id}", prompt_id, "warm", "policy", arm_first, arm_second, 0)


def test_win_rates_are_of_verdicts_in_both_orders() -> None:
    judgements = [
        judgement("p1", 0.9, 0.8),
        judgement("p2", 0.7, 0.4),
        judgement("p3", 0.2, 0.1),
        judgement("p4", 0.9, None),
    ]
    found = results(SAMPLES, judgements, None, Bootstrap(200, 1))["traits"]
    rate = found["warm"]["win_rate"]["policy"]
    # Won, decided by the order, lost; and one without a verdict.
    assert (rate["base"], rate["arm"]) == (0.5, 0.5)
    assert (rate["num_prompts"], rate["num_responses"]) == (3, 3)
    assert (rate["unscored"], rate["inconsistent"], rate["ties"]) == (1, 1, 0)
    assert rate["swap_consistency"]["estimate"] == pytest.approx(2 / 3)
    assert rate["swap_consistency"]["ci_low"] < 2 / 3
    assert "p_holm" in rate
    controlled = found["warm"]["win_rate_length_controlled"]["policy"]
    assert 0.4 < controlled["arm"] < 0.6
    assert "win_rate" not in found["curious"]


def test_the_rate_of_better_answers_is_over_all_replies() -> None:
    by_trait = [judgement("p1", 0.1, 0.1), judgement("p2", 0.1, 0.1)]
    of_answers = [
        replace(judgement(prompt_id, 0.9, 0.8), trait_id=NO_TRAIT) for prompt_id in ("p1", "p2")
    ]
    found = results(SAMPLES, [*by_trait, *of_answers], None, Bootstrap(200, 1))
    assert found["overall"]["quality_win_rate"]["policy"]["arm"] == 1.0
    assert found["overall"]["quality_win_rate_length_controlled"]["policy"]["arm"] > 0.9
    assert found["traits"]["warm"]["win_rate"]["policy"]["arm"] == 0.0
    assert NO_TRAIT not in found["traits"]


def test_no_rate_at_equal_length_where_the_arm_is_always_longer_by_as_much() -> None:
    judgements = [
        replace(judgement(prompt_id, 0.9, 0.8), length_difference=3) for prompt_id in ("p1", "p2")
    ]
    found = results(SAMPLES, judgements, None, Bootstrap(200, 1))["traits"]["warm"]
    assert found["win_rate"]["policy"]["arm"] == 1.0
    assert "win_rate_length_controlled" not in found


def test_effects_over_seeds_have_intervals_over_runs_and_prompts() -> None:
    other = [
        replace(s, arm="again", contrast=s.contrast + 0.1) for s in SAMPLES if s.arm == "policy"
    ]
    assert over_seeds(SAMPLES, ["policy"]) == {}
    found = over_seeds([*SAMPLES, *other], ["policy", "again"])
    assert found["arms"] == ["policy", "again"]
    contrast = found["traits"]["warm"]["contrast"]
    assert contrast["num_runs"] == 2
    assert list(contrast["by_run"]) == pytest.approx([0.2, 0.3])
    assert contrast["difference"] == pytest.approx(0.25)
    assert "p_holm" in contrast
    assert set(found["traits"]["curious"]) == {"contrast", "reward"}


def test_effects_say_how_many_prompts_would_show_them() -> None:
    draw = random.Random(2)
    samples = [
        sample(arm, f"p{prompt}", contrast=draw.gauss(0.1 if arm == "policy" else 0.0, 1.0))
        for arm in ("base", "policy")
        for prompt in range(50)
    ]
    contrast = results(samples, [], None, Bootstrap(500, 1))["traits"]["warm"]["contrast"]["policy"]
    half_width = (contrast["ci_high"] - contrast["ci_low"]) / 2
    # The half width falls with the square root of the number.
    expected = 50 * (half_width / abs(contrast["difference"])) ** 2
    assert contrast["prompts_needed"] == pytest.approx(expected, rel=0.1)
    even = [replace(s, contrast=0.5) for s in samples]
    found = results(even, [], None, Bootstrap(500, 1))["traits"]["warm"]["contrast"]["policy"]
    assert found["prompts_needed"] is None
