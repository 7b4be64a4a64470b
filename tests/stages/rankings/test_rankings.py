"""rankings: the choice of a ranker, the order that follows, and how far it can be trusted."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from charactertrain.config import RankingsSection, RunConfig, validate
from charactertrain.exceptions import ChoiceError, SamplingError
from charactertrain.records import Opinion, Probe, Ranking, Response, Trait, to_table
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sampler,
    SamplerSource,
)
from charactertrain.stages.checks import RankerQuality
from charactertrain.stages.rankings import summary as ranking_summary
from charactertrain.stages.rankings.comparisons import Comparisons, Group, Ranker
from charactertrain.stages.rankings.ranker_choice import (
    check_and_choose,
    choose_ranker,
    considered,
    ranker_check,
)
from charactertrain.stages.rankings.rankers import make_ranker
from charactertrain.stages.rankings.stage import Method, RankingWriter, _choice
from charactertrain.storage import Directory, open_directory
from charactertrain.templates import REFERENCE_VARIANT

Answer = Callable[[Group], Comparisons | Failure]


@pytest.fixture(name="section")
def rankings_section(smoke_config: RunConfig) -> RankingsSection:
    """As shipped, without second opinions: 0.65 for a ranker and 0.75 for a judge of `auto`'s."""
    changes = {"min_accuracy": 0.65, "min_judge_accuracy": 0.75, "second_opinions": ()}
    return smoke_config.rankings.model_copy(update=changes | {"ensemble": ("judge", "contrast")})


def quality(
    ranker: str, accuracy: float, num_pairs: int = 8, ci_low: float = 0.65
) -> RankerQuality:
    return RankerQuality(ranker, accuracy, ci_low, 1.0, num_pairs)


def unsure(ranker: str, accuracy: float, num_pairs: int) -> RankerQuality:
    """Of too few pairs for an interval."""
    return quality(ranker, accuracy, num_pairs, 0.0)


# Which rankers are checked.


@pytest.mark.parametrize(
    ("ranker", "opinions", "expected"),
    [
        ("auto", (), ["judge", "judge_listwise", "rating", "contrast"]),
        ("auto", ("contrast", "rating"), ["judge", "judge_listwise", "rating", "contrast"]),
        ("judge", (), ["judge"]),
        ("contrast", ("judge", "contrast"), ["contrast", "judge"]),
        ("ensemble", (), ["ensemble", "judge", "contrast"]),
        ("ensemble", ("rating", "judge"), ["ensemble", "judge", "contrast", "rating"]),
    ],
)
def test_the_rankers_that_may_be_chosen_or_asked_are_checked(
    section: RankingsSection, ranker: str, opinions: tuple[str, ...], expected: list[str]
) -> None:
    changes = {"ranker": ranker, "second_opinions": opinions}
    assert considered(section.model_copy(update=changes)) == expected


@pytest.mark.parametrize(
    ("ranker", "opinions", "others"),
    [
        ("judge", ("rating", "judge", "rating"), ("rating",)),
        ("rating", (), ()),
        ("judge_listwise", ("judge", "rating"), ("judge", "rating")),
    ],
)
def test_without_a_character_the_ranker_is_the_one_named_and_nothing_is_checked(
    compose: Any, ranker: str, opinions: tuple[str, ...], others: tuple[str, ...]
) -> None:
    values = compose("experiment=[smoke,neutral]", f"ranker={ranker}")
    values["rankings"]["second_opinions"] = opinions
    context = cast(Any, SimpleNamespace(config=validate(values)))
    # Neither artifacts nor a sampler are there to be looked at.
    nothing = cast(Any, None)
    assert _choice(nothing, context, nothing, nothing, {}) == (None, ranker, others)


# Which ranker is chosen.


