"""prompts: what is asked of the model, what becomes of its answers, and what is asked for again."""

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from charactertrain.config import PromptsSection, RunConfig
from charactertrain.exceptions import SamplingError
from charactertrain.records import (
    NO_TRAIT,
    Brief,
    Draft,
    Facet,
    Prompt,
    PromptCall,
    PromptKind,
    Reject,
    Trait,
    to_table,
)
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.stages.prompts.plan import CallShape, PromptPlan, facets, wanted_by_facet
from charactertrain.stages.prompts.stage import _check_splits, shortfall
from charactertrain.stages.prompts.writer import (
    PromptWriter,
    drafts,
    is_facet,
    message_text,
    proposed_facets,
    topics_of_traits,
    unusable,
)
from charactertrain.storage import open_directory
from charactertrain.templates import KIND_FACETS
from charactertrain.texts import near_duplicates

STATEMENT = "I tell the truth."
GIFT = Facet("honest", "trait", "a gift", "honest/a-gift", "test", "constitution")
SUM = Facet(NO_TRAIT, "general", "a sum", "general/a-sum", "train", "shipped")


@pytest.fixture(name="section")
def prompts_section(smoke_config: RunConfig) -> PromptsSection:
    """Messages of 2 to 30 words out of 40 tokens."""
    changes = {
        "min_words": 2,
        "max_words": 30,
        "max_tokens": 40,
        "temperature": 0.9,
        "top_p": 0.95,
        "max_similarity": 0.7,
    }
    return smoke_config.prompts.model_copy(update=changes)


def writer(
    sampler: Sampler, traits: Sequence[Trait], section: PromptsSection, **changes: Any
) -> PromptWriter:
    options: dict[str, Any] = {
        "traits": {trait.trait_id: trait for trait in traits},
        "section": section,
        "synthesis": "completion",
        "seed": 1,
    }
    return PromptWriter(sampler, **(options | changes))


def sample(request: SampleRequest, text: str, finish_reason: str = "stop") -> Sample:
    return Sample(request.request_id, text, (), (1,), (-1.0,), cast(Any, finish_reason), "v", 0)


Answer = str | tuple[str, str] | Failure
Asked = list[tuple[SampleRequest, SamplingSettings]]


