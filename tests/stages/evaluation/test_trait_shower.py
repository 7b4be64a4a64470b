"""Replies of the base with each trait shown, whichever a prompt is about."""

from evaluation_rows import PROMPTS, TRAITS, RefusingSampler

from charactertrain.evaluation.shown_traits import shown_arm
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.stages.evaluation.replies import Prompted, ReplyWriter
from charactertrain.stages.evaluation.trait_shower import TraitShower

SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=12, min_tokens=0, stop=())


def shower(sampler: FakeSampler | RefusingSampler) -> TraitShower:
    return TraitShower(
        sampler, traits=list(TRAITS.values()), placement="system", settings=SETTINGS, seed=1
    )


def test_every_prompt_is_answered_once_with_every_trait() -> None:
    replies, rejects = shower(FakeSampler()).process(PROMPTS)
    assert rejects == []
    assert [(reply.arm, reply.prompt_id, reply.trait_id) for reply in replies] == [
        (shown_arm(shown), prompt.prompt_id, prompt.trait_id)
        for shown in TRAITS
        for prompt in PROMPTS
    ]
    assert len({reply.sample_id for reply in replies}) == len(replies)
    assert len({reply.text for reply in replies}) == len(replies)


def test_the_trait_at_stake_is_shown_as_to_the_prompted_base_and_drawn_with_its_seed() -> None:
    replies, _ = shower(FakeSampler()).process(PROMPTS)
    prompted = ReplyWriter(
        FakeSampler(),
        arm="prompted",
        conversing=Prompted(TRAITS, "at_stake", "system"),
        count=2,
        settings=SETTINGS,
        seed=1,
    )
    first = {reply.prompt_id: reply.text for reply in prompted.process(PROMPTS)[0][::2]}
    own = [reply for reply in replies if reply.arm == shown_arm(reply.trait_id)]
    assert {reply.prompt_id: reply.text for reply in own} == first


def test_what_does_not_fit_is_a_reject_of_each_trait() -> None:
    replies, rejects = shower(RefusingSampler()).process(PROMPTS)
    assert replies == []
    assert [reject.reason for reject in rejects] == ["too_long"] * len(PROMPTS) * len(TRAITS)
    assert len({reject.row_id for reject in rejects}) == len(rejects)
