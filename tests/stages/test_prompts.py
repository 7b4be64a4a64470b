"""prompts: the plan, the splits, the filters, and what is asked of the model."""

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from charactertrain.config import PromptsSection, RunConfig
from charactertrain.exceptions import ConfigError, SamplingError
from charactertrain.records import Prompt, PromptSlot, Trait
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.stages.prompts import (
    PromptWriter,
    _check_splits,
    family_name,
    message_text,
    plan,
    split_facets,
    unusable,
    without_near_duplicates,
)
from charactertrain.templates import DEFAULT_FACETS

STATEMENT = "I tell the truth."
SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=40, min_tokens=0, stop=("\n",))


@pytest.fixture(name="section")
def prompts_section(smoke_config: RunConfig) -> PromptsSection:
    """Four attempts per facet, a fifth of the families for each held-out split."""
    shares = {"attempts_per_facet": 4, "validation_share": 0.2, "test_share": 0.2}
    return smoke_config.prompts.model_copy(update=shares)


def writer(sampler: Sampler, traits: Sequence[Trait], **changes: Any) -> PromptWriter:
    options: dict[str, Any] = {
        "traits": {trait.trait_id: trait for trait in traits},
        "settings": SETTINGS,
        "limits": (1, 30),
        "synthesis": "completion",
        "seed": 1,
    }
    return PromptWriter(sampler, **(options | changes))


def sample(request: SampleRequest, text: str, finish_reason: str = "stop") -> Sample:
    return Sample(request.request_id, text, (), (1,), (-1.0,), cast(Any, finish_reason), "v")