def answering(*answers: Answer) -> tuple[Sampler, Asked]:
    """A sampler that gives these answers in turn, and the requests that it was sent."""
    seen: Asked = []

    def answer(
        requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        seen.extend((request, settings) for request in requests)
        results: list[Sample | Failure] = []
        for request, given in zip(requests, answers, strict=True):
            if isinstance(given, Failure):
                results.append(given)
            elif isinstance(given, tuple):
                results.append(sample(request, *given))
            else:
                results.append(sample(request, given))
        return results

    return cast(Sampler, SimpleNamespace(sample=answer)), seen


def replying(reply: Callable[[SampleRequest], str]) -> Sampler:
    """A sampler whose answer depends on the request alone."""

    def answer(
        requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        return [sample(request, reply(request)) for request in requests]

    return cast(Sampler, SimpleNamespace(sample=answer))


def call(name: str = "c", count: int = 1, facet: Facet = GIFT, language: str = "en") -> PromptCall:
    briefs = tuple(
        Brief(f"{name}{index}", f"persona {index}", f"style {index}", f"length {index}")
        for index in range(count)
    )
    return PromptCall(name, facet, language, briefs)


def calls(count: int) -> list[PromptCall]:
    return [call(f"call{index}-") for index in range(count)]


def tagged(*texts: str) -> str:
    return "\n".join(f"<message>{text}</message>" for text in texts)


def reasons(rejects: Sequence[Reject]) -> list[tuple[str, str]]:
    return [(each.row_id, each.reason) for each in rejects]


def planned_calls(traits: Sequence[Trait], num_messages: int = 1) -> list[PromptCall]:
    """Five messages on each facet of the fixture's traits, of two kinds and in general."""
    topics = {
        trait.trait_id: [(facet, "constitution") for facet in trait.facets or ("x1", "x2", "x3")]
        for trait in traits
    }
    kinds: list[PromptKind] = ["trait", "general"]
    found = facets(topics, kinds, validation_share=0.2, test_share=0.2, seed=1)
    wanted = [5] * len(found)
    shape = CallShape(num_messages, ("en",), num_messages > 1)
    return list(PromptPlan(found, wanted, first=[0] * len(found), shape=shape, seed=1))


def test_every_brief_of_a_completion_becomes_a_draft_or_a_reject(
    traits: list[Trait], section: PromptsSection
) -> None:
    planned = planned_calls(traits)
    kept, rejects = writer(FakeSampler(), traits, section).process(planned)
    assert kept and rejects
    made = [each.prompt_id for each in kept] + [each.row_id for each in rejects]
    assert sorted(made) == sorted(brief.prompt_id for each in planned for brief in each.briefs)
    by_id = {brief.prompt_id: each for each in planned for brief in each.briefs}
    for draft in kept:
        facet = by_id[draft.prompt_id].facet
        assert (draft.trait_id, draft.kind, draft.facet, draft.family, draft.split) == (
            facet.trait_id,
            facet.kind,
            facet.facet,
            facet.family,
            facet.split,
        )
    for reject in rejects:
        assert reject.trait_id == by_id[reject.row_id].facet.trait_id
        assert reject.stage == "prompts"


@pytest.mark.parametrize("synthesis", ["completion", "chat"])
def test_drafts_do_not_depend_on_how_calls_are_grouped(
    traits: list[Trait], section: PromptsSection, synthesis: str
) -> None:
    def reply(request: SampleRequest) -> str:
        # Two calls in three are answered as asked.
        word = ("river", "garden", "table", "winter", "window")[request.seed % 5]
        texts = [f"Is the {word} {how}?" for how in ("old", "new", "green", "quiet", "yours")]
        return tagged(*texts[: 5 if request.seed % 3 else 4])

    sampler = FakeSampler() if synthesis == "completion" else replying(reply)
    planned = planned_calls(traits, 1 if synthesis == "completion" else 5)

    def processed(rows: list[PromptCall], seed: int = 1) -> tuple[list[Draft], list[Reject]]:
        return writer(sampler, traits, section, synthesis=synthesis, seed=seed).process(rows)

    together = processed(planned)
    kept, rejects = [], []
    for each in planned:
        some, left_out = processed([each])
        kept += some
        rejects += left_out
    assert (kept, rejects) == together
    assert kept and rejects
    assert processed(planned, seed=2) != together


def test_a_draft_carries_its_call_its_brief_and_its_keys(
    traits: list[Trait], section: PromptsSection
) -> None:
    sampler, _ = answering(tagged("  Is it so?\nTell me. ", '"Was it so?"'))
    kept, _ = writer(sampler, traits, section, synthesis="chat").process([call(count=2)])
    texts = ["Is it so?\nTell me.", "Was it so?"]
    assert [each.band_keys for each in kept] == near_duplicates.band_keys(texts, threshold=0.7)
    assert kept[1] == Draft(
        prompt_id="c1",
        trait_id="honest",
        family="honest/a-gift",
        kind="trait",
        text="Was it so?",
        split="test",
        facet="a gift",
        persona="persona 1",
        style="style 1",
        length="length 1",
        language="en",
        source="model",
        band_keys=kept[1].band_keys,
    )
    assert kept[0].text == texts[0]


def test_a_completion_that_was_cut_is_a_reject(
    traits: list[Trait], section: PromptsSection
) -> None:
    sampler, _ = answering("Is this a good gift?", ("Is this a good", "length"))
    kept, rejects = writer(sampler, traits, section).process(calls(2))
    assert [each.text for each in kept] == ["Is this a good gift?"]
    assert rejects == [Reject("call1-0", "honest", "prompts", "truncated", "Is this a good")]


@pytest.mark.parametrize("synthesis", ["completion", "chat"])
def test_a_call_that_failed_is_a_reject_for_each_brief(
    traits: list[Trait], section: PromptsSection, synthesis: str
) -> None:
    count = 1 if synthesis == "completion" else 3
    sampler, _ = answering(Failure("c", "prompt_too_long", "9 tokens of 8"))
    kept, rejects = writer(sampler, traits, section, synthesis=synthesis).process(
        [call("c", count)]
    )
    assert kept == []
    assert rejects == [
        Reject(f"c{index}", "honest", "prompts", "prompt_too_long", "9 tokens of 8")
        for index in range(count)
    ]


def test_messages_of_a_call_are_for_its_briefs_in_order(
    traits: list[Trait], section: PromptsSection
) -> None:
    sampler, _ = answering(f"Sure:\n{tagged('Is it so?', 'no', 'What now, friend?')}\nDone.")
    kept, rejects = writer(sampler, traits, section, synthesis="chat").process([call(count=3)])
    assert [(each.prompt_id, each.text) for each in kept] == [
        ("c0", "Is it so?"),
        ("c2", "What now, friend?"),
    ]
    assert rejects == [Reject("c1", "honest", "prompts", "too_short", "no")]


@pytest.mark.parametrize(
    ("count", "finish_reason"), [(0, "stop"), (2, "stop"), (4, "stop"), (4, "length")]
)
def test_another_number_of_messages_than_asked_for_cannot_be_told_apart(
    traits: list[Trait], section: PromptsSection, count: int, finish_reason: str
) -> None:
    text = tagged(*[f"Is it so, friend {index}?" for index in range(count)])
    sampler, _ = answering((text, finish_reason))
    kept, rejects = writer(sampler, traits, section, synthesis="chat").process([call(count=3)])
    assert kept == []
    assert rejects == [
        Reject(f"c{index}", "honest", "prompts", "parse_failure", text[:200]) for index in range(3)
    ]


def test_whole_messages_of_a_call_that_was_cut_are_kept(
    traits: list[Trait], section: PromptsSection
) -> None:
    text = f"{tagged('Is it so?', 'What now, friend?')}\n<message>And is it"
    sampler, _ = answering((text, "length"), (tagged("Is it?", "Was it?"), "length"))
    rows = [call("a", 4), call("b", 2)]
    kept, rejects = writer(sampler, traits, section, synthesis="chat").process(rows)
    assert [(each.prompt_id, each.text) for each in kept] == [
        ("a0", "Is it so?"),
        ("a1", "What now, friend?"),
        ("b0", "Is it?"),
        ("b1", "Was it?"),
    ]
    assert reasons(rejects) == [("a2", "truncated"), ("a3", "truncated")]
    assert all(each.detail == text[-200:] for each in rejects)


def test_the_filters_use_the_section_the_trait_and_the_language(
    traits: list[Trait], section: PromptsSection
) -> None:
    leak = "Say that I tell the truth please."
    answers = [leak, leak, "Ich habe morgen eine Prüfung, was soll ich heute lernen?", "So"]
    rows = [
        call("a"),
        call("b", facet=SUM),
        call("c", language="de"),
        call("d"),
    ]
    kept, rejects = writer(answering(*answers)[0], traits, section).process(rows)
    assert [each.prompt_id for each in kept] == ["b0", "c0"]
    # No trait is at stake in the second.
    assert reasons(rejects) == [("a0", "trait_quoted"), ("d0", "too_short")]
    short = section.model_copy(update={"max_words": 6})
    kept, rejects = writer(answering(*answers)[0], traits, short).process(
        [*rows[:2], call("c"), rows[3]]
    )
    assert [each.reason for each in rejects] == ["too_long", "too_long", "too_long", "too_short"]


def test_general_prompts_are_of_no_trait(traits: list[Trait], section: PromptsSection) -> None:
    sampler, seen = answering(tagged("What is 15 percent of it?", "no"))
    (kept,), (reject,) = writer(sampler, traits, section, synthesis="chat").process(
        [call(count=2, facet=SUM)]
    )
    assert (kept.trait_id, kept.kind, reject.trait_id) == (NO_TRAIT, "general", NO_TRAIT)
    content = seen[0][0].shown.messages[0].content
    assert not any(trait.statement in content for trait in traits)


def test_completion_shows_the_facet_and_not_the_trait(
    traits: list[Trait], section: PromptsSection
) -> None:
    sampler, seen = answering(*["Is it so?"] * 30)
    writer(sampler, traits, section).process(calls(30))
    texts = [request.shown.text for request, _ in seen]
    assert all(not request.shown.messages for request, _ in seen)
    assert all(text.endswith("Topic: a gift\nMessage:") for text in texts)
    assert not any(STATEMENT in text for text in texts)
    # A few orders of the examples, for the cache.
    assert len(set(texts)) == 4
    assert len({request.seed for request, _ in seen}) == 30


def test_chat_asks_for_all_messages_of_a_call_at_once(
    traits: list[Trait], section: PromptsSection
) -> None:
    sampler, seen = answering(*[tagged("Is it so?", "Was it so?")] * 3)
    rows = [call(f"c{index}-", 2) for index in range(3)]
    writer(sampler, traits, section, synthesis="chat").process(rows)
    contents = [request.shown.messages[0].content for request, _ in seen]
    assert all("a gift" in content and STATEMENT in content for content in contents)
    assert all("2. from persona 1; style 1; length 1\n" in content for content in contents)
    assert len({request.seed for request, _ in seen}) == 3


def test_messages_are_sampled_as_the_section_says(
    traits: list[Trait], section: PromptsSection
) -> None:
    for synthesis, stop in (("completion", ("\n",)), ("chat", ())):
        sampler, seen = answering(tagged("Is it so?"))
        writer(sampler, traits, section, synthesis=synthesis).process(calls(1))
        assert seen[0][1] == SamplingSettings(
            temperature=0.9, top_p=0.95, max_tokens=40, min_tokens=0, stop=stop
        )


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("  Is it so?\n", "Is it so?"),
        ('"Is it so?"', "Is it so?"),
        ('"Is it so?', "Is it so?"),
        ('Is it so?"', "Is it so?"),
        ('What does "so" mean?', 'What does "so" mean?'),
        ('She asked: "So?"', 'She asked: "So?"'),
        ('"So?" she asked.', '"So?" she asked.'),
        ("Hello.\n\nIs it so?", "Hello.\n\nIs it so?"),
        ('""', ""),
        (" \n", ""),
        ("", ""),
    ],
)
def test_quotation_marks_around_a_message_are_dropped(written: str, message: str) -> None:
    assert message_text(written) == message


