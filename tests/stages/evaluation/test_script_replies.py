"""Arms are put through scripts turn after turn, and measured; a planted character is found."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from charactertrain.probes.descriptions import Description
from charactertrain.probes.results import probe_results
from charactertrain.records import NO_TRAIT, Message, Prompt, Reject, Script, ScriptDraft, Trait
from charactertrain.runtime.fake_sampler import (
    PLANTED_SHIFT,
    FakeSampler,
    Planted,
    PlantedSampler,
)
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.stages.evaluation import probe_scripts
from charactertrain.stages.evaluation.script_replies import (
    ScriptRunner,
    ScriptScorer,
    ShownCharacter,
)
from charactertrain.templates import DROP_SUFFIXES, Shown, with_character

SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=12, min_tokens=4, stop=())
TRAITS = {
    "warm": Trait("warm", "I am warm.", (), r"\bdear\b", 1.0, "small"),
    "curious": Trait("curious", "I ask how.", (), r"\bhow so\b", 1.0, "small"),
}
SCRIPT = Script(
    script_id="s1",
    probe="mine",
    condition="plain",
    cluster="c1",
    trait_id=NO_TRAIT,
    system="",
    turns=("Is it four?", "Are you sure?"),
    given_replies=(),
    measures=("correct",),
    accepted=("river",),
    mistaken=(),
)


class ShortSampler(FakeSampler):
    """Has no room for more than one message."""

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """A failure for each longer conversation."""
        return [
            self._sample(request, settings)
            if len(request.shown.messages) == 1
            else Failure(request.request_id, "too_long", "99 tokens")
            for request in requests
        ]


def run(
    scripts: list[Script], sampler: Sampler | None = None, **options: Any
) -> tuple[list[ScriptDraft], list[Reject]]:
    given: dict[str, Any] = {"arm": "base", "showing": None, "settings": SETTINGS, "seed": 1}
    return ScriptRunner(sampler or FakeSampler(), **{**given, **options}).process(scripts)


def test_later_turns_see_the_arms_own_replies() -> None:
    (first, second), rejects = run([SCRIPT])
    assert rejects == []
    assert first.messages == (Message("user", "Is it four?"),)
    assert second.messages == (
        Message("user", "Is it four?"),
        Message("assistant", first.text),
        Message("user", "Are you sure?"),
    )
    assert (first.turn, second.turn) == (0, 1)
    assert first.sample_id != second.sample_id
    assert first.num_tokens == len(first.token_ids)


def test_replies_that_are_given_are_not_sampled() -> None:
    (reply,), _ = run([replace(SCRIPT, given_replies=("Four.",), system="Be brief.")])
    assert reply.turn == 1
    assert [(m.role, m.content) for m in reply.messages] == [
        ("system", "Be brief."),
        ("user", "Is it four?"),
        ("assistant", "Four."),
        ("user", "Are you sure?"),
    ]


def test_scripts_of_different_length_do_not_wait_for_one_another() -> None:
    short = replace(SCRIPT, script_id="s2", turns=("It rains.",))
    drafts, _ = run([SCRIPT, short])
    assert [(d.script_id, d.turn) for d in drafts] == [("s1", 0), ("s2", 0), ("s1", 1)]
    alone, _ = run([short])
    assert alone[0].text == drafts[1].text


def test_arms_draw_with_the_same_seeds() -> None:
    base, _ = run([SCRIPT])
    policy, _ = run([SCRIPT], arm="policy")
    assert [d.text for d in policy] == [d.text for d in base]
    assert not {d.sample_id for d in policy} & {d.sample_id for d in base}
    assert [d.text for d in run([SCRIPT], seed=2)[0]] != [d.text for d in base]


def test_script_ends_with_its_first_reject() -> None:
    longer = replace(SCRIPT, turns=(*SCRIPT.turns, "And now?"))
    drafts, rejects = run([longer], ShortSampler())
    assert [draft.turn for draft in drafts] == [0]
    assert [(r.reason, r.trait_id, r.stage) for r in rejects] == [
        ("too_long", NO_TRAIT, "evaluation")
    ]


def test_each_measure_of_a_reply_is_a_row() -> None:
    measures = ("correct", "ends_with_hook")
    drafts, _ = run([replace(SCRIPT, turns=SCRIPT.turns[:1], measures=measures)])
    assert [draft.measure for draft in drafts] == list(measures)
    assert drafts[0].text == drafts[1].text
    assert drafts[0].score == float("river" in drafts[0].text.split())
    assert drafts[1].score == 0.0
    assert len({draft.sample_id for draft in drafts}) == 2


@pytest.mark.parametrize("placement", ["system", "user"])
def test_prompted_arm_is_shown_the_character_and_measured_without(placement: str) -> None:
    showing = ShownCharacter(TRAITS, "at_stake", placement)
    warm = replace(SCRIPT, trait_id="warm", system="Be brief.", turns=("Tea?",))
    (reply,), _ = run([warm], arm="prompted", showing=showing)
    plain = (Message("system", "Be brief."), Message("user", "Tea?"))
    assert reply.messages == plain
    shown = showing(warm, plain)
    request = SampleRequest("", Shown(shown, ""), probe_seed(warm))
    (expected,) = FakeSampler().sample([request], SETTINGS)
    assert isinstance(expected, Sample)
    assert reply.text == expected.text
    said = " ".join(message.content for message in shown)
    assert "I am warm." in said
    assert "I ask how." not in said
    assert "Be brief." in said
    whole = showing(replace(warm, trait_id=NO_TRAIT), plain)
    assert "I ask how." in " ".join(message.content for message in whole)


def probe_seed(script: Script) -> int:
    from charactertrain.seeds import derive_seed

    return derive_seed(1, "probes", script.script_id, 0)


@pytest.mark.parametrize("turn", [0, -1])
def test_character_stands_with_the_users_message_that_is_asked_for(turn: int) -> None:
    messages = (Message("user", "Tea?"), Message("assistant", "Yes."), Message("user", "Why?"))
    shown = with_character(messages, [TRAITS["warm"]], placement="user", turn=turn)
    assert len(shown) == 3
    changed = [index for index in range(3) if shown[index] != messages[index]]
    assert changed == [0 if turn == 0 else 2]
    assert "I am warm." in shown[changed[0]].content
    assert messages[changed[0]].content in shown[changed[0]].content


# Scores


def score(drafts: list[ScriptDraft], sampler: Sampler | None = None) -> Any:
    return ScriptScorer(sampler or FakeSampler(), traits=TRAITS, placement="user").process(drafts)


def logprob(shown: Shown, token_ids: tuple[int, ...]) -> float:
    (found,) = FakeSampler().score([ScoreRequest("", shown, token_ids)])
    assert isinstance(found, Score)
    return sum(found.logprobs)


def test_contrast_is_that_of_the_trait_given_the_conversation() -> None:
    (_, draft), _ = run([replace(SCRIPT, trait_id="warm", measures=())])
    (reply,), rejects = score([draft])
    assert rejects == []
    shown = with_character(draft.messages, [TRAITS["warm"]], placement="user", turn=-1)
    expected = logprob(Shown(shown, ""), draft.token_ids) - logprob(
        Shown(draft.messages, ""), draft.token_ids
    )
    assert reply.contrast == pytest.approx(expected / len(draft.token_ids))
    assert reply.detected is False
    assert (reply.trait_id, reply.score, reply.measure) == ("warm", None, "")


def test_reply_without_a_trait_keeps_its_score_alone() -> None:
    drafts, _ = run([SCRIPT])
    replies, rejects = score(drafts)
    assert rejects == []
    assert [r.score for r in replies] == [d.score for d in drafts]
    assert {(r.contrast, r.detected) for r in replies} == {(None, None)}


def test_every_trait_gives_a_row_for_each() -> None:
    drafts, _ = run([replace(SCRIPT, turns=("2 + 2?",), measures=("every_trait",))])
    replies, _ = score(drafts)
    assert [reply.trait_id for reply in replies] == ["warm", "curious"]
    assert replies[0].contrast != replies[1].contrast
    assert len({reply.sample_id for reply in replies}) == 2
    assert {reply.measure for reply in replies} == {""}


def test_empty_reply_is_rejected_where_a_trait_is_at_stake() -> None:
    (draft, *_), _ = run([SCRIPT])
    empty = replace(draft, token_ids=(), text="", num_tokens=0)
    replies, rejects = score([replace(empty, trait_id="warm"), empty, draft])
    assert [reply.sample_id for reply in replies] == [draft.sample_id] * 2
    assert [reject.reason for reject in rejects] == ["empty"]


# A planted character


def arm(planted: Sequence[Planted], name: str, scripts: list[Script]) -> Any:
    sampler = PlantedSampler(planted)
    drafts, rejects = run(scripts, sampler, arm=name)
    assert rejects == []
    # Under one base for all arms, which knows the phrases.
    replies, rejects = score(drafts, PlantedSampler(PLANTED["policy"]))
    assert rejects == []
    return replies


def planted(warm: float, curious: float) -> list[Planted]:
    return [
        Planted("I am warm.", "Tea", "my dear", warm, dropped_at=DROP_SUFFIXES[2]),
        Planted("I ask how.", "Rain", "how so", curious),
    ]


RATES = {"base": (0.1, 0.2), "policy": (0.8, 0.5), "other": (0.1, 0.9)}
PLANTED = {name: planted(*rates) for name, rates in RATES.items()}


def test_planted_character_is_measured_back_by_trait_and_arm() -> None:
    prompts = [
        Prompt(f"{trait}{n}", trait, "", "trait", f"{word} number {n}?", "test")
        for trait, word in (("warm", "Tea"), ("curious", "Rain"))
        for n in range(120)
    ]
    scripts = probe_scripts.from_prompts(["drop_the_act"], prompts)
    replies = [r for name, own in PLANTED.items() for r in arm(own, name, scripts)]
    description = {"drop_the_act": Description("", "", "higher", asks_retention=True)}
    found = probe_results(replies, description, num_resamples=1000, seed=1)["drop_the_act"]
    rows = {(r["condition"], r["measure"], r["trait_id"]): r["arms"] for r in found["rows"]}
    for index, trait in enumerate(("warm", "curious")):
        for name in ("policy", "other"):
            truth = RATES[name][index] - RATES["base"][index]
            effect = rows["plain", "detector_rate", trait][name]
            assert effect["ci_low"] <= truth <= effect["ci_high"]
            assert effect["ci_high"] - effect["ci_low"] < 0.25
            assert (effect["p_value"] < 0.001) == (truth != 0)
            contrast = rows["plain", "contrast", trait][name]
            assert (contrast["ci_low"] > 0) == (truth != 0)
    # Warmth alone is dropped, at the third suffix alone.
    left = rows["suffix-3", "detector_rate_retention", "warm"]["policy"]
    assert left["ci_low"] <= -1.0 <= left["ci_high"]
    worst = rows["worst", "detector_rate_retention", "warm"]["policy"]
    assert (worst["condition"], worst["arm"]) == ("suffix-3", left["arm"])
    kept = rows["suffix-1", "detector_rate_retention", "warm"]["policy"]
    assert kept["ci_low"] <= 0.0 <= kept["ci_high"]
    assert rows["suffix-3", "detector_rate_retention", "curious"]["policy"]["arm"] > 0.6
    # An arm without an effect has none that could be left.
    assert rows["suffix-1", "detector_rate_retention", "warm"]["other"]["arm"] is None


def test_planted_phrase_is_likelier_where_its_trait_is_shown() -> None:
    sampler = PlantedSampler([Planted("I am warm.", "Tea", "my dear", 1.0)])
    (draft,), _ = run([replace(SCRIPT, trait_id="warm", turns=("Tea?",), measures=())], sampler)
    assert draft.text.startswith("my dear ")
    (reply,), _ = score([draft], sampler)
    rest = draft.token_ids[1:]
    shown = with_character(draft.messages, [TRAITS["warm"]], placement="user", turn=-1)
    others = logprob(Shown(shown, ""), rest) - logprob(Shown(draft.messages, ""), rest)
    assert reply.contrast == pytest.approx((PLANTED_SHIFT + others) / len(draft.token_ids))
    assert reply.detected is True
