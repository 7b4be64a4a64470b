"""rankings: the choice of a ranker, pair probabilities of both, and the order that follows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any, cast

import pytest

from charactertrain.config import RankingsSection, RunConfig
from charactertrain.exceptions import ChoiceError, SamplingError
from charactertrain.records import Probe, Ranking, Response, Trait
from charactertrain.runtime.engines import SamplerSource
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sampler,
    Score,
    ScoreRequest,
)
from charactertrain.stages.checks import RankerQuality
from charactertrain.stages.rankings import Ranker, choose_ranker, ranker_check
from charactertrain.templates import REFERENCE_VARIANT


@pytest.fixture(name="section")
def rankings_section(smoke_config: RunConfig) -> RankingsSection:
    """As shipped: contrast at a quarter nat, 0.65 for a ranker and 0.75 for the judge."""
    changes = {"contrast_temperature": 0.25, "min_accuracy": 0.65, "min_judge_accuracy": 0.75}
    return smoke_config.rankings.model_copy(update=changes)


def ranker(
    sampler: Sampler,
    traits: Sequence[Trait],
    section: RankingsSection,
    method: str = "contrast",
    shown: str = "at_stake",
) -> Ranker:
    return Ranker(
        sampler,
        method=method,
        traits={trait.trait_id: trait for trait in traits},
        placement="user_turn",
        shown=shown,
        settings=section,
    )


def scoring(score: Callable[[ScoreRequest], Score | Failure]) -> Sampler:
    return cast(Sampler, SimpleNamespace(score=lambda requests: [score(each) for each in requests]))


def choosing(choose: Callable[[ChoiceRequest], Choice | Failure]) -> Sampler:
    return cast(
        Sampler, SimpleNamespace(choose=lambda requests: [choose(each) for each in requests])
    )


def verdict(request: ChoiceRequest, probability: float) -> Choice:
    return Choice(request.request_id, (math.log(probability), math.log(1 - probability)))


def preferring(best: str, probability: float) -> Callable[[ChoiceRequest], Choice]:
    """A judge that finds the response with this text better, wherever it stands."""

    def choose(request: ChoiceRequest) -> Choice:
        content = request.shown.messages[0].content
        if f"<response A>\n{best}\n" in content:
            return verdict(request, probability)
        if f"<response B>\n{best}\n" in content:
            return verdict(request, 1 - probability)
        return verdict(request, 0.5)

    return choose


@pytest.mark.parametrize(
    ("asked", "judge", "contrast", "chosen"),
    [
        ("auto", 0.75, 0.99, "judge"),
        ("auto", 0.74, 0.65, "contrast"),
        ("judge", 0.65, 0.99, "judge"),
        ("contrast", 0.99, 0.65, "contrast"),
    ],
)
def test_a_ranker_that_is_good_enough_is_chosen(
    section: RankingsSection, asked: str, judge: float, contrast: float, chosen: str
) -> None:
    qualities = [RankerQuality("judge", judge, 8), RankerQuality("contrast", contrast, 8)]
    assert choose_ranker(qualities, section.model_copy(update={"ranker": asked})) == chosen


@pytest.mark.parametrize(
    ("asked", "judge", "contrast", "blamed"),
    [
        ("auto", 0.7, 0.64, "contrast"),
        ("judge", 0.64, 0.99, "judge"),
        ("contrast", 0.99, 0.64, "contrast"),
    ],
)
def test_a_ranker_that_is_no_better_than_noise_is_refused(
    section: RankingsSection, asked: str, judge: float, contrast: float, blamed: str
) -> None:
    qualities = [RankerQuality("judge", judge, 8), RankerQuality("contrast", contrast, 9)]
    with pytest.raises(SamplingError) as caught:
        choose_ranker(qualities, section.model_copy(update={"ranker": asked}))
    said = str(caught.value)
    assert said.startswith(f"ranker check: {blamed} tells responses")
    numbers = f"(judge {judge:.2f} of 8, contrast {contrast:.2f} of 9; expected 0.65)"
    assert numbers in said
    assert "model.trait_placement" in said


PROBES = [
    Probe("1", "honest", "Hi?", REFERENCE_VARIANT, "It is so.", (1,), 0.2),
    Probe("2", "honest", "Hi?", "none", "Well.", (2,), 0.1),
]


def merged(request: ChoiceRequest) -> Choice:
    raise ChoiceError(f"the choices {request.choices} are not single tokens; ranker=contrast")


def no_engine(request: ChoiceRequest) -> Choice:
    raise SamplingError(f"no engine for {request.choices} could be started")


def source(choose: Callable[[ChoiceRequest], Choice]) -> SamplerSource:
    return cast(SamplerSource, SimpleNamespace(open=lambda: choosing(choose)))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", [RankerQuality("judge", 1.0, 1), RankerQuality("contrast", 1.0, 1)]),
        ("judge", [RankerQuality("judge", 1.0, 1)]),
        ("contrast", [RankerQuality("contrast", 1.0, 1)]),
    ],
)
def test_only_the_rankers_that_may_be_chosen_are_checked(
    traits: list[Trait], section: RankingsSection, asked: str, expected: list[RankerQuality]
) -> None:
    by_id = {trait.trait_id: trait for trait in traits}
    found = ranker_check(source(preferring("It is so.", 0.9)), PROBES, by_id, asked)
    assert found == expected
    choose_ranker(found, section.model_copy(update={"ranker": asked}))


def test_contrast_is_used_where_the_judge_cannot_answer(
    traits: list[Trait], section: RankingsSection
) -> None:
    by_id = {trait.trait_id: trait for trait in traits}
    contrast = RankerQuality("contrast", 1.0, 1)
    assert ranker_check(source(merged), PROBES, by_id, "contrast") == [contrast]
    found = ranker_check(source(merged), PROBES, by_id, "auto")
    assert found == [RankerQuality("judge", 0.0, 0), contrast]
    # Even where any judge is good enough.
    lenient = {"ranker": "auto", "min_accuracy": 0.0, "min_judge_accuracy": 0.0}
    assert choose_ranker(found, section.model_copy(update=lenient)) == "contrast"
    with pytest.raises(ChoiceError, match="ranker=contrast"):
        ranker_check(source(merged), PROBES, by_id, "judge")


def test_an_engine_that_fails_is_no_judge_that_fails(traits: list[Trait]) -> None:
    by_id = {trait.trait_id: trait for trait in traits}
    with pytest.raises(SamplingError, match="no engine"):
        ranker_check(source(no_engine), PROBES, by_id, "auto")


def test_contrast_is_the_gain_per_token_from_showing_the_trait(
    traits: list[Trait], responses: list[Response], section: RankingsSection
) -> None:
    gains = {"a": -0.2, "b": 0.3, "c": 0.05}

    def score(request: ScoreRequest) -> Score:
        with_trait = traits[0].statement in request.shown.messages[0].content
        gain = gains[request.request_id] if with_trait else 0.0
        return Score(request.request_id, tuple(-2.0 + gain for _ in request.token_ids))

    (found,), rejects = ranker(scoring(score), traits, section).process(responses)
    assert rejects == []
    assert found.response_ids == ("b", "c", "a")
    # sigmoid of differences over 0.25: 0.25, 0.5 and 0.25 nats per token.
    assert found.pair_probabilities == pytest.approx((0.731059, 0.880797, 0.731059), abs=1e-6)
    assert found.swap_consistency is None
    assert (found.prompt_id, found.trait_id, found.split) == ("p1", "honest", "train")
    assert found.method == "contrast"


def test_contrast_asks_twice_for_each_response(
    traits: list[Trait], responses: list[Response], section: RankingsSection
) -> None:
    seen: list[ScoreRequest] = []

    def score(request: ScoreRequest) -> Score:
        seen.append(request)
        return Score(request.request_id, (-1.0,) * len(request.token_ids))

    ranker(scoring(score), traits, section, shown="all").process(responses)
    assert [request.request_id for request in seen] == ["a", "a", "b", "b", "c", "c"]
    for request in seen[1::2]:
        (message,) = request.shown.messages
        assert message.content == "Do you like my scarf?"
    for request in seen[::2]:
        content = request.shown.messages[0].content
        assert all(trait.statement in content for trait in traits)
        assert "Do you like my scarf?" in content
    assert seen[2].token_ids == seen[3].token_ids == responses[1].token_ids


def test_the_judge_finds_the_better_response_in_both_orders(
    traits: list[Trait], responses: list[Response], section: RankingsSection
) -> None:
    judge = choosing(preferring("To tell the truth, no.", 0.9))
    (found,), _ = ranker(judge, traits, section, "judge").process(responses)
    assert found.response_ids[0] == "b"
    assert found.pair_probabilities == pytest.approx((0.9, 0.9, 0.5))
    # Of three pairs, the one that is even is won by neither.
    assert found.swap_consistency == pytest.approx(2 / 3)
    assert found.method == "judge"


def test_a_judge_that_always_says_a_prefers_nothing(
    traits: list[Trait], responses: list[Response], section: RankingsSection
) -> None:
    judge = choosing(lambda request: verdict(request, 0.99))
    (found,), _ = ranker(judge, traits, section, "judge").process(responses)
    assert found.pair_probabilities == pytest.approx((0.5, 0.5, 0.5))
    assert found.utilities == pytest.approx((0, 0, 0), abs=1e-9)
    assert found.swap_consistency == 0


def test_the_judge_is_asked_about_each_pair_in_both_orders(
    traits: list[Trait], responses: list[Response], section: RankingsSection
) -> None:
    seen: list[str] = []

    def choose(request: ChoiceRequest) -> Choice:
        seen.append(request.shown.messages[0].content)
        return verdict(request, 0.5)

    def order(content: str) -> tuple[str, ...]:
        places = {each.response_id: content.find(f">\n{each.text}\n<") for each in responses}
        return tuple(sorted((name for name in places if places[name] > 0), key=places.__getitem__))

    ranker(choosing(choose), traits, section, "judge").process(responses)
    orders = [order(content) for content in seen]
    assert sorted(orders) == sorted(permutations("abc", 2))
    assert all(traits[0].statement in content for content in seen)


@pytest.mark.parametrize("method", ["contrast", "judge"])
def test_a_ranking_orders_all_responses_by_utility(
    traits: list[Trait], responses: list[Response], section: RankingsSection, method: str
) -> None:
    (found,), _ = ranker(FakeSampler(), traits, section, method).process(responses)
    assert sorted(found.response_ids) == ["a", "b", "c"]
    assert list(found.utilities) == sorted(found.utilities, reverse=True)
    assert sum(found.utilities) == pytest.approx(0, abs=1e-9)
    assert len(found.pair_probabilities) == 3
    assert all(0 < probability < 1 for probability in found.pair_probabilities)


@pytest.mark.parametrize("method", ["contrast", "judge"])
def test_a_ranking_does_not_depend_on_the_order_of_responses(
    traits: list[Trait], responses: list[Response], section: RankingsSection, method: str
) -> None:
    found: list[Ranking] = []
    for order in permutations(responses):
        found += ranker(FakeSampler(), traits, section, method).process(list(order))[0]
    first = found[0]
    for other in found[1:]:
        assert other.response_ids == first.response_ids
        assert other.utilities == pytest.approx(first.utilities)
        assert other.pair_probabilities == pytest.approx(first.pair_probabilities)


@pytest.mark.parametrize("method", ["contrast", "judge"])
def test_each_prompt_is_ranked_by_itself(
    traits: list[Trait], responses: list[Response], section: RankingsSection, method: str
) -> None:
    others = [
        replace(each, response_id=f"{each.response_id}2", prompt_id="p2", prompt="Is it late?")
        for each in responses
    ]
    ranks = ranker(FakeSampler(), traits, section, method)
    first, second = ranks.process(responses)[0], ranks.process(others)[0]
    assert ranks.process([*responses, *others]) == ([*first, *second], [])


def test_a_prompt_with_one_response_is_a_reject(
    traits: list[Trait], responses: list[Response], section: RankingsSection
) -> None:
    lone = replace(responses[0], response_id="z", prompt_id="p0")
    found, rejects = ranker(FakeSampler(), traits, section).process([lone, *responses])
    assert [each.prompt_id for each in found] == ["p1"]
    assert [(each.row_id, each.stage, each.reason) for each in rejects] == [
        ("p0", "rankings", "too_few_responses")
    ]
    assert ranker(FakeSampler(), traits, section).process([lone])[0] == []


@pytest.mark.parametrize("method", ["contrast", "judge"])
def test_a_prompt_that_cannot_be_compared_is_a_reject_and_the_others_are_ranked(
    traits: list[Trait], responses: list[Response], section: RankingsSection, method: str
) -> None:
    others = [
        replace(each, response_id=f"{each.response_id}2", prompt_id="p2", prompt="Is it late?")
        for each in responses
    ]

    def failing(ask: Callable[[list[Any]], list[Any]]) -> Callable[[Sequence[Any]], list[Any]]:
        def answer(requests: Sequence[Any]) -> list[Any]:
            return [
                Failure(request.request_id, "too_long", "9 tokens of 8")
                if request.request_id == "b"
                else ask([request])[0]
                for request in requests
            ]

        return answer

    fake = FakeSampler()
    sampler = SimpleNamespace(score=failing(fake.score), choose=failing(fake.choose))
    ranks = ranker(cast(Sampler, sampler), traits, section, method)
    found, rejects = ranks.process([*responses, *others])
    assert found == ranker(fake, traits, section, method).process(others)[0]
    assert [(each.row_id, each.stage, each.reason, each.detail) for each in rejects] == [
        ("p1", "rankings", "too_long", "9 tokens of 8")
    ]
