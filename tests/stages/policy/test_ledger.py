"""Every group of rollouts is asked for, made and trained on exactly once, and none too late."""

import json
import random

import pytest

from charactertrain.exceptions import TrainingError
from charactertrain.stages.policy.ledger import Batch, Ledger, LedgerSettings
from charactertrain.stages.policy.rollouts import Rollout

PER_STEP = 3


def settings(
    *, max_staleness: int = 0, max_refills: int = 0, num_steps: int = 1000
) -> LedgerSettings:
    return LedgerSettings(num_steps, PER_STEP, max_staleness, max_staleness, max_refills)


def group(number: int, version: int = 0, *, is_flat: bool = False) -> tuple[Rollout, ...]:
    """Two rollouts of two tokens, written by the weights of `version`."""
    return tuple(
        Rollout(
            prompt_id=f"p{number}",
            prompt="Tea?",
            prompt_token_ids=(1, 2),
            token_ids=(3, 4),
            text="Yes",
            logprobs=(-1.0, -2.0),
            reward=0.0 if is_flat else float(place),
            disagreement=0.0,
            versions=((version, 0),),
        )
        for place in range(2)
    )


def asked(ledger: Ledger, version: int) -> list[int]:
    """All that may be asked for now."""
    numbers = []
    while (number := ledger.ask(version)) is not None:
        numbers.append(number)
    return numbers


def prompts(batch: Batch | None) -> list[str]:
    assert batch is not None
    return [rollouts[0].prompt_id for rollouts in batch.groups]


def test_groups_are_taken_in_their_order_whichever_is_done_first() -> None:
    ledger = Ledger(settings(max_staleness=1))
    assert asked(ledger, 0) == [0, 1, 2, 3, 4, 5]
    for number in (5, 2, 1, 3):
        ledger.make(number, group(number))
        assert ledger.take() is None
    ledger.make(0, group(0))
    assert prompts(ledger.take()) == ["p0", "p1", "p2"]
    assert ledger.take() is None
    assert ledger.num_waiting == 2


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_nothing_is_asked_for_that_would_be_too_stale(max_staleness: int) -> None:
    ledger = Ledger(settings(max_staleness=max_staleness))
    assert asked(ledger, 0) == list(range(PER_STEP * (max_staleness + 1)))
    for number in range(PER_STEP):
        ledger.make(number, group(number))
    ledger.take()
    # The step is trained: with the old weights, no more of later steps.
    first = PER_STEP * (max_staleness + 1)
    assert asked(ledger, 0) == []
    assert asked(ledger, 1) == list(range(first, first + PER_STEP))


def test_nothing_is_asked_for_that_no_step_takes() -> None:
    ledger = Ledger(settings(max_staleness=5, max_refills=1, num_steps=2))
    assert asked(ledger, 0) == list(range(2 * PER_STEP))
    ledger.make(0, group(0, is_flat=True))
    assert asked(ledger, 0) == [2 * PER_STEP]


def test_engines_may_run_ahead_of_weights_that_never_change() -> None:
    bounds = LedgerSettings(10, PER_STEP, ahead=1, max_staleness=10, max_refills=0)
    ledger = Ledger(bounds)
    for step in range(3):
        for number in asked(ledger, step):
            ledger.make(number, group(number))
        assert ledger.num_waiting == 2 * PER_STEP
        batch = ledger.take()
        assert batch is not None
        assert set(batch.staleness) == {step}


def test_groups_of_equal_rewards_are_replaced_so_often_and_no_oftener() -> None:
    ledger = Ledger(settings(max_refills=2))
    assert asked(ledger, 0) == [0, 1, 2]
    for number in (0, 2):
        ledger.make(number, group(number, is_flat=True))
    assert asked(ledger, 0) == [3, 4]
    ledger.make(1, group(1))
    ledger.make(3, group(3, is_flat=True))
    assert ledger.take() is None
    # Two are replaced, so this one is trained on.
    ledger.make(4, group(4))
    batch = ledger.take()
    assert prompts(batch) == ["p1", "p3", "p4"]
    assert batch is not None
    assert batch.refills == 2
    # And each step anew.
    assert asked(ledger, 1) == [5, 6, 7]
    for number in (5, 6, 7):
        ledger.make(number, group(number, 1, is_flat=number == 5))
    assert asked(ledger, 1) == [8]


def test_a_lost_group_is_asked_for_again_before_others() -> None:
    ledger = Ledger(settings(max_staleness=1))
    for _ in range(4):
        ledger.ask(0)
    ledger.lose(1)
    ledger.lose(3)
    assert [ledger.ask(0) for _ in range(3)] == [1, 3, 4]


def test_what_is_not_asked_for_or_made_twice_is_refused() -> None:
    ledger = Ledger(settings())
    with pytest.raises(AssertionError, match="group 0 was not asked for"):
        ledger.make(0, group(0))
    ledger.ask(0)
    ledger.make(0, group(0))
    with pytest.raises(AssertionError, match="group 0 was made twice"):
        ledger.make(0, group(0))


def test_tokens_of_weights_that_are_too_old_stop_the_run() -> None:
    ledger = Ledger(settings())
    for version in (0, 1):
        for number in asked(ledger, version):
            ledger.make(number, group(number, 0))
        if version == 0:
            ledger.take()
    with pytest.raises(
        TrainingError, match=r"step 2 has a token of prompt p3 that weights of v.* 0"
    ):
        ledger.take()


def test_staleness_is_of_each_token() -> None:
    ledger = Ledger(settings(max_staleness=1))
    asked(ledger, 0)
    for number in range(6):
        mixed = [Rollout(**{**vars(r), "versions": ((0, 0), (1, 1))}) for r in group(number)]
        ledger.make(number, tuple(mixed) if number >= 3 else group(number))
    assert set(ledger.take().staleness) == {0}  # type: ignore[union-attr]
    assert ledger.take().staleness == (1, 0) * 6  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(30))
def test_killed_anywhere_each_group_is_trained_on_once(seed: int) -> None:
    """Engines answer in any order and lose groups; trainers go on from checkpoints."""
    draw = random.Random(seed)
    bounds = settings(max_staleness=draw.randrange(3), max_refills=draw.randrange(3))
    flat = {number for number in range(200) if draw.random() < 0.2}
    ledger, version, in_flight = Ledger(bounds), 0, list[int]()
    trained: list[list[str]] = []
    checkpoint = (json.dumps(ledger.state()), 0)
    while len(trained) < 12:
        event = draw.random()
        if (number := ledger.ask(version)) is not None:
            in_flight.append(number)
        elif event < 0.05:
            # Killed: what was in flight is gone, and steps after the checkpoint are taken again.
            state, done = checkpoint
            ledger, version, in_flight = Ledger.restored(bounds, json.loads(state)), done, []
            del trained[done:]
        elif event < 0.2 and in_flight:
            ledger.lose(in_flight.pop(draw.randrange(len(in_flight))))
        elif in_flight:
            number = in_flight.pop(draw.randrange(len(in_flight)))
            ledger.make(number, group(number, version, is_flat=number in flat))
        if (batch := ledger.take()) is not None:
            trained.append(prompts(batch))
            assert max(batch.staleness) <= bounds.max_staleness
            version += 1
            if draw.random() < 0.3:
                checkpoint = (json.dumps(ledger.state()), version)
    numbers = [int(prompt[1:]) for step in trained for prompt in step]
    assert numbers == sorted(set(numbers))
    assert all(len(step) == PER_STEP for step in trained)
    # What is left out was of equal rewards.
    assert set(range(max(numbers))) - set(numbers) <= flat