def qualities(judge: float, listwise: float, rating: float, contrast: float) -> list[RankerQuality]:
    """Lower ends of the judges' intervals, and the contrast's accuracy."""
    return [
        quality("judge", 0.99, ci_low=judge),
        quality("judge_listwise", 0.99, ci_low=listwise),
        quality("rating", 0.99, ci_low=rating),
        quality("contrast", contrast, 9),
    ]


@pytest.mark.parametrize(
    ("numbers", "chosen"),
    [
        ((0.75, 0.99, 0.99, 0.99), "judge"),
        ((0.74, 0.75, 0.99, 0.99), "judge_listwise"),
        ((0.74, 0.74, 0.75, 0.99), "rating"),
        ((0.74, 0.74, 0.74, 0.65), "contrast"),
    ],
)
def test_auto_takes_the_first_judge_that_is_good_enough_or_the_contrast(
    section: RankingsSection, numbers: tuple[float, ...], chosen: str
) -> None:
    auto = section.model_copy(update={"ranker": "auto"})
    assert choose_ranker(qualities(*numbers), auto) == chosen


def test_auto_passes_over_a_judge_that_may_be_good_by_accident(section: RankingsSection) -> None:
    auto = section.model_copy(update={"ranker": "auto"})
    first = quality("judge", 0.99, ci_low=0.74)
    rest = qualities(0.99, 0.8, 0.99, 0.7)[1:]
    assert choose_ranker([first, *rest], auto) == "judge_listwise"
    assert choose_ranker([first, rest[-1]], auto) == "contrast"
    assert choose_ranker([replace(first, ci_low=0.75), *rest], auto) == "judge"
    # A ranker that is named is taken at its accuracy.
    named = section.model_copy(update={"ranker": "judge"})
    assert choose_ranker([first], named) == "judge"


@pytest.mark.parametrize("ranker", ["judge", "judge_listwise", "rating", "contrast", "ensemble"])
def test_a_named_ranker_is_held_against_the_lower_limit(
    section: RankingsSection, ranker: str
) -> None:
    named = section.model_copy(update={"ranker": ranker})
    others = [each for each in qualities(0.99, 0.99, 0.99, 0.99) if each.ranker != ranker]
    assert choose_ranker([*others, quality(ranker, 0.65)], named) == ranker
    with pytest.raises(SamplingError, match=f"ranker check: {ranker} tells"):
        choose_ranker([*others, quality(ranker, 0.64)], named)


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
    found = [quality("judge", judge), quality("contrast", contrast, 9)]
    with pytest.raises(SamplingError) as caught:
        choose_ranker(found, section.model_copy(update={"ranker": asked}))
    said = str(caught.value)
    assert said.startswith(f"ranker check: {blamed} tells responses")
    numbers = f"(judge {judge:.2f} of 8, contrast {contrast:.2f} of 9; expected 0.65)"
    assert numbers in said
    assert "model.trait_placement" in said


def test_a_ranker_that_answered_nothing_is_not_chosen(section: RankingsSection) -> None:
    found = [quality("judge", 0.0, 0), quality("contrast", 0.7)]
    # Even where any judge is good enough.
    lenient = {"ranker": "auto", "min_accuracy": 0.0, "min_judge_accuracy": 0.0}
    assert choose_ranker(found, section.model_copy(update=lenient)) == "contrast"
    judged = [
        quality("judge", 0.0, 0),
        quality("judge_listwise", 0.8, ci_low=0.75),
        quality("contrast", 0.7),
    ]
    auto = section.model_copy(update={"ranker": "auto"})
    assert choose_ranker(judged, auto) == "judge_listwise"


# The check itself.

PROBES = [
    Probe("1", "honest", "Hi?", REFERENCE_VARIANT, "It is so.", (1,), 0.2),
    Probe("2", "honest", "Hi?", "none", "Well.", (2,), 0.1),
]


