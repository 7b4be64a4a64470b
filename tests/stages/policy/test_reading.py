"""A reading's numbers, by hand."""

import json
import math
from dataclasses import replace

import pytest

from charactertrain.exceptions import TrainingError
from charactertrain.stages.policy.reading import Reading, WatchedPrompt, make_reading

PROMPTS = (
    WatchedPrompt("p1", "warm", ("a b c!", "a b c"), (4, 3), (1.0, 2.0), (0.5, 0.5)),
    WatchedPrompt("p2", "brief", ("a b", "yes"), (2, 1), (4.0, 5.0), (1.5, 2.5)),
)
DETECTORS = {"warm": "!", "unasked": "x"}


def read(*prompts: WatchedPrompt, kl_sum: float = 1.0, entropy_sum: float = 25.0) -> Reading:
    return make_reading(25, prompts or PROMPTS, DETECTORS, kl_sum=kl_sum, entropy_sum=entropy_sum)


def test_reading_by_hand() -> None:
    found = read()
    assert (found.step, found.num_prompts) == (25, 2)
    assert (found.reward, found.gold) == (3.0, 1.25)
    assert found.rewards_by_prompt == {"p1": 1.5, "p2": 4.5}
    assert found.golds_by_prompt == {"p1": 0.5, "p2": 2.0}
    # Of two prompts resamples are both, or one of them twice.
    assert found.reward_interval == (1.5, 4.5)
    assert found.gold_interval == (0.5, 2.0)
    assert (found.kl, found.entropy, found.length_tokens) == (0.1, 2.5, 2.5)
    # "a b", "b c!", "a b", "b c", "a b"
    assert found.distinct_2 == pytest.approx(3 / 5)
    # Brief has no detector, and of the other trait there is no prompt.
    assert found.detectors == {"warm": 0.5}


def test_reading_without_gold() -> None:
    found = read(*(replace(prompt, golds=()) for prompt in PROMPTS))
    assert (found.gold, found.gold_interval, found.golds_by_prompt) == (None, None, None)
    assert found.reward == 3.0


@pytest.mark.parametrize("golds", [False, True])
def test_reading_comes_back_from_json(*, golds: bool) -> None:
    found = read(*(PROMPTS if golds else [replace(prompt, golds=()) for prompt in PROMPTS]))
    assert Reading.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_single_words_have_no_variety_left() -> None:
    found = read(*(replace(prompt, texts=("yes", "")) for prompt in PROMPTS))
    assert found.distinct_2 == 0.0


@pytest.mark.parametrize("sums", [{"kl_sum": math.nan}, {"entropy_sum": math.inf}])
def test_sums_that_are_not_finite_stop(sums: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=r"the reading after step 25: the KL's sum is "):
        read(**sums)  # type: ignore[arg-type]


def test_rewards_that_are_not_finite_name_the_prompt() -> None:
    with pytest.raises(ValueError, match="prompt 'p1' has a value that is not finite"):
        read(replace(PROMPTS[0], rewards=(1.0, math.nan)), PROMPTS[1])


@pytest.mark.parametrize(
    "prompt",
    [
        replace(PROMPTS[0], golds=()),
        replace(PROMPTS[0], rewards=(1.0,)),
        replace(PROMPTS[0], texts=("a",), num_tokens=(1,), rewards=(1.0,), golds=(1.0,)),
    ],
    ids=["golds of one prompt", "a reward too few", "a response too few"],
)
def test_prompts_have_as_many_of_each(prompt: WatchedPrompt) -> None:
    with pytest.raises(AssertionError):
        read(prompt, PROMPTS[1])
