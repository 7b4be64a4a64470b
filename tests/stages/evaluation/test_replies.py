"""What the arms of an evaluation are shown, and the replies that are drawn."""

from evaluation_rows import PROMPTS, TRAITS, RefusingSampler

from charactertrain.records import Reply
from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.stages.evaluation.replies import Conversing, Prompted, ReplyWriter, plain
from charactertrain.templates import REFERENCE_VARIANT, response_conversation

SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=12, min_tokens=0, stop=())


def writer(arm: str, sampler: FakeSampler | RefusingSampler, **values: object) -> ReplyWriter:
    settings: dict[str, object] = {"conversing": plain, "count": 3, "seed": 1} | values
    return ReplyWriter(sampler, arm=arm, settings=SETTINGS, **settings)  # type: ignore[arg-type]


def write(
    arm: str, *, count: int = 3, seed: int = 1, conversing: Conversing = plain
) -> list[Reply]:
    made = writer(arm, FakeSampler(), count=count, seed=seed, conversing=conversing)
    replies, rejects = made.process(PROMPTS)
    assert rejects == []
    return replies


def test_reply_writer_writes_as_many_different_replies_per_prompt_as_asked() -> None:
    replies = write("base")
    assert [reply.prompt_id for reply in replies] == ["p1"] * 3 + ["p2"] * 3
    assert [reply.trait_id for reply in replies] == ["warm"] * 3 + ["curious"] * 3
    assert {reply.arm for reply in replies} == {"base"}
    assert len({reply.text for reply in replies}) == 6
    assert len({reply.sample_id for reply in replies}) == 6
    assert all(reply.prompt == PROMPTS[0].text for reply in replies[:3])
    assert all(reply.sequence_logprob < 0 for reply in replies)


def test_reply_writer_shows_no_trait_and_draws_both_arms_with_the_same_seeds() -> None:
    base, policy = write("base"), write("policy")
    # The fake sampler's text is a function of what is shown and of the seed.
    assert [reply.text for reply in base] == [reply.text for reply in policy]
    assert not {reply.sample_id for reply in base} & {reply.sample_id for reply in policy}
    assert [reply.text for reply in write("base", seed=2)] != [reply.text for reply in base]
    # More replies are drawn after those that are there.
    assert write("base", count=4)[:3] == base[:3]


def test_reply_writer_rejects_what_does_not_fit() -> None:
    replies, rejects = writer("base", RefusingSampler(), count=2).process(PROMPTS[:1])
    assert replies == []
    assert [(reject.stage, reject.reason) for reject in rejects] == [("evaluation", "too_long")] * 2
    assert {reject.row_id for reject in rejects} == {
        r.sample_id for r in write("base", count=2)[:2]
    }


def test_prompted_arm_is_shown_the_trait_as_plainly_as_responses_were() -> None:
    prompted = Prompted(TRAITS, "at_stake", "system")
    assert prompted(PROMPTS[0]) == response_conversation(
        "Tea?", [TRAITS["warm"]], variant=REFERENCE_VARIANT, placement="system"
    )
    whole = Prompted(TRAITS, "all", "system")(PROMPTS[0])
    assert all(trait.statement in whole.messages[0].content for trait in TRAITS.values())
    texts = [reply.text for reply in write("prompted", conversing=prompted)]
    assert texts != [reply.text for reply in write("base")]
