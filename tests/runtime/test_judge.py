"""Two models behind one sampler: one judges, the other does all the rest."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from charactertrain.runtime.fake_sampler import FakeSampler, FakeSource
from charactertrain.runtime.judge import JudgedSampler, JudgedSource
from charactertrain.runtime.sampling import (
    ChoiceRequest,
    Sampler,
    SampleRequest,
    SamplerSource,
    SamplingSettings,
    ScoreRequest,
)
from charactertrain.templates import plain_conversation

SHOWN = plain_conversation("Is it late?")
SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=4, min_tokens=0, stop=())
ASKS: dict[str, Callable[[Sampler], object]] = {
    "sample": lambda sampler: sampler.sample([SampleRequest("a", SHOWN, 1)], SETTINGS),
    "score": lambda sampler: sampler.score([ScoreRequest("a", SHOWN, (1, 2))]),
    "choose": lambda sampler: sampler.choose([ChoiceRequest("a", SHOWN, ("A", "B"))]),
    "rewards": lambda sampler: sampler.rewards([(1, 2)]),
}


class Recorder:
    """A source of samplers that notes what is done with it and with them."""

    def __init__(self, before_opening: Callable[[], object] = lambda: None) -> None:
        self.done: list[str] = []
        self._before_opening = before_opening

    def open(self) -> Sampler:
        self._before_opening()
        self.done.append("open")
        return cast(Sampler, self)

    def close(self) -> None:
        self.done.append("close")

    def __getattr__(self, name: str) -> Any:
        if name not in ASKS:
            raise AttributeError(name)

        def ask(*arguments: Any) -> Any:
            self.done.append(name)
            return getattr(FakeSampler(), name)(*arguments)

        return ask


def judged(own: Recorder, judge: Recorder) -> JudgedSampler:
    return JudgedSource(cast(SamplerSource, own), cast(SamplerSource, judge)).open()


@pytest.mark.parametrize("name", ["sample", "score", "rewards"])
def test_a_judge_is_not_opened_for_what_the_model_does(name: str) -> None:
    own, judge = Recorder(), Recorder()
    sampler = judged(own, judge)
    assert ASKS[name](sampler) == ASKS[name](FakeSampler())
    assert own.done == ["open", name]
    sampler.close()
    assert own.done == ["open", name, "close"]
    assert judge.done == []


def test_a_model_is_not_opened_for_what_its_judge_does() -> None:
    own, judge = Recorder(), Recorder()
    sampler = judged(own, judge)
    assert ASKS["choose"](sampler) == ASKS["choose"](FakeSampler())
    sampler.close()
    assert own.done == []
    assert judge.done == ["open", "choose", "close"]


def test_nothing_is_opened_or_closed_where_nothing_is_asked() -> None:
    own, judge = Recorder(), Recorder()
    judged(own, judge).close()
    assert own.done == judge.done == []


def test_both_are_opened_once_and_closed() -> None:
    own, judge = Recorder(), Recorder()
    sampler = judged(own, judge)
    for _ in range(2):
        for ask in ASKS.values():
            ask(sampler)
    sampler.close()
    assert own.done == ["open", *["sample", "score", "rewards"] * 2, "close"]
    assert judge.done == ["open", "choose", "choose", "close"]


def test_threads_that_share_a_sampler_open_each_model_once() -> None:
    # Every thread asks at the same moment, and opening gives way to the others.
    num_threads = 8
    start = threading.Barrier(num_threads)
    others = threading.Event()

    def give_way() -> None:
        others.wait(timeout=0.05)

    own, judge = Recorder(give_way), Recorder(give_way)
    sampler = judged(own, judge)

    def ask(index: int) -> None:
        start.wait(timeout=10)
        ASKS["choose" if index % 2 else "score"](sampler)

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(ask, range(num_threads)))
    assert sorted(own.done) == ["open", *["score"] * 4]
    assert sorted(judge.done) == ["choose"] * 4 + ["open"]


def test_samplers_of_one_source_are_separate() -> None:
    own, judge = Recorder(), Recorder()
    source = JudgedSource(cast(SamplerSource, own), cast(SamplerSource, judge))
    first, second = source.open(), source.open()
    ASKS["score"](first)
    second.close()
    assert own.done == ["open", "score"]


def test_answers_are_those_of_the_two_models() -> None:
    sampler = JudgedSource(FakeSource(), FakeSource()).open()
    for ask in ASKS.values():
        assert ask(sampler) == ask(FakeSampler())