def by_length(request: ChoiceRequest) -> Choice:
    """A judge that finds the longer response better; it rates by length as well."""
    content = request.shown.messages[0].content
    texts = [part.partition("\n</response")[0] for part in content.split("<response ")[1:]]
    lengths = [len(text) for text in texts]
    if len(lengths) == 1:
        weights = [1.0 if index == min(8, lengths[0] // 2) else 0.0 for index in range(9)]
    else:
        weights = [0.9 if length == max(lengths) else 0.1 for length in lengths]
        weights += [0.0] * (len(request.choices) - len(weights))
    logprobs = tuple(math.log(weight) if weight else -math.inf for weight in weights)
    return Choice(request.request_id, logprobs, prompt_tokens=10, cached_tokens=4)


def merged(request: ChoiceRequest) -> Choice:
    raise ChoiceError(f"the choices {request.choices} are not single tokens; ranker=contrast")


def merged_digits(request: ChoiceRequest) -> Choice:
    return merged(request) if "9" in request.choices else by_length(request)


def no_engine(request: ChoiceRequest) -> Choice:
    raise SamplingError(f"no engine for {request.choices} could be started")


class Opened:
    """A source of samplers that ask one judge, and how many of them were opened and closed."""

    def __init__(self, choose: Callable[[ChoiceRequest], Choice | Failure]) -> None:
        self._choose, self.opened, self.closed = choose, 0, 0

    def open(self) -> Sampler:
        self.opened += 1
        return cast(Sampler, self)

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        return [self._choose(request) for request in requests]

    def close(self) -> None:
        self.closed += 1


def check(
    source: Opened, traits: Sequence[Trait], section: RankingsSection, **changes: object
) -> list[RankerQuality]:
    settings = section.model_copy(update=changes)
    make = partial(make_ranker, settings=settings, placement="user_turn", seed=0)
    by_id = {trait.trait_id: trait for trait in traits}
    return ranker_check(cast(SamplerSource, source), make, PROBES, by_id, settings)


def without_reasons(qualities: Sequence[RankerQuality]) -> list[RankerQuality]:
    """What was found, without what rankers that did not answer said."""
    return [replace(quality, failure="") for quality in qualities]


def test_rankers_are_checked_on_probes_of_known_truth(
    traits: list[Trait], section: RankingsSection
) -> None:
    source = Opened(by_length)
    found = check(source, traits, section, ranker="auto")
    # One pair, whose longer response was written with the trait shown.
    names = ["judge", "judge_listwise", "rating", "contrast"]
    assert found == [unsure(name, 1.0, 1) for name in names]
    assert (source.opened, source.closed) == (1, 1)


def test_the_contrast_needs_no_sampler_to_be_checked(
    traits: list[Trait], section: RankingsSection
) -> None:
    source = Opened(merged)
    assert check(source, traits, section, ranker="contrast") == [unsure("contrast", 1.0, 1)]
    assert source.opened == 0


def test_a_judge_that_cannot_answer_leaves_the_choice_to_others(
    traits: list[Trait], section: RankingsSection
) -> None:
    found = check(Opened(merged), traits, section, ranker="auto")
    judges = ("judge", "judge_listwise", "rating")
    assert without_reasons(found) == [
        *(unsure(name, 0.0, 0) for name in judges),
        unsure("contrast", 1.0, 1),
    ]
    assert all("are not single tokens" in quality.failure for quality in found[:3])
    assert choose_ranker(found, section.model_copy(update={"ranker": "auto"})) == "contrast"


def test_a_second_opinion_that_cannot_answer_stops_nothing(
    traits: list[Trait], section: RankingsSection
) -> None:
    found = check(
        Opened(merged_digits), traits, section, ranker="judge", second_opinions=("rating",)
    )
    assert without_reasons(found) == [unsure("judge", 1.0, 1), unsure("rating", 0.0, 0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"ranker": "rating"},
        {"ranker": "ensemble", "ensemble": ("judge", "rating")},
    ],
)
def test_a_named_ranker_that_cannot_answer_is_said_at_once(
    traits: list[Trait], section: RankingsSection, changes: dict[str, object]
) -> None:
    with pytest.raises(ChoiceError, match="ranker=contrast"):
        check(Opened(merged_digits), traits, section, **changes)


def test_an_ensembles_members_that_are_not_asked_stop_nothing(
    traits: list[Trait], section: RankingsSection
) -> None:
    # ranker=auto uses no ensemble, whatever the settings name.
    found = check(
        Opened(merged_digits),
        traits,
        section,
        ranker="auto",
        ensemble=("judge", "rating"),
    )
    assert without_reasons(found)[2] == unsure("rating", 0.0, 0)


def test_an_engine_that_fails_is_no_judge_that_fails(
    traits: list[Trait], section: RankingsSection
) -> None:
    with pytest.raises(SamplingError, match="no engine"):
        check(Opened(no_engine), traits, section, ranker="auto")


def test_pairs_that_a_ranker_fails_on_are_not_counted(
    traits: list[Trait], section: RankingsSection
) -> None:
    failing = Opened(lambda request: Failure(request.request_id, "too_long", "9 of 8"))
    found = check(failing, traits, section, ranker="judge")
    assert found == [replace(unsure("judge", 0.0, 0), failure="too_long: 9 of 8")]
    with pytest.raises(SamplingError, match=r"judge tells.*judge said: too_long: 9 of 8"):
        choose_ranker(found, section.model_copy(update={"ranker": "judge"}))


def test_a_check_is_kept_once_it_has_led_to_a_choice(
    section: RankingsSection, tmp_path: Path
) -> None:
    directory = open_directory(str(tmp_path))
    settings = section.model_copy(update={"ranker": "rating"})
    good = RankerQuality("rating", 0.9, 0.8, 1.0, 16)
    # What the judge runs on fails, and is mended.
    for bad in (replace(good, accuracy=0.0, failure="refused"), replace(good, accuracy=0.4)):
        with pytest.raises(SamplingError, match="ranker check: rating tells"):
            check_and_choose(directory, lambda bad=bad: [bad], settings)  # type: ignore[misc]
    assert check_and_choose(directory, lambda: [good], settings) == ([good], "rating")
    assert check_and_choose(directory, pytest.fail, settings) == ([good], "rating")


# From comparisons to rankings.


def saying(*above: float, halves: Sequence[Sequence[float]] = (), **changes: Any) -> Comparisons:
    """Probabilities of all pairs, row by row; tokens and consistency that tests recognise."""
    size = next(k for k in range(2, 9) if k * (k - 1) // 2 == len(above))

    def matrix(values: Sequence[float]) -> list[list[float]]:
        rows = [[0.5] * size for _ in range(size)]
        given = iter(values)
        for i in range(size):
            for j in range(i + 1, size):
                rows[i][j] = next(given)
                rows[j][i] = 1 - rows[i][j]
        return rows

    plain = Comparisons(matrix(above), None, 0.75, prompt_tokens=100, cached_tokens=40)
    if halves:
        first, second = halves
        plain = replace(plain, halves=(matrix(first), matrix(second)))
    return replace(plain, **changes)


def of(answer: Answer) -> Ranker:
    return lambda groups: [answer(group) for group in groups]


def writer(
    traits: Sequence[Trait],
    *,
    others: dict[str, Answer] | None = None,
    share: float = 0.0,
    prior: float = 0.1,
    shown: str = "at_stake",
    **answers: Answer,
) -> RankingWriter:
    """A writer whose rankers give known answers; the first named is the method."""
    (name,) = answers
    rankers = {key: of(answer) for key, answer in {**answers, **(others or {})}.items()}
    return RankingWriter(
        FakeSampler(),
        method=Method(name, tuple(others or {}), share, prior),
        make=cast("partial[Ranker]", lambda asked, _: rankers[asked]),
        traits={trait.trait_id: trait for trait in traits},
        shown=shown,
    )


def only(writing: RankingWriter, responses: list[Response]) -> Ranking:
    (found,), rejects = writing.process(responses)
    assert rejects == []
    return found


def test_a_ranking_orders_responses_and_their_pairs_by_utility(
    traits: list[Trait], responses: list[Response]
) -> None:
    # a loses to both, b beats c: b, c, a.
    found = only(writer(traits, judge=lambda _: saying(0.1, 0.2, 0.7)), responses)
    assert found.response_ids == ("b", "c", "a")
    # b over c, b over a, c over a.
    assert found.pair_probabilities == pytest.approx((0.7, 0.9, 0.8))
    assert found.num_tokens == (6, 7, 2)
    assert (found.prompt_id, found.trait_id, found.split) == ("p1", "honest", "train")
    assert found.method == "judge"
    assert found.swap_consistency == 0.75
    assert (found.prompt_tokens, found.cached_tokens) == (100, 40)
    assert found.opinions == ()
    assert list(found.utilities) == sorted(found.utilities, reverse=True)
    assert sum(found.utilities) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("prior", [0.1, 1.0])
def test_utilities_are_the_maximum_of_likelihood_and_prior(
    traits: list[Trait], responses: list[Response], prior: float
) -> None:
    found = only(writer(traits, prior=prior, judge=lambda _: saying(0.9)), responses[:2])
    first, second = found.utilities
    assert second == pytest.approx(-first)
    # Where the gradient of the first response's utility is zero.
    assert 0.9 - 1 / (1 + math.exp(second - first)) == pytest.approx(prior * first)


def test_equal_responses_are_ordered_by_their_ids(
    traits: list[Trait], responses: list[Response]
) -> None:
    found = only(writer(traits, judge=lambda _: saying(0.5, 0.5, 0.5)), responses[::-1])
    assert found.response_ids == ("a", "b", "c")
    assert found.utilities == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize(
    ("above", "expected"),
    [((0.9, 0.1, 0.9), 1.0), ((0.9, 0.9, 0.9), 0.0), ((0.9, 0.5, 0.9), None), ((0.9,), None)],
    ids=["circle", "order", "undecided", "pair"],
)
def test_a_circle_of_preferences_is_a_cyclic_triad(
    traits: list[Trait],
    responses: list[Response],
    above: tuple[float, ...],
    expected: float | None,
) -> None:
    count = 3 if len(above) == 3 else 2
    found = only(writer(traits, judge=lambda _: saying(*above)), responses[:count])
    assert found.cyclic_triads == expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        # The first half says a, b, c; the second the same, the reverse, a and c and b, nothing.
        ((0.6, 0.6, 0.6), 1.0),
        ((0.1, 0.1, 0.1), -1.0),
        ((0.9, 0.9, 0.1), 1 / 3),
        ((0.5, 0.5, 0.5), None),
    ],
    ids=["same", "reverse", "one pair", "nothing"],
)
def test_halves_of_the_evidence_are_held_against_each_other(
    traits: list[Trait],
    responses: list[Response],
    second: tuple[float, ...],
    expected: float | None,
) -> None:
    comparisons = saying(0.9, 0.9, 0.9, halves=[(0.9, 0.9, 0.9), second])
    found = only(writer(traits, judge=lambda _: comparisons), responses)
    assert found.split_half == (None if expected is None else pytest.approx(expected))