GERMAN = "Ich habe morgen Prüfung, was nun?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Was it right to lie?", None),
        ("Was it", None),
        ("", "empty"),
        ("Was", "too_short"),
        ("one two three four five six seven", "too_long"),
        ("Topic: a gift for her", "not_a_message"),
        ("user : hello there you", "not_a_message"),
        ("As an AI, I like it.", "not_a_message"),
        ("Dear [name], is it so?", "not_a_message"),
        ("<think>Hm.</think> Is it so?", "not_a_message"),
        ("The topic: a gift", None),
        ("12:30 - 14:50 (+49) 8", "not_prose"),
        ("So: I TELL the truth!", "trait_quoted"),
        ("Why do I tell truths?", None),
        (GERMAN, "wrong_language"),
        ("Где моя тетрадь, друг мой?", "wrong_language"),
    ],
)
def test_unusable(text: str, reason: str | None) -> None:
    assert unusable(text, STATEMENT, (2, 6), "en") == reason


def test_unusable_looks_for_the_trait_and_the_language_that_are_given() -> None:
    assert unusable("So: I tell the truth!", None, (2, 6), "en") is None
    assert unusable("So: I tell the truth!", "I ask.", (2, 6), "en") is None
    assert unusable(GERMAN, STATEMENT, (2, 6), "de") is None
    assert unusable("Is it right to tell a lie?", STATEMENT, (2, 7), "de") == "wrong_language"