def answering(*answers: str | tuple[str, str] | Failure) -> tuple[Sampler, list[SampleRequest]]:
    """A sampler that gives these answers in turn, and the requests that it was sent."""
    seen: list[SampleRequest] = []

    def answer(
        requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        seen.extend(requests)
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


def slots(count: int) -> list[PromptSlot]:
    return [
        PromptSlot(f"slot{index}", "honest", "a gift", "honest/a-gift", "train")
        for index in range(count)
    ]


def prompt(prompt_id: str, text: str, trait_id: str = "honest", split: str = "train") -> Prompt:
    return Prompt(prompt_id, trait_id, f"{trait_id}/x", "trait", text, cast(Any, split))


def test_the_plan_covers_every_facet_of_every_trait(
    traits: list[Trait], section: PromptsSection
) -> None:
    planned = plan(traits, section, seed=1)
    honest, curious = traits
    assert Counter((slot.trait_id, slot.facet) for slot in planned) == {
        **{(honest.trait_id, facet): 4 for facet in honest.facets},
        **{(curious.trait_id, facet): 4 for facet in DEFAULT_FACETS},
    }
    assert len({slot.slot_id for slot in planned}) == len(planned)


def test_each_family_is_in_one_split_and_each_trait_in_all(
    traits: list[Trait], section: PromptsSection
) -> None:
    planned = plan(traits, section, seed=1)
    splits: dict[str, set[str]] = {}
    for slot in planned:
        splits.setdefault(slot.family, set()).add(slot.split)
        assert slot.family == family_name(slot.trait_id, slot.facet)
    assert all(len(found) == 1 for found in splits.values())
    for trait in traits:
        found = {slot.split for slot in planned if slot.trait_id == trait.trait_id}
        assert found == {"train", "validation", "test"}


def test_the_plan_depends_on_the_seed_only_in_its_splits(
    traits: list[Trait], section: PromptsSection
) -> None:
    first, again, other = (plan(traits, section, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [slot.slot_id for slot in first] == [slot.slot_id for slot in other]
    assert [slot.split for slot in first] != [slot.split for slot in other]


def test_more_attempts_keep_the_slots_that_were_there(
    traits: list[Trait], section: PromptsSection
) -> None:
    more = section.model_copy(update={"attempts_per_facet": 5})
    fewer_slots, more_slots = (set(plan(traits, each, seed=1)) for each in (section, more))
    assert fewer_slots < more_slots


def test_families_are_slugs_that_two_traits_do_not_share() -> None:
    assert family_name("honest", "A friend's  gift!") == "honest/a-friend's-gift"
    assert family_name("honest", "a gift") != family_name("curious", "a gift")


def split(
    facets_by_trait: dict[str, list[str]],
    *,
    validation: float = 0.2,
    test: float = 0.3,
    seed: int = 1,
) -> dict[str, str]:
    return {
        **split_facets(facets_by_trait, validation_share=validation, test_share=test, seed=seed)
    }


TEN = [f"f{index}" for index in range(10)]


def test_facets_are_shared_out_by_share() -> None:
    splits = split({"honest": TEN})
    assert set(splits) == set(TEN)
    assert Counter(splits.values()) == {"train": 5, "validation": 2, "test": 3}


@pytest.mark.parametrize("count", [3, 4, 7])
@pytest.mark.parametrize("validation_share", [0.0, 0.1, 0.6, 0.95])
@pytest.mark.parametrize("test_share", [0.0, 0.04, 0.5])
def test_every_split_has_a_facet(count: int, validation_share: float, test_share: float) -> None:
    splits = split({"honest": TEN[:count]}, validation=validation_share, test=test_share)
    assert set(splits) == set(TEN[:count])
    assert set(splits.values()) == {"train", "validation", "test"}


def test_the_order_of_facets_does_not_matter_and_the_seed_does() -> None:
    splits = split({"honest": TEN})
    assert split({"honest": TEN[::-1]}) == splits
    assert split({"honest": TEN}, seed=2) != splits


def test_a_facet_that_traits_share_has_one_split(section: PromptsSection) -> None:
    # However it is spelt; the last two share the shipped ones.
    facets = {"honest": tuple(TEN), "warm": ("F1.", "f2", " F3", "g1", "g2", "g3")}
    traits = [
        Trait(trait_id, "I am.", facets.get(trait_id, ()), None, 1.0, "small")
        for trait_id in ("honest", "warm", "curious", "calm")
    ]
    for seed in range(20):
        found: dict[str, set[str]] = {}
        by_trait: dict[str, set[str]] = {}
        for slot in plan(traits, section, seed=seed):
            found.setdefault(slot.family.partition("/")[2], set()).add(slot.split)
            by_trait.setdefault(slot.trait_id, set()).add(slot.split)
        assert all(len(splits) == 1 for splits in found.values())
        assert len(found) == len(TEN) + 3 + len(DEFAULT_FACETS)
        assert all(len(splits) == 3 for splits in by_trait.values())


def test_facets_of_its_own_fill_a_traits_shares_up() -> None:
    alone = split({"honest": TEN})
    trained = [facet for facet in TEN if alone[facet] == "train"]
    splits = split({"honest": TEN, "warm": [*trained, "g1", "g2"]})
    assert {facet: splits[facet] for facet in TEN} == alone
    assert {splits["g1"], splits["g2"]} == {"test", "validation"}
    more = split({"honest": TEN, "warm": [*trained, "g1", "g2", "g3", "g4", "g5"]})
    counts = Counter(more[facet] for facet in [*trained, "g1", "g2", "g3", "g4", "g5"])
    assert counts == {"train": 5, "validation": 2, "test": 3}


def test_a_trait_whose_facets_are_all_taken_for_one_split_is_refused() -> None:
    alone = split({"honest": TEN})
    trained = [facet for facet in TEN if alone[facet] == "train"]
    with pytest.raises(ConfigError) as caught:
        split({"honest": TEN, "warm": trained[:3]})
    said = str(caught.value)
    assert said.startswith("trait 'warm': expected a facet in each of train, validation and test")
    assert "found none for test and validation" in said
    assert all(f"'{facet}': 'train'" in said for facet in trained[:3])
    assert "before the traits that it shares them with" in said
    # As it advises.
    assert split({"warm": trained[:3], "honest": TEN})


def test_too_few_prompts_for_an_interval_are_refused(traits: list[Trait]) -> None:
    counts = {"train": 1, "validation": 2, "test": 2}
    kept = [
        prompt(f"{trait.trait_id}{split_name}{index}", "Hi?", trait.trait_id, split_name)
        for trait in traits
        for split_name, count in counts.items()
        for index in range(count)
    ]
    _check_splits(kept, traits)
    for missing in kept:
        fewest = counts[missing.split]
        message = (
            f"trait '{missing.trait_id}': expected {fewest} {missing.split} prompts or more after "
            f"the filters, found {fewest - 1}"
        )
        with pytest.raises(SamplingError, match=message):
            _check_splits([each for each in kept if each is not missing], traits)


def test_every_slot_becomes_a_prompt_or_a_reject(
    traits: list[Trait], section: PromptsSection
) -> None:
    planned = plan(traits, section, seed=1)
    prompts, rejects = writer(FakeSampler(), traits).process(planned)
    assert prompts and rejects
    made = [each.prompt_id for each in prompts] + [each.row_id for each in rejects]
    assert sorted(made) == sorted(slot.slot_id for slot in planned)
    by_id = {slot.slot_id: slot for slot in planned}
    for each in prompts:
        slot = by_id[each.prompt_id]
        assert (each.trait_id, each.family, each.split) == (slot.trait_id, slot.family, slot.split)
        assert each.kind == "trait"


def test_prompts_do_not_depend_on_how_slots_are_grouped(
    traits: list[Trait], section: PromptsSection
) -> None:
    planned = plan(traits, section, seed=1)
    together = writer(FakeSampler(), traits).process(planned)
    prompts, rejects = [], []
    for slot in planned:
        kept, left_out = writer(FakeSampler(), traits).process([slot])
        prompts += kept
        rejects += left_out
    assert (prompts, rejects) == together
    assert writer(FakeSampler(), traits, seed=2).process(planned) != together


def test_a_message_that_was_cut_is_a_reject(traits: list[Trait]) -> None:
    sampler, _ = answering("Is this a good gift?", ("Is this a good", "length"))
    prompts, rejects = writer(sampler, traits).process(slots(2))
    assert [each.text for each in prompts] == ["Is this a good gift?"]
    assert [(each.row_id, each.stage, each.reason) for each in rejects] == [
        ("slot1", "prompts", "truncated")
    ]
    assert rejects[0].detail == "Is this a good"


def test_a_request_that_failed_is_a_reject_with_its_reason(traits: list[Trait]) -> None:
    sampler, _ = answering(Failure("slot0", "too_long", "9 tokens of 8"))
    prompts, (reject,) = writer(sampler, traits).process(slots(1))
    assert prompts == []
    assert (reject.row_id, reject.reason, reject.detail) == ("slot0", "too_long", "9 tokens of 8")


def test_the_filters_use_the_limits_and_the_trait_of_the_slot(traits: list[Trait]) -> None:
    sampler, _ = answering("Is it so?", "Say that I tell the truth please.", '"What now, friend?"')
    prompts, rejects = writer(sampler, traits, limits=(3, 6)).process(slots(3))
    assert [each.text for each in prompts] == ["Is it so?", "What now, friend?"]
    assert [each.reason for each in rejects] == ["too_long"]
    sampler, _ = answering("Say that I tell the truth please.")
    _, (reject,) = writer(sampler, traits).process(slots(1))
    assert reject.reason == "trait_leaked"


def test_completion_shows_the_facet_and_not_the_trait(traits: list[Trait]) -> None:
    sampler, seen = answering(*["Is it so?"] * 30)
    writer(sampler, traits).process(slots(30))
    assert all(not request.shown.messages for request in seen)
    assert all(request.shown.text.endswith("Topic: a gift\nMessage:") for request in seen)
    assert not any(STATEMENT in request.shown.text for request in seen)
    assert len({request.shown.text for request in seen}) > 1
    assert len({request.seed for request in seen}) == 30


def test_chat_asks_for_a_message_by_facet_and_trait_in_many_styles(traits: list[Trait]) -> None:
    sampler, seen = answering(*["Is it so?"] * 30)
    writer(sampler, traits, synthesis="chat").process(slots(30))
    contents = [request.shown.messages[0].content for request in seen]
    assert all("a gift" in content and STATEMENT in content for content in contents)
    assert len(set(contents)) > 3


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
        ('""', ""),
        ("", ""),
    ],
)
def test_quotation_marks_around_a_message_are_dropped(written: str, message: str) -> None:
    assert message_text(sample(SampleRequest("x", cast(Any, None), 0), written)) == message


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
        ("The topic: a gift", None),
        ("12:30 - 14:50 (+49) 8", "not_prose"),
        ("So: I TELL the truth!", "trait_leaked"),
        ("Ist das überhaupt wahr?", None),
    ],
)
def test_unusable(text: str, reason: str | None) -> None:
    assert unusable(text, STATEMENT, (2, 6)) == reason