def test_evidence_without_halves_has_no_agreement_of_halves(
    traits: list[Trait], responses: list[Response]
) -> None:
    assert only(writer(traits, judge=lambda _: saying(0.9, 0.9, 0.9)), responses).split_half is None


def test_opinions_are_shares_of_the_pairs_that_both_decide(
    traits: list[Trait], responses: list[Response]
) -> None:
    def failing(group: Group) -> Failure:
        return Failure(group.group_id, "too_long", "9 tokens of 8")

    others: dict[str, Answer] = {
        # Agrees on a and b, does not on b and c; a and c are even in the ranking.
        "rating": lambda _: saying(0.6, 0.9, 0.4),
        "judge_listwise": failing,
        "contrast": lambda _: saying(0.5, 0.9, 0.5),
    }
    writing = writer(traits, others=others, share=1.0, judge=lambda _: saying(0.9, 0.5, 0.6))
    found = only(writing, responses)
    assert found.opinions == (Opinion("rating", 0.5), Opinion("contrast", None))
    # What they cost is not the ranking's.
    assert found.prompt_tokens == 100


def many(responses: Sequence[Response], count: int) -> list[Response]:
    return [
        replace(each, response_id=f"{each.response_id}{n}", prompt_id=f"p{n}")
        for n in range(count)
        for each in responses[:2]
    ]