def test_drafts_are_prompts_with_the_keys_of_their_texts() -> None:
    prompt = Prompt("p", "honest", "honest/x", "trait", "Is it so?", "train", source="file")
    (draft,) = drafts([prompt], threshold=0.7)
    assert Prompt(**{key: value for key, value in vars(draft).items() if key != "band_keys"}) == (
        prompt
    )
    assert draft.band_keys == near_duplicates.band_keys(["Is it so?"], threshold=0.7)[0]
    assert drafts([], threshold=0.7) == []


def situations(*names: str) -> str:
    return "\n".join(f"<situation>{name}</situation>" for name in names)


def test_a_chat_model_names_situations_between_tags(traits: list[Trait]) -> None:
    sampler, seen = answering(
        f"Sure!\n{situations(' a lost key. ', 'a bad poem')}",
        situations("A lost  KEY", "I tell the truth", "poem"),
        Failure("f", "prompt_too_long", ""),
        # Of a text that was cut, what is between tags is whole.
        (f"{situations('a new job')}<situation>an old", "length"),
    )
    honest = traits[0]
    found = proposed_facets(sampler, honest, count=5, synthesis="chat", seed=1)
    assert found == ["a lost key", "a bad poem", "a new job"]
    assert len({request.seed for request, _ in seen}) == 4
    assert len({request.request_id for request, _ in seen}) == 4
    (shown,) = {request.shown for request, _ in seen}
    assert "Name 5 different situations" in shown.messages[0].content
    assert honest.statement in shown.messages[0].content
    assert {settings.stop for _, settings in seen} == {()}


