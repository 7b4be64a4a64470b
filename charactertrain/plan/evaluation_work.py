"""The evaluation: replies of every arm, and what reads them."""

from collections.abc import Sequence

from charactertrain.config import RunConfig
from charactertrain.plan.lengths import Length, Lengths, mean_length
from charactertrain.plan.training_work import num_gold
from charactertrain.plan.work import Job, StageWork, reading, scoring
from charactertrain.probes.measures import EVERY_TRAIT
from charactertrain.records import NO_TRAIT, Message, Script
from charactertrain.stages.counts import Counts
from charactertrain.stages.evaluation.arms import OWN_ARMS
from charactertrain.stages.evaluation.size import probe_scripts_at_most, replies_at_most
from charactertrain.templates import (
    REFERENCE_VARIANT,
    Shown,
    judge_conversation,
    taken_up_conversation,
    told_conversation,
)


def evaluation(config: RunConfig, counts: Counts, lengths: Lengths) -> StageWork:
    """All passes, in their order."""
    section = config.evaluation
    num_arms = len(OWN_ARMS) + len(section.compare)
    num_general = round(counts.general * config.prompts.test_share)
    replies = replies_at_most(
        config,
        [trait.trait_id for trait in lengths.traits],
        num_tested=counts.tested,
        num_general=num_general,
    )
    jobs = _replies(config, counts, lengths, num_arms)
    jobs += _shown_in_turn(config, lengths, replies.get("with each trait shown", 0))
    jobs += _judgements(config, counts, lengths, num_arms - 1)
    scripts = probe_scripts_at_most(
        section.probes,
        [trait.trait_id for trait in lengths.traits],
        num_tested=counts.tested,
        num_general=num_general,
        text=lengths.text(lengths.message),
    )
    jobs += _probes(config, lengths, scripts, num_arms)
    jobs += _choices(config, lengths, replies.get("to free choices", 0))
    return StageWork(tuple(job for job in jobs if job.requests > 0))


def _replies(config: RunConfig, counts: Counts, lengths: Lengths, num_arms: int) -> list[Job]:
    """Replies to held-out prompts, their contrast and their rewards; and natural lengths."""
    section = config.evaluation
    each, longest = section.responses_per_prompt, section.max_tokens
    reply = lengths.reply(longest)
    of_arm = counts.tested * each
    plain = _repeated(lengths.plain(), lengths.message, each)
    # Also in the neutral control, by the trait at stake.
    shown = _repeated(_prompted(config, lengths), lengths.message, each)
    with_trait = lengths.at_stake(REFERENCE_VARIANT)
    natural = min(section.length_prompts, counts.tested)
    total = num_arms * of_arm
    jobs = [
        Job("replies", (num_arms - 1) * of_arm, plain, reply, longest),
        Job("replies with the character", of_arm, shown, reply, longest),
        Job(
            "natural lengths",
            (num_arms - 1) * natural,
            lengths.plain(),
            lengths.reply(section.length_max_tokens),
            section.length_max_tokens,
        ),
        scoring("contrast, with the trait", total, _and_reply(with_trait, reply)),
        scoring("contrast, plain", total, _and_reply(lengths.plain(), reply)),
    ]
    rewards = total * (1 + num_gold(config))
    return [*jobs, reading("rewards", rewards, _and_reply(lengths.plain(), reply), "reward")]


def _shown_in_turn(config: RunConfig, lengths: Lengths, num_replies: int) -> list[Job]:
    """The base's replies with each trait shown, of which the attribution is made, and their scores.

    The trait that is shown need not be the one at stake, by which a reply is scored.
    """
    longest = config.evaluation.max_tokens
    reply, shown = lengths.reply(longest), lengths.at_stake(REFERENCE_VARIANT)
    title, rewards = "with each trait shown", num_replies * (1 + num_gold(config))
    plain = _and_reply(lengths.plain(), reply)
    return [
        Job(f"replies {title}", num_replies, shown, reply, longest),
        scoring(f"contrast {title}, with the trait", num_replies, _and_reply(shown, reply)),
        scoring(f"contrast {title}, plain", num_replies, plain),
        reading(f"rewards {title}", rewards, plain, "reward"),
    ]