def test_others_are_asked_on_their_share_of_the_prompts(
    traits: list[Trait], responses: list[Response]
) -> None:
    def asked(share: float, rows: list[Response]) -> set[str]:
        seen: list[str] = []

        def answer(group: Group) -> Comparisons:
            seen.append(group.group_id)
            return saying(0.7)

        writing = writer(
            traits, others={"rating": answer}, share=share, judge=lambda _: saying(0.9)
        )
        found, _ = writing.process(rows)
        with_opinions = {each.prompt_id for each in found if each.opinions}
        assert with_opinions == set(seen)
        assert len(found) == len(rows) // 2
        return with_opinions

    rows = many(responses, 400)
    assert asked(0.0, rows) == set()
    assert asked(1.0, rows) == {row.prompt_id for row in rows}
    quarter = asked(0.25, rows)
    # 100 expected, with a standard deviation of 9.
    assert 65 < len(quarter) < 135
    # By the prompt alone, whatever it is asked with.
    assert asked(0.25, rows[:200]) | asked(0.25, rows[200:]) == quarter
    assert quarter < asked(0.5, rows)


def test_the_traits_that_are_shown_are_those_of_the_settings(
    traits: list[Trait], responses: list[Response]
) -> None:
    seen: list[Group] = []

    def answer(group: Group) -> Comparisons:
        seen.append(group)
        return saying(0.9)

    for shown in ("at_stake", "all", "none"):
        only(writer(traits, shown=shown, judge=answer), responses[:2])
    at_stake, everything, nothing = seen
    assert nothing.traits == ()
    assert at_stake.traits == (traits[0],)
    assert everything.traits == tuple(traits)
    assert at_stake.prompt == "Do you like my scarf?"
    assert [each.text for each in at_stake.candidates] == ["No.", "To tell the truth, no."]
    assert at_stake.candidates[1].token_ids == responses[1].token_ids