def test_a_completion_lists_situations_on_one_line(traits: list[Trait]) -> None:
    sampler, seen = answering(
        " a lost key; a bad poem.",
        (" a new job; an old frie", "length"),
        "; ;poem; a bad, bad poem",
        " A bad poem",
    )
    found = proposed_facets(sampler, traits[0], count=5, synthesis="completion", seed=1)
    assert found == ["a lost key", "a bad poem", "a new job", "a bad, bad poem"]
    assert {settings.stop for _, settings in seen} == {("\n",)}
    assert all(request.shown.text.endswith(f"{STATEMENT}\nTopics:") for request, _ in seen)


def test_no_more_situations_are_taken_than_asked_for(traits: list[Trait]) -> None:
    answers = ["one lie; two lies; three lies", "four lies", "five lies", "six lies"]
    sampler, _ = answering(*answers)
    found = proposed_facets(sampler, traits[0], count=4, synthesis="completion", seed=1)
    assert found == ["one lie", "two lies", "three lies", "four lies"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a bad poem", True),
        ("a friend's bad poem, and what to say", True),
        ("poem", False),
        ("", False),
        ("? !", False),
        (" ".join(["word"] * 12), True),
        (" ".join(["word"] * 13), False),
        (f"a {'x' * 198}", True),
        (f"a {'x' * 199}", False),
        ("a bad\npoem", False),
        ("that I tell the truth", False),
        ("ein schlechtes Gedicht", True),
    ],
)
def test_is_facet(text: str, expected: bool) -> None:
    assert is_facet(text, STATEMENT) is expected


def test_topics_say_who_named_them(traits: list[Trait]) -> None:
    honest, curious = traits
    # The trait with facets of its own is not asked about.
    sampler, seen = answering("a lost key; A WORRY", "a lost key", "", "")
    topics = topics_of_traits(sampler, traits, count=5, synthesis="completion", seed=1)
    assert topics["honest"] == [(facet, "constitution") for facet in honest.facets]
    assert KIND_FACETS["trait"][:4] == (
        "advice to a friend",
        "a decision at work",
        "a question of right and wrong",
        "a disagreement",
    )
    assert topics["curious"] == [
        ("a lost key", "model"),
        ("A WORRY", "model"),
        ("advice to a friend", "shipped"),
        ("a decision at work", "shipped"),
        ("a question of right and wrong", "shipped"),
    ]
    assert all(curious.statement in request.shown.text for request, _ in seen)


def test_topics_that_the_model_named_are_not_shipped_again(traits: list[Trait]) -> None:
    sampler, _ = answering("A worry; Advice to a friend", "", "", "")
    topics = topics_of_traits(sampler, traits, count=20, synthesis="completion", seed=1)
    names = [facet.lower() for facet, _ in topics["curious"]]
    # All ten shipped ones, of which the model named two.
    assert sorted(names) == sorted(KIND_FACETS["trait"])
    assert Counter(source for _, source in topics["curious"]) == {"model": 2, "shipped": 8}