def _prompted(config: RunConfig, lengths: Lengths) -> Length:
    if config.model.traits_shown == "none":
        return lengths.at_stake(REFERENCE_VARIANT)
    return lengths.character(REFERENCE_VARIANT)


def _repeated(length: Length, message: float, times: int) -> Length:
    """`length` where so many requests in turn have the same message."""
    return Length(length.shown, length.common + message * (1 - 1 / times))


def _and_reply(length: Length, reply: float) -> Length:
    return Length(length.shown + reply, length.common)


def _judgements(config: RunConfig, counts: Counts, lengths: Lengths, num_others: int) -> list[Job]:
    """Each other arm's first reply against the base's, in both orders."""
    judge = config.evaluation.judge
    if judge.endpoint is not None:
        return []
    per_trait = min(judge.prompts_per_trait, counts.tested / counts.traits)
    asked = {
        "judgements": (per_trait * counts.traits, lengths.traits[:1]),
        "judgements as answers": (min(judge.quality_prompts, counts.tested), ()),
    }
    text = lengths.text(lengths.reply(config.evaluation.max_tokens))
    message = lengths.text(lengths.message)
    jobs = []
    for name, (prompts, traits) in asked.items():
        shown = judge_conversation(traits, message, text, text, ties=judge.ties, question=0)
        length = Length(lengths.of(shown), 0.0)
        jobs.append(reading(name, 2 * num_others * prompts, length))
    return jobs


def _probes(
    config: RunConfig, lengths: Lengths, scripts: Sequence[Script], num_arms: int
) -> list[Job]:
    """Every reply of every arm to every script, and the contrast where a trait is at stake."""
    longest = config.evaluation.probes.max_tokens
    reply = lengths.reply(longest)
    asked = [length for script in scripts for length in _turns(script, lengths, reply)]
    if not asked:
        return []
    plain = mean_length(asked)
    extra = _prompted(config, lengths)
    shown = Length(plain.shown + extra.common, plain.common + extra.common)
    number = len(asked)
    # A draft of each measure is scored: without the traits that are at stake, and with each.
    scored = sum(
        (len(script.turns) - len(script.given_replies)) * _readings(script, len(lengths.traits))
        for script in scripts
    )
    return [
        Job("probes", (num_arms - 1) * number, plain, reply, longest),
        Job("probes with the character", number, shown, reply, longest),
        scoring("contrast of probes", num_arms * scored, _and_reply(plain, reply)),
    ]


def _readings(script: Script, num_traits: int) -> int:
    """Scores of one reply to the script."""
    measures = script.measures or ("",)
    of_all = (1 + num_traits) * sum(measure == EVERY_TRAIT for measure in measures)
    others = sum(measure != EVERY_TRAIT for measure in measures)
    return of_all + (2 * others if script.trait_id != NO_TRAIT else 0)


def _turns(script: Script, lengths: Lengths, reply: float) -> list[Length]:
    """What is shown for each turn that a model replies to; a cache holds the turns before."""
    shown = lengths.of(Shown((Message("system", script.system),), "")) if script.system else 0.0
    found = []
    for number, turn in enumerate(script.turns):
        before = shown
        shown += lengths.of(Shown((Message("user", turn),), ""))
        if number < len(script.given_replies):
            shown += lengths.of(Shown((Message("assistant", script.given_replies[number]),), ""))
        else:
            found.append(Length(shown, before if number else 0.0))
            shown += reply
    return found


def _choices(config: RunConfig, lengths: Lengths, num_replies: int) -> list[Job]:
    """Offers of two traits, and two readings of each reply: by likelihood, or by a judge."""
    section = config.evaluation.preferences
    reply = lengths.reply(section.max_tokens)
    message, placement = lengths.text(lengths.message), config.model.trait_placement
    told = lengths.of(told_conversation(message, "thoughtful", placement=placement))
    offered = Job("free choices", num_replies, Length(told, 0.0), reply, section.max_tokens)
    if not section.judged:
        read = Length(told + reply, 0.0)
        return [offered, scoring("readings of free choices", 2 * num_replies, read)]
    if config.evaluation.judge.endpoint is None:
        judged = taken_up_conversation(message, lengths.text(reply), "thoughtful", "witty")
        read = Length(lengths.of(judged), 0.0)
        return [offered, reading("readings of free choices", 2 * num_replies, read)]
    return [offered]