def test_a_prompt_with_one_response_is_a_reject(
    traits: list[Trait], responses: list[Response]
) -> None:
    lone = replace(responses[0], response_id="z", prompt_id="p0", trait_id="curious")
    writing = writer(traits, judge=lambda _: saying(0.9, 0.9, 0.9))
    found, rejects = writing.process([lone, *responses])
    assert [each.prompt_id for each in found] == ["p1"]
    assert [(each.row_id, each.trait_id, each.stage, each.reason) for each in rejects] == [
        ("p0", "curious", "rankings", "too_few_responses")
    ]
    assert writing.process([lone]) == ([], rejects)
    assert writing.process([]) == ([], [])


def test_a_prompt_that_cannot_be_compared_is_a_reject_and_the_others_are_ranked(
    traits: list[Trait], responses: list[Response]
) -> None:
    def answer(group: Group) -> Comparisons | Failure:
        if group.group_id == "p1":
            return Failure("a", "too_long", "9 tokens of 8")
        return saying(0.9)

    rows = many(responses, 3)
    writing = writer(traits, others={"rating": lambda _: saying(0.9)}, share=1.0, judge=answer)
    found, rejects = writing.process(rows)
    assert [each.prompt_id for each in found] == ["p0", "p2"]
    assert [(r.row_id, r.trait_id, r.stage, r.reason, r.detail) for r in rejects] == [
        ("p1", "honest", "rankings", "too_long", "9 tokens of 8")
    ]


