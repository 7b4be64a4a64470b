"""responses: candidates per prompt and variant, and those that nobody could learn from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from charactertrain.config import ResponsesSection, RunConfig
from charactertrain.records import Prompt, Reject, Response, Trait
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.stages.responses.stage import ResponseWriter, unusable
from charactertrain.templates import (
    NUM_PHRASINGS,
    plain_conversation,
    response_conversation,
)

Answer = str | Failure | tuple[str, str] | tuple[str, str, tuple[int, ...]]


@pytest.fixture(name="section")
def responses_section(smoke_config: RunConfig) -> ResponsesSection:
    """Four candidates of up to 16 tokens that end by themselves."""
    changes = {
        "per_prompt": 4,
        "variants": {"none": 1, "mild": 1, "strong": 2},
        "ending": "natural",
        "max_repetition": 0.4,
    }
    return smoke_config.responses.model_copy(update=changes)


def writer(
    sampler: Sampler, traits: Sequence[Trait], section: ResponsesSection, **changes: Any
) -> ResponseWriter:
    options: dict[str, Any] = {
        "traits": {trait.trait_id: trait for trait in traits},
        "section": section,
        "placement": "user_turn",
        "shown": "at_stake",
        "seed": 1,
    }
    return ResponseWriter(sampler, **(options | changes))


def written(
    traits: Sequence[Trait],
    section: ResponsesSection,
    prompt: Prompt,
    answers: Sequence[Answer],
    **changes: Any,
) -> tuple[list[Response], list[Reject], list[tuple[SampleRequest, SamplingSettings]]]:
    """What becomes of these answers, and what was asked for."""
    seen = []

    def answer(
        requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        seen.extend((request, settings) for request in requests)
        return [result(*each) for each in zip(requests, answers, strict=True)]

    def result(request: SampleRequest, given: Answer) -> Sample | Failure:
        if isinstance(given, Failure):
            return given
        text, finish, ids = (*given, (1, 2, 3))[:3] if isinstance(given, tuple) else (given, "", ())
        ids, finish = ids or (1, 2, 3), finish or "stop"
        logprobs = (-0.5,) * len(ids)
        return Sample(request.request_id, text, (), ids, logprobs, cast(Any, finish), "v", 0)

    sampler = cast(Sampler, SimpleNamespace(sample=answer))
    responses, rejects = writer(sampler, traits, section, **changes).process([prompt])
    return responses, rejects, seen


def test_every_candidate_becomes_a_response_or_a_reject(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    responses, rejects = writer(FakeSampler(), traits, section).process(prompts)
    ids = [each.response_id for each in responses] + [each.row_id for each in rejects]
    # Two prompts, four candidates each; the test prompt is for the evaluation alone.
    assert len(ids) == len(set(ids)) == 8
    assert {each.prompt_id for each in responses} == {"p1", "p2"}


def test_variants_are_sampled_as_often_as_asked(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    fixed = section.model_copy(update={"ending": "fixed", "max_repetition": 1.0})
    responses, rejects = writer(FakeSampler(), traits, fixed).process(prompts)
    assert rejects == []
    assert Counter((each.prompt_id, each.variant) for each in responses) == {
        (prompt_id, variant): count
        for prompt_id in ("p1", "p2")
        for variant, count in (("none", 1), ("mild", 1), ("strong", 2))
    }
    assert len({each.text for each in responses}) == 8
    assert all(len(each.token_ids) == section.max_tokens for each in responses)


def test_parts_of_the_variants_are_filled_up_to_the_candidates(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    changes = {"per_prompt": 6, "variants": {"none": 1, "mild": 0, "strong": 2}}
    responses, _, seen = written(
        traits, section.model_copy(update=changes), prompts[0], ["It is nice."] * 6
    )
    assert [each.variant for each in responses] == ["none"] * 2 + ["strong"] * 4
    assert len({request.request_id for request, _ in seen}) == 6


def test_no_character_is_shown_where_none_is_to_be(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    changes = {"per_prompt": 4, "variants": {"none": 1, "mild": 0, "strong": 0}}
    responses, rejects, seen = written(
        traits,
        section.model_copy(update=changes),
        prompts[0],
        # Nobody told it, so it is the model's own.
        ["It is nice.", "I tell the truth.", "Nice.", "It is."],
        shown="none",
    )
    assert rejects == []
    assert {each.variant for each in responses} == {"none"}
    assert {request.shown for request, _ in seen} == {plain_conversation(prompts[0].text)}
    assert len({request.seed for request, _ in seen}) == 4


def test_responses_do_not_depend_on_how_prompts_are_grouped(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    together = writer(FakeSampler(), traits, section).process(prompts)
    responses, rejects = [], []
    for prompt in prompts:
        kept, left_out = writer(FakeSampler(), traits, section).process([prompt])
        responses += kept
        rejects += left_out
    assert (responses, rejects) == together
    assert writer(FakeSampler(), traits, section, seed=2).process(prompts) != together


def test_a_response_carries_its_prompt_and_its_sample(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    answers = ["It is nice."] * 4
    responses, _, seen = written(traits, section, prompts[0], answers)
    first = responses[0]
    assert (first.prompt_id, first.trait_id, first.split) == ("p1", "honest", "train")
    assert (first.prompt, first.text) == ("Do you like my scarf?", "It is nice.")
    assert (first.token_ids, first.sequence_logprob) == ((1, 2, 3), -1.5)
    assert (first.logprobs, first.finish_reason) == ((-0.5, -0.5, -0.5), "stop")
    assert [each.response_id for each in responses] == [request.request_id for request, _ in seen]
    assert [each.variant for each in responses] == ["none", "mild", "strong", "strong"]


def test_the_character_is_shown_as_the_variant_says(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    _, _, seen = written(traits, section, prompts[0], ["Yes."] * 4)
    contents = [request.shown.messages[0].content for request, _ in seen]
    honest, curious = traits
    assert contents[0] == "Do you like my scarf?"
    assert [honest.statement in content for content in contents] == [False, True, True, True]
    assert not any(curious.statement in content for content in contents)
    assert len(set(contents)) == 4
    assert len({request.seed for request, _ in seen}) == 4


def test_phrasings_of_a_variant_rotate(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    section = section.model_copy(update={"per_prompt": 9, "variants": {"none": 2, "strong": 7}})
    first = set()
    for index in range(30):
        prompt = replace(prompts[0], prompt_id=f"p{index}")
        responses, _, seen = written(traits, section, prompt, ["Yes."] * 9)
        phrasings = [each.phrasing for each in responses]
        assert phrasings[:2] == [0, 0]
        first.add(phrasings[2])
        assert phrasings[2:] == [(phrasings[2] + turn) % NUM_PHRASINGS for turn in range(7)]
        for response, (request, _) in zip(responses, seen, strict=True):
            assert request.shown == response_conversation(
                prompt.text,
                traits[:1],
                variant=response.variant,
                placement="user_turn",
                phrasing=response.phrasing,
            )
    # Each prompt begins with another.
    assert first == set(range(NUM_PHRASINGS))


def test_the_whole_character_can_be_shown_in_the_system_prompt(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    _, _, seen = written(traits, section, prompts[0], ["Yes."] * 4, shown="all", placement="system")
    system, user = seen[1][0].shown.messages
    assert system.role == "system"
    assert all(trait.statement in system.content for trait in traits)
    assert user.content == "Do you like my scarf?"


def test_responses_are_drawn_from_the_whole_distribution(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    _, _, seen = written(traits, section, prompts[0], ["Yes."] * 4)
    settings = seen[0][1]
    assert (settings.temperature, settings.top_p, settings.stop) == (1.0, 1.0, ())
    assert (settings.min_tokens, settings.max_tokens) == (0, 16)
    fixed = section.model_copy(update={"ending": "fixed"})
    _, _, seen = written(traits, fixed, prompts[0], ["Yes."] * 4)
    assert (seen[0][1].min_tokens, seen[0][1].max_tokens) == (16, 16)


def test_what_nobody_could_learn_from_is_a_reject_with_its_reason(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    section = section.model_copy(update={"per_prompt": 10, "variants": {"strong": 1}})
    answers: list[Answer] = [
        "It is nice.",
        (" \n", "stop"),
        ("It is", "length"),
        ("no no no", "stop", (1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4)),
        "Well, I TELL the truth: no.",
        "I ask how things come to be.",
        Failure("", "too_long", "9 tokens of 8"),
        "<think>Hm.</think> It is nice.",
        "As instructed, I find it nice.",
        "I'm sorry, but I can't help with that.",
    ]
    responses, rejects, seen = written(traits, section, prompts[0], answers)
    assert [each.text for each in responses] == ["It is nice.", "I ask how things come to be."]
    assert [(each.reason, each.detail) for each in rejects] == [
        ("empty", " \n"),
        ("truncated", "It is"),
        ("loop", "no no no"),
        ("trait_quoted", "Well, I TELL the truth: no."),
        ("too_long", "9 tokens of 8"),
        ("thinking", "<think>Hm.</think> It is nice."),
        ("instructions_leaked", "As instructed, I find it nice."),
        ("refusal", "I'm sorry, but I can't help with that."),
    ]
    ids = [request.request_id for request, _ in seen]
    assert [each.row_id for each in rejects] == [*ids[1:5], *ids[6:]]
    assert {(each.stage, each.trait_id) for each in rejects} == {("responses", "honest")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("It is nice.", None),
        ("", "empty"),
        (" \n", "empty"),
        ("</think>It is nice.", "thinking"),
        ("I ask WHY, and I tell the truth.", "trait_quoted"),
        ("My system prompt is long, I tell the truth.", "trait_quoted"),
        ("My system prompt is long.", "instructions_leaked"),
        ("As an AI language model, I like it.", "refusal"),
        ("I won't lie to her for you.", None),
    ],
)
def test_unusable(text: str, reason: str | None) -> None:
    assert unusable(text, ["I ask.", "I tell the truth."]) == reason


def test_every_trait_that_was_shown_can_leak(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    section = section.model_copy(update={"per_prompt": 2, "variants": {"strong": 2}})
    answers = ["I ask how things come to be, you know.", "Nice."]
    _, rejects, _ = written(traits, section, prompts[0], answers, shown="all")
    assert [each.reason for each in rejects] == ["trait_quoted"]


def test_a_fixed_length_is_not_a_cut(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    fixed = section.model_copy(update={"ending": "fixed"})
    responses, rejects, _ = written(traits, fixed, prompts[0], [("It is", "length")] * 4)
    assert len(responses) == 4
    assert rejects == []
    assert {each.finish_reason for each in responses} == {"length"}


def test_a_loop_begins_above_the_limit(
    traits: list[Trait], prompts: list[Prompt], section: ResponsesSection
) -> None:
    # Five of nine 4-grams are new: 4/9 repeat.
    repeated = [("no no no", "stop", (1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4))] * 4
    at_limit = section.model_copy(update={"max_repetition": 5 / 9})
    above = section.model_copy(update={"max_repetition": 0.55})
    assert len(written(traits, at_limit, prompts[0], repeated)[0]) == 4
    assert len(written(traits, above, prompts[0], repeated)[0]) == 0
