"""The learning rate of each step, by hand."""

import math
from itertools import pairwise

import pytest

from charactertrain.runtime.learning_rate import Decay, Schedule

DECAYS: tuple[Decay, ...] = ("constant", "linear", "cosine")


def rates(schedule: Schedule) -> list[float]:
    return [schedule.rate(step) for step in range(schedule.total_steps)]


def test_linear_schedule_by_hand() -> None:
    schedule = Schedule(peak=8.0, warmup_steps=2, total_steps=6, decay="linear")
    # A rise over two steps, then a quarter of the peak less at each of four.
    assert rates(schedule) == pytest.approx([4.0, 8.0, 8.0, 6.0, 4.0, 2.0])


def test_cosine_schedule_by_hand() -> None:
    schedule = Schedule(peak=8.0, warmup_steps=2, total_steps=6, decay="cosine")
    half = math.sqrt(0.5)
    expected = [4.0, 8.0, 8.0, 4.0 * (1 + half), 4.0, 4.0 * (1 - half)]
    assert rates(schedule) == pytest.approx(expected)


def test_constant_schedule_by_hand() -> None:
    schedule = Schedule(peak=8.0, warmup_steps=4, total_steps=6, decay="constant")
    assert rates(schedule) == pytest.approx([2.0, 4.0, 6.0, 8.0, 8.0, 8.0])


@pytest.mark.parametrize("decay", DECAYS)
def test_schedule_without_warmup_begins_at_its_peak(decay: Decay) -> None:
    assert Schedule(peak=3.0, warmup_steps=0, total_steps=5, decay=decay).rate(0) == 3.0


@pytest.mark.parametrize("decay", DECAYS)
def test_rise_ends_at_the_peak_and_no_step_is_lost(decay: Decay) -> None:
    schedule = Schedule(peak=3.0, warmup_steps=3, total_steps=10, decay=decay)
    assert schedule.rate(0) == pytest.approx(1.0)
    assert schedule.rate(2) == pytest.approx(3.0)
    assert schedule.rate(3) == pytest.approx(3.0)
    assert all(0 < rate <= 3.0 for rate in rates(schedule))


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_rate_falls_from_step_to_step_to_zero_behind_the_last(decay: Decay) -> None:
    schedule = Schedule(peak=3.0, warmup_steps=3, total_steps=10, decay=decay)
    after = rates(schedule)[3:]
    assert all(later < earlier for earlier, later in pairwise(after))
    assert schedule.rate(10) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
def test_schedule_that_is_all_rise_by_hand(decay: Decay) -> None:
    schedule = Schedule(peak=6.0, warmup_steps=3, total_steps=3, decay=decay)
    assert rates(schedule) == pytest.approx([2.0, 4.0, 6.0])
