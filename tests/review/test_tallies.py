"""Tallies: only what was blind counts, drawn and picked apart, and what is no vote is counted."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from charactertrain.records import ReviewEvent
from charactertrain.review.tallies import MIN_PROMPTS, blind_verdicts, tally

Make = Callable[..., ReviewEvent]


@pytest.fixture(name="blind")
def blind_maker(verdict: Make) -> Make:
    """A blind verdict on the only pair of a prompt."""
    count = iter(range(10_000))

    def make(prompt: int, answer: str, **values: str) -> ReviewEvent:
        pair = {"first_id": f"{prompt}a", "second_id": f"{prompt}b", "left_id": f"{prompt}a"}
        usual = {"prompt_id": f"p{prompt}", "trait_id": "honest", "picked_by": "random"}
        return verdict(f"e{next(count)}", answer=answer, **{**pair, **usual, **values})

    return make


def always_first(event: ReviewEvent) -> float:
    return 0.9


def test_agreement_with_the_ranker_is_of_pairs_drawn_at_random(blind: Make) -> None:
    events = [blind(n, "first") for n in range(15)] + [blind(n, "second") for n in range(15, 20)]
    events += [blind(n, "second", picked_by="uncertain") for n in range(20, 40)]
    events += [blind(0, "second", picked_by="repeat"), blind(1, "second")]
    events += [replace(blind(n, "second"), left_id="", picked_by="browsing") for n in range(40, 50)]
    found = tally(events, always_first)
    (everyone,) = found.with_ranker
    assert (everyone.subject, everyone.num_items) == ("everyone", 20)
    assert everyone.found.share is not None
    assert everyone.found.share.estimate == pytest.approx(0.75)
    uncertain, rankers, model = found.picked
    assert (uncertain.num_items, rankers.num_items, model.num_items) == (20, 0, 0)
    assert uncertain.found.share is not None
    assert uncertain.found.share.estimate == 0
    assert found.num_verdicts == 42
    assert [row.subject for row in found.by_trait] == ["honest"]


def test_what_is_no_vote_is_counted_and_left_out(blind: Make) -> None:
    answers = ["first"] * 12 + ["neither"] * 3 + ["unsure"] * 2
    found = tally([blind(n, answer) for n, answer in enumerate(answers)], always_first)
    assert found.undecided == {"neither": 3, "unsure": 2}
    assert found.with_ranker[0].num_items == 12


def test_a_pair_that_the_ranker_does_not_have_is_left_out(blind: Make) -> None:
    found = tally([blind(n, "first") for n in range(12)], lambda event: None)
    assert found.with_ranker[0].num_items == 0


def test_a_ranker_that_cannot_tell_says_tie(blind: Make) -> None:
    answers = ["tie"] * 12
    found = tally([blind(n, answer) for n, answer in enumerate(answers)], lambda event: 0.5)
    assert found.with_ranker[0].found.share is not None
    assert found.with_ranker[0].found.share.estimate == 1.0


def test_agreement_with_oneself_is_of_the_first_two_answers(blind: Make) -> None:
    events = [blind(n, "first") for n in range(12)]
    events += [blind(n, "first" if n else "second", picked_by="repeat") for n in range(12)]
    events += [blind(0, "first", picked_by="repeat")]
    (row,) = tally(events, always_first).with_oneself
    assert (row.subject, row.num_items) == ("Ada", 12)
    assert row.found.share is not None
    assert row.found.share.estimate == pytest.approx(11 / 12)


def test_agreement_between_reviewers_is_of_first_answers(blind: Make) -> None:
    events = [blind(n, "first") for n in range(14)]
    events += [blind(n, "first" if n % 2 else "tie", reviewer="Ben") for n in range(12)]
    events += [blind(0, "first", reviewer="Ben", picked_by="repeat")]
    (row,) = tally(events, always_first).between
    assert (row.subject, row.num_items) == ("Ada, Ben", 12)
    assert row.found.share is not None
    assert row.found.share.estimate == pytest.approx(0.5)
    assert row.found.kappa is None or row.found.kappa.estimate == pytest.approx(0)
    third = [blind(n, "first", reviewer="Cleo") for n in range(2)]
    (row,) = tally([*events, *third], always_first).between
    assert row.found.kappa is None
    assert row.found.gwet is not None


def test_one_reviewer_agrees_with_nobody(blind: Make) -> None:
    assert tally([blind(0, "first")], always_first).between == ()


def test_few_prompts_have_no_interval(blind: Make) -> None:
    found = tally([blind(n, "first") for n in range(MIN_PROMPTS - 1)], always_first)
    assert found.with_ranker[0].num_items == MIN_PROMPTS - 1
    assert found.with_ranker[0].found.share is None
    found = tally([blind(n, "first") for n in range(MIN_PROMPTS)], always_first)
    assert found.with_ranker[0].found.share is not None


def test_a_verdict_that_was_withdrawn_does_not_count(blind: Make) -> None:
    kept, gone = blind(0, "first"), blind(0, "second", picked_by="repeat")
    withdrawn = replace(blind(0, "withdrawn"), left_id="")
    others = replace(withdrawn, event_id="other", reviewer="Ben")
    assert blind_verdicts([kept, gone, withdrawn, others]) == [kept]
    assert blind_verdicts([kept, gone, others], "Ben") == []


def test_names_are_right_by_how_the_response_was_written(verdict: Make) -> None:
    def named(number: int, answer: str, variant: str) -> ReviewEvent:
        return verdict(
            f"n{number}{variant}",
            kind="naming",
            trait_id="honest",
            prompt_id=f"p{number}",
            answer=answer,
            variant=variant,
        )

    events = [named(n, "honest" if n < 9 else "brief", "strong") for n in range(12)]
    # Where no character was shown, "none" is the right answer and its own trait is not.
    events += [named(n, "none" if n < 6 else "honest", "none") for n in range(12)]
    events += [named(20, "unsure", "none")]
    none, strong = tally(events, always_first).naming
    assert (none.variant, none.num_named, none.num_unsure) == ("none", 12, 1)
    assert none.right is not None
    assert strong.right is not None
    assert (none.right.estimate, strong.right.estimate) == (0.5, 0.75)
    assert strong.right.ci_low < 0.75 < strong.right.ci_high