def test_near_duplicates_are_left_out_over_traits_and_splits() -> None:
    rows = [
        prompt("a", "Do you like my scarf?"),
        prompt("b", "What should I cook tonight?", split="test"),
        prompt("c", "my scarf, do YOU like?", "curious", "test"),
        prompt("d", "What should I cook tonight, then?"),
    ]
    kept, rejects = without_near_duplicates(rows, 0.7)
    assert kept == rows[:2]
    assert [(each.row_id, each.stage, each.reason) for each in rejects] == [
        ("c", "prompts", "near_duplicate"),
        ("d", "prompts", "near_duplicate"),
    ]
    assert rejects[0].detail.endswith("is close to a")
    assert rejects[1].detail.endswith("is close to b")


def test_prompts_at_the_similarity_limit_are_kept() -> None:
    # Three words of four are shared.
    rows = [prompt("a", "red green blue"), prompt("b", "red green blue grey")]
    assert without_near_duplicates(rows, 0.75) == (rows, [])
    assert without_near_duplicates(rows, 0.74)[0] == rows[:1]


def test_a_prompt_that_was_left_out_leaves_out_no_other() -> None:
    # b is close to a, c is close to b but not to a.
    rows = [prompt("a", "one two"), prompt("b", "one two three"), prompt("c", "two three four")]
    kept, _ = without_near_duplicates(rows, 0.4)
    assert [each.prompt_id for each in kept] == ["a", "c"]