# With the rankers themselves.

METHODS = ("contrast", "judge", "judge_listwise", "rating", "ensemble")


def real_writer(traits: Sequence[Trait], section: RankingsSection, method: str) -> RankingWriter:
    make = partial(make_ranker, settings=section, placement="user_turn", seed=3)
    return RankingWriter(
        FakeSampler(),
        method=Method(method, (), 0.0, 0.1),
        make=make,
        traits={trait.trait_id: trait for trait in traits},
        shown="at_stake",
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_ranker_makes_a_ranking(
    traits: list[Trait], responses: list[Response], section: RankingsSection, method: str
) -> None:
    found = only(real_writer(traits, section, method), responses)
    assert sorted(found.response_ids) == ["a", "b", "c"]
    assert list(found.utilities) == sorted(found.utilities, reverse=True)
    assert sum(found.utilities) == pytest.approx(0, abs=1e-9)
    assert len(found.pair_probabilities) == 3
    assert all(0 < probability < 1 for probability in found.pair_probabilities)
    assert found.method == method
    assert found.prompt_tokens > 0


@pytest.mark.parametrize("method", ["contrast", "judge", "rating", "ensemble"])
def test_a_ranking_does_not_depend_on_the_order_of_responses(
    traits: list[Trait], responses: list[Response], section: RankingsSection, method: str
) -> None:
    writing = real_writer(traits, section, method)
    first = only(writing, responses)
    for order in permutations(responses):
        other = only(writing, list(order))
        assert other.response_ids == first.response_ids
        assert other.utilities == pytest.approx(first.utilities)
        assert other.pair_probabilities == pytest.approx(first.pair_probabilities)


@pytest.mark.parametrize("method", METHODS)
def test_each_prompt_is_ranked_by_itself(
    traits: list[Trait], responses: list[Response], section: RankingsSection, method: str
) -> None:
    others = [
        replace(each, response_id=f"{each.response_id}2", prompt_id="p2", prompt="Is it late?")
        for each in responses
    ]
    writing = real_writer(traits, section, method)
    first, second = only(writing, responses), only(writing, others)
    assert writing.process([*responses, *others]) == ([first, second], [])


# What is said of all of them.

RANKING = Ranking(
    prompt_id="p1",
    trait_id="honest",
    split="train",
    response_ids=("a", "b", "c"),
    utilities=(1.0, 0.0, -1.0),
    pair_probabilities=(0.7, 0.9, 0.7),
    num_tokens=(3, 2, 1),
    method="judge",
    swap_consistency=1.0,
    cyclic_triads=0.0,
    split_half=None,
    opinions=(Opinion("rating", 1.0), Opinion("contrast", None)),
    prompt_tokens=300,
    cached_tokens=100,
)
SECOND = replace(
    RANKING,
    prompt_id="p2",
    response_ids=("d", "e"),
    utilities=(0.5, -0.5),
    pair_probabilities=(0.8,),
    num_tokens=(8, 4),
    swap_consistency=0.5,
    cyclic_triads=None,
    split_half=1.0,
    opinions=(Opinion("contrast", 0.5),),
    prompt_tokens=100,
    cached_tokens=0,
)
THIRD = replace(
    SECOND,
    prompt_id="p3",
    trait_id="curious",
    utilities=(0.0, 0.0),
    num_tokens=(5, 7),
    swap_consistency=None,
    split_half=0.5,
    opinions=(Opinion("rating", 0.5),),
    cached_tokens=100,
)


def measured(tmp_path: Path, *files: Sequence[Ranking]) -> dict[str, Any]:
    directory: Directory = open_directory(str(tmp_path))
    names = [f"rankings/part-{index:06d}.parquet" for index in range(len(files))]
    for name, rows in zip(names, files, strict=True):
        directory.write_table(name, to_table(rows, Ranking))
    return dict(ranking_summary.measured(directory, names, num_resamples=200, seed=0))


def test_the_cost_is_that_of_a_comparison(tmp_path: Path) -> None:
    found = measured(tmp_path, [RANKING], [SECOND, THIRD])
    # Three pairs and one and one; 500 tokens, 200 of them cached.
    assert found["cost"] == {
        "num_comparisons": 5,
        "prompt_tokens_per_comparison": 100.0,
        "computed_tokens_per_comparison": 60.0,
        "cache_hit_share": 0.4,
    }


def test_reliability_is_measured_over_all_prompts_and_for_each_trait(tmp_path: Path) -> None:
    found = measured(tmp_path, [RANKING], [SECOND, THIRD])
    overall, by_trait = found["reliability"], found["reliability_by_trait"]
    assert overall["num_prompts"] == 3
    assert overall["swap_consistency"]["estimate"] == 0.75
    assert overall["swap_consistency"]["num_clusters"] == 2
    assert overall["split_half"]["estimate"] == 0.75
    # Only one prompt has a triad.
    assert overall["cyclic_triads"] is None
    # S_xx 2 + 0.5 + 0, S_yy 2 + 8 + 2, S_xy 2 + 2 + 0.
    assert overall["length_correlation"]["estimate"] == pytest.approx(4 / math.sqrt(2.5 * 12))
    assert sorted(by_trait) == ["curious", "honest"]
    honest, curious = by_trait["honest"], by_trait["curious"]
    assert (honest["num_prompts"], curious["num_prompts"]) == (2, 1)
    assert honest["swap_consistency"]["estimate"] == 0.75
    assert honest["split_half"] is None
    assert honest["length_correlation"]["estimate"] == pytest.approx(4 / math.sqrt(2.5 * 10))
    assert all(value is None for key, value in curious.items() if key != "num_prompts")


def test_agreement_needs_two_prompts_on_which_both_decide(tmp_path: Path) -> None:
    found = measured(tmp_path, [RANKING, SECOND, THIRD])["agreement"]
    assert list(found) == ["rating"]
    assert found["rating"]["estimate"] == 0.75
    assert found["rating"]["num_clusters"] == 2
    assert measured(tmp_path / "one", [RANKING, SECOND])["agreement"] == {}


def test_agreement_is_of_each_trait_too(tmp_path: Path) -> None:
    opinions = (Opinion("judge", 0.25),)
    more = replace(SECOND, prompt_id="p9", opinions=(Opinion("judge", 0.75),))
    honest = [replace(RANKING, opinions=opinions), more]
    other = [replace(row, trait_id="curious", prompt_id=f"c{row.prompt_id}") for row in honest]
    other = [replace(row, opinions=(Opinion("judge", 1.0),)) for row in other]
    found = measured(tmp_path, honest, other)
    assert found["agreement"]["judge"]["estimate"] == pytest.approx((0.25 + 0.75 + 2) / 4)
    by_trait = found["agreement_by_trait"]
    assert by_trait["honest"]["judge"]["estimate"] == pytest.approx(0.5)
    assert by_trait["curious"]["judge"]["estimate"] == 1.0
    assert by_trait["curious"]["judge"]["num_clusters"] == 2


def test_no_ranking_costs_nothing_and_says_nothing(tmp_path: Path) -> None:
    found = measured(tmp_path, [])
    assert found["cost"]["num_comparisons"] == 0
    assert found["cost"]["cache_hit_share"] == 0
    assert found["reliability"]["num_prompts"] == 0
    assert found["reliability_by_trait"] == found["agreement"] == {}
