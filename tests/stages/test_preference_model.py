"""What is fed to the preference model, and what is said about it, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from charactertrain import chat
from charactertrain.exceptions import TrainingError
from charactertrain.models import loading, sources
from charactertrain.models.packing import PromptGroup
from charactertrain.records import Message, PreferencePair
from charactertrain.runtime.training import Worker
from charactertrain.stages.preference_loop import (
    PreferenceTask,
    RankedPrompt,
    microbatches,
    num_steps,
    step_prompts,
)
from charactertrain.stages.preference_model import (
    _check_accuracy,
    _check_held_out,
    _ranked_prompt,
    length_slope,
    measure,
    sampled_lengths,
)
from charactertrain.storage import open_directory


def ranked(
    prompt_id: str,
    num_responses: int,
    pairs: tuple[tuple[int, int, float, float], ...] = ((0, 1, 0.8, 1.0),),
    *,
    trait_id: str = "warm",
) -> RankedPrompt:
    """A prompt with so many responses, each longer by a token than the one before."""
    responses = tuple(tuple(range(10, 11 + index)) for index in range(num_responses))
    return RankedPrompt(prompt_id, trait_id, PromptGroup((1, 2, 3), responses), pairs)


# Measures


def test_measure_by_hand() -> None:
    # Labels of p1 and p3, which the temperature is fitted on, are sigma(margin / 2).
    prompts = [
        ranked("p1", 2, ((0, 1, 0.6224593, 1.0),)),
        ranked("p2", 2, ((0, 1, 0.9, 1.0),)),
        ranked("p3", 2, ((0, 1, 0.7310586, 1.0),), trait_id="curious"),
        ranked("p4", 2, ((0, 1, 0.6, 1.0),), trait_id="curious"),
    ]
    rewards = {"p1": [2.0, 1.0], "p2": [0.0, 1.0], "p3": [1.0, -1.0], "p4": [0.5, 0.5]}
    lengths = {"p1": [5, 3], "p2": [4, 2], "p3": [2, 6], "p4": [3, 3]}
    quality = measure(prompts, rewards, lengths, seed=1)
    assert quality["num_pairs"] == 4
    assert quality["temperature"] == pytest.approx(2.0, rel=1e-4)
    # Margins 1, -1, 2 and 0: right, wrong, right, and half right.
    overall = quality["accuracy"]
    assert overall["estimate"] == 2.5 / 4
    assert overall["ci_low"] <= overall["estimate"] <= overall["ci_high"]
    assert (overall["num_clusters"], overall["num_responses"]) == (4, 4)
    # The chosen is longer, longer, shorter, as long.
    assert overall["length_only"] == 2.5 / 4
    by_trait = quality["accuracy_by_trait"]
    assert (by_trait["warm"]["estimate"], by_trait["warm"]["length_only"]) == (0.5, 1.0)
    # Being shorter is what tells these apart.
    assert (by_trait["curious"]["estimate"], by_trait["curious"]["length_only"]) == (0.75, 0.75)
    # Measured on p2 and p4: sigma(-1) for 0.9 and 0.5 for 0.6, from both sides.
    before = quality["before_temperature"]
    assert before["brier"] == pytest.approx(((0.2689414 - 0.9) ** 2 + 0.1**2) / 2)
    assert before["ece"] == pytest.approx((0.9 - 0.2689414) * 2 / 4)
    assert [entry["count"] for entry in before["bins"]] == [1, 2, 1]
    after = quality["after_temperature"]
    assert after["brier"] == pytest.approx(((0.3775407 - 0.9) ** 2 + 0.1**2) / 2, rel=1e-4)


def test_measure_resamples_prompts_and_not_pairs() -> None:
    # One prompt with three right pairs and one with a wrong one.
    prompts = [
        ranked("p1", 3, ((0, 1, 0.9, 1.0), (0, 2, 0.9, 1.0), (1, 2, 0.9, 1.0))),
        ranked("p2", 2, ((0, 1, 0.9, 1.0),)),
    ]
    lengths = {"p1": [1, 2, 3], "p2": [1, 2]}
    quality = measure(prompts, {"p1": [3.0, 2.0, 1.0], "p2": [0.0, 1.0]}, lengths, seed=1)
    assert quality["accuracy"]["estimate"] == 0.75
    # A resample of two prompts is all right, all wrong or as found, nothing between.
    assert (quality["accuracy"]["ci_low"], quality["accuracy"]["ci_high"]) == (0.0, 1.0)


def test_length_slope_is_within_prompts() -> None:
    # 0.5 per token in the first, none in the second, whose level is another.
    prompts, lengths = [ranked("p1", 2), ranked("p2", 2)], {"p1": [1, 3], "p2": [2, 4]}
    assert length_slope(prompts, {"p1": [0.0, 1.0], "p2": [10.0, 10.0]}, lengths) == 0.25
    assert length_slope(prompts[:1], {"p1": [5.0, 6.0]}, lengths) == 0.5
    assert length_slope(prompts[:1], {"p1": [6.0, 5.0]}, lengths) == -0.5


def test_length_slope_of_equal_lengths_is_zero() -> None:
    assert length_slope([ranked("p1", 2)], {"p1": [0.0, 1.0]}, {"p1": [4, 4]}) == 0.0


def test_accuracy_below_the_least_allowed_is_refused_with_its_interval() -> None:
    quality = {
        "accuracy": {"estimate": 0.52, "ci_low": 0.41, "ci_high": 0.63},
        "num_pairs": 90,
    }
    _check_accuracy(quality, 0.52)
    message = (
        r"accuracy is 0\.520 \[0\.410, 0\.630\] over 90 pairs, below "
        r"preference_model\.min_accuracy 0\.55"
    )
    with pytest.raises(TrainingError, match=message):
        _check_accuracy(quality, 0.55)


def test_trait_with_one_held_out_prompt_is_refused_before_training() -> None:
    prompts = [ranked("p1", 2), ranked("p2", 2)]
    _check_held_out(prompts)
    with pytest.raises(TrainingError, match=r"'curious': 1.*validation_share"):
        _check_held_out([*prompts, ranked("p3", 2, trait_id="curious")])
    with pytest.raises(TrainingError, match="none"):
        _check_held_out([])


# Data


def test_ranked_prompt_holds_each_response_once_as_the_model_reads_it(model_cache: Path) -> None:
    tokenizer = loading.load_tokenizer(sources.resolve(sources.TINY_RANDOM))
    assert model_cache.exists()
    texts = {"a": "Yes!", "b": "No, thank you.", "c": "<|end|>"}
    pair = PreferencePair(
        pair_id="ab",
        prompt_id="p1",
        trait_id="warm",
        split="train",
        prompt=(Message("user", "Tea?"),),
        chosen=(Message("assistant", texts["a"]),),
        rejected=(Message("assistant", texts["b"]),),
        probability=0.8,
        weight=0.5,
        chosen_id="a",
        rejected_id="b",
        chosen_variant="none",
        rejected_variant="none",
        chosen_tokens=4,
        rejected_tokens=14,
    )
    second = replace(
        pair,
        pair_id="ca",
        chosen=(Message("assistant", texts["c"]),),
        rejected=(Message("assistant", texts["a"]),),
        probability=0.6,
        weight=0.25,
        chosen_id="c",
        rejected_id="a",
        chosen_tokens=2,
        rejected_tokens=4,
    )
    prompt = _ranked_prompt([pair, second], tokenizer)
    # As the pairs say, in the same order; encoded again, the texts have 4, 14 and 8 tokens.
    assert sampled_lengths([pair, second]) == [4, 14, 2]
    assert prompt.pairs == ((0, 1, 0.8, 0.5), (2, 0, 0.6, 0.25))
    group = prompt.group
    assert tokenizer.decode(group.prompt_token_ids) == "<|user|>Tea?<|end|><|assistant|>"
    # A response that spells an end of turn does not end its turn.
    assert [tokenizer.decode(r) for r in group.responses] == ["Yes!", "No, thank you.", "< |end|>"]
    for text, response in zip(texts.values(), group.responses, strict=True):
        whole = chat.encode_exchange("Tea?", text, tokenizer)
        assert [*group.prompt_token_ids, *response] == whole
        assert tokenizer.eos_token_id not in response


def make_task(
    num_prompts: int, *, epochs: int, prompts_per_step: int, seed: int = 3
) -> PreferenceTask:
    return PreferenceTask(
        model_directory="",
        precision="fp32",
        context_tokens=128,
        train=tuple(ranked(f"p{index}", 2) for index in range(num_prompts)),
        validation=(),
        epochs=epochs,
        prompts_per_step=prompts_per_step,
        microbatch_size=1,
        learning_rate=1e-3,
        warmup_share=0.0,
        centering=0.0,
        zero_stage=0,
        offload=False,
        weight_decay=0.0,
        max_grad_norm=1.0,
        checkpoint_every=1,
        seed=seed,
        output=open_directory("/nowhere"),
    )


def drawn(task: PreferenceTask) -> list[str]:
    return [p.prompt_id for step in range(num_steps(task)) for p in step_prompts(task, step)]


def test_step_prompts_cover_every_prompt_once_per_epoch() -> None:
    task = make_task(7, epochs=2, prompts_per_step=3)
    assert num_steps(task) == 6
    assert [len(step_prompts(task, step)) for step in range(6)] == [3, 3, 1, 3, 3, 1]
    order = drawn(task)
    assert sorted(order[:7]) == sorted(order[7:]) == [f"p{index}" for index in range(7)]
    assert order[:7] != order[7:]


def test_step_prompts_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    task = make_task(7, epochs=1, prompts_per_step=3)
    assert drawn(replace(task, train=task.train[::-1])) == drawn(task)
    assert drawn(replace(task, seed=4)) != drawn(task)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_microbatches_of_all_workers_hold_every_prompt_once(num_workers: int) -> None:
    prompts = make_task(7, epochs=1, prompts_per_step=7).train
    count = -(-7 // (num_workers * 2))
    batches = [
        microbatches(prompts, size=2, count=count, worker=Worker(rank, num_workers, None))
        for rank in range(num_workers)
    ]
    # As many for each, or some would wait for the others for ever.
    assert [len(of_one) for of_one in batches] == [count] * num_workers
    assert all(len(batch) <= 2 for of_one in batches for batch in of_one)
    held = [prompt.prompt_id for of_one in batches for batch in of_one for prompt in batch]
    assert sorted(held) == [prompt.prompt_id for prompt in prompts]