def test_topics_are_the_models_alone_where_it_named_enough(traits: list[Trait]) -> None:
    sampler, _ = answering(situations("one lie", "two lies", "three lies"), "", "", "")
    topics = topics_of_traits(sampler, traits, count=3, synthesis="chat", seed=1)
    assert [source for _, source in topics["curious"]] == ["model"] * 3


@pytest.mark.parametrize(
    ("wanted", "asked", "kept", "expected"),
    [
        (10, 10, 10, 0),
        (10, 10, 12, 0),
        # Half of what was asked for is kept: twice of what is missing.
        (10, 10, 5, 10),
        (10, 30, 9, 4),
        (10, 12, 9, 2),
        # None is kept, or next to none: five times of what is missing, and no more.
        (10, 10, 0, 50),
        (10, 100, 1, 45),
        # More than was asked for, where the file of prompts has this family too.
        (10, 2, 4, 6),
        (0, 0, 0, 0),
        # Nothing was asked for yet: every message is expected to be kept.
        (7, 0, 0, 7),
    ],
)
def test_shortfall(wanted: int, asked: int, kept: int, expected: int) -> None:
    counts = Counter({("trait", GIFT.family): kept, ("values", GIFT.family): 99})
    assert shortfall([GIFT], [wanted], [asked], counts, Counter()) == [expected]


def test_shortfall_is_counted_by_facet_and_kind() -> None:
    counts = Counter({("trait", GIFT.family): 4, ("general", SUM.family): 1})
    assert shortfall([GIFT, SUM], [4, 4], [8, 2], counts, Counter()) == [0, 6]


def test_what_the_researcher_brought_is_no_yield_of_the_model() -> None:
    key = ("trait", GIFT.family)
    # Two of the four asked for were kept, beside three of the researcher's own.
    assert shortfall([GIFT], [10], [4], Counter({key: 5}), Counter({key: 3})) == [10]
    assert shortfall([GIFT], [10], [0], Counter({key: 3}), Counter({key: 3})) == [7]


def test_too_few_prompts_for_an_interval_are_refused(traits: list[Trait], tmp_path: Any) -> None:
    directory = open_directory(str(tmp_path))
    work = cast(Any, SimpleNamespace(directory=directory))
    fewest = {"train": 1, "validation": 2, "test": 2}
    rows = [
        Prompt(f"{trait.trait_id}{split}{index}", trait.trait_id, "f", "trait", "Hi?", split)  # type: ignore[arg-type]
        for trait in traits
        for split, count in fewest.items()
        for index in range(count)
    ]

    def check(kept: list[Prompt]) -> None:
        # Over two files.
        for name, part in (("a.parquet", kept[:3]), ("b.parquet", kept[3:])):
            directory.write_table(name, to_table(part, Prompt))
        _check_splits(work, ["a.parquet", "b.parquet"], traits)

    check(rows)
    for missing in rows:
        count = fewest[missing.split]
        message = (
            f"trait '{missing.trait_id}': expected {count} {missing.split} prompts or more after "
            f"the filters, found {count - 1}"
        )
        with pytest.raises(SamplingError, match=message):
            check([each for each in rows if each is not missing])


def test_a_run_that_wants_what_its_facets_give_asks_for_no_more(traits: list[Trait]) -> None:
    found = facets(
        {"honest": [(name, "constitution") for name in traits[0].facets]},
        ["trait", "general"],
        validation_share=0.2,
        test_share=0.2,
        seed=1,
    )
    wanted = wanted_by_facet(found, traits[:1], per_trait=20, shares={"trait": 0.5, "general": 0.5})
    counts = Counter(
        {(each.kind, each.family): number for each, number in zip(found, wanted, strict=True)}
    )
    assert shortfall(found, wanted, wanted, counts, Counter()) == [0] * len(found)
    counts["trait", found[0].family] -= 1
    assert shortfall(found, wanted, wanted, counts, Counter())[0] == 2
