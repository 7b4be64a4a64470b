"""The data stages: prompts, responses and rankings as requests to engines."""

from collections.abc import Sequence

from charactertrain.config import RunConfig
from charactertrain.plan.lengths import Length, Lengths
from charactertrain.plan.work import Job, StageWork, reading, scoring
from charactertrain.records import Brief, Facet, PromptCall, Trait
from charactertrain.stages.counts import Counts
from charactertrain.stages.rankings.ranker_choice import considered
from charactertrain.templates import (
    LENGTHS,
    PERSONAS,
    REFERENCE_VARIANT,
    STYLES,
    judge_conversation,
    listwise_conversation,
    rating_conversation,
    synthesis_chat,
    synthesis_completion,
)

_NUM_WORKED = 5
"""Worked messages before one that a small model completes."""
_TAG_TOKENS = 6.0
"""Around each message that a chat model writes."""
_FIRST_JUDGE = "judge"
"""What `auto` is counted as: of the rankers that it may take, the one that reads most."""


def prompts(config: RunConfig, counts: Counts, lengths: Lengths) -> StageWork:
    """The template check, and messages, as many as the filters are expected to want."""
    per_call = config.model.messages_per_call
    asked = (counts.wanted + counts.general) / lengths.section.accepted_share
    shown, own = _synthesis(config, lengths)
    tags = _TAG_TOKENS if config.model.prompt_synthesis == "chat" else 0.0
    messages = Job(
        "messages",
        asked / per_call,
        Length(shown, shown - own),
        per_call * (lengths.message + tags),
        config.prompts.max_tokens,
    )
    if config.model.traits_shown == "none":
        return StageWork((messages,))
    probes = counts.traits * config.prompts.check_prompts
    reply = lengths.reply(config.responses.max_tokens, is_fixed=config.responses.ending == "fixed")
    longest = config.responses.max_tokens
    plain, shown_trait = lengths.plain(), lengths.at_stake(REFERENCE_VARIANT)
    return StageWork(
        (
            messages,
            Job("template check, plain", probes, plain, reply, longest),
            Job("template check, with the trait", probes, shown_trait, reply, longest),
            scoring("its contrast, plain", 2 * probes, _followed(plain, reply)),
            scoring("its contrast, with the trait", 2 * probes, _followed(shown_trait, reply)),
        )
    )


def _followed(length: Length, reply: float) -> Length:
    return Length(length.shown + reply, length.common)


def _synthesis(config: RunConfig, lengths: Lengths) -> tuple[float, float]:
    """Tokens of a call for messages, and of them those that are its own."""
    trait = lengths.traits[0]
    facet = "a disagreement at work"
    if config.model.prompt_synthesis == "completion":
        shown = synthesis_completion("trait", facet, range(_NUM_WORKED))
        return lengths.of(shown), len(facet) / lengths.section.characters_per_token
    brief = Brief("", PERSONAS[0], STYLES[0], LENGTHS[0])
    call = PromptCall(
        "",
        Facet(trait.trait_id, "trait", facet, "", "train", "model"),
        config.prompts.languages[0],
        (brief,) * config.model.messages_per_call,
    )
    text = synthesis_chat(call, trait)
    before = text.messages[0].content.partition("The situation:")[0]
    shown_tokens = lengths.of(text)
    return shown_tokens, shown_tokens - len(before) / lengths.section.characters_per_token


def responses(config: RunConfig, counts: Counts, lengths: Lengths) -> StageWork:
    """The candidates of every prompt that is not held out, by variant."""
    section = config.responses
    reply = lengths.reply(section.max_tokens, is_fixed=section.ending == "fixed")
    return StageWork(
        tuple(
            Job(
                f"responses, {variant}",
                counts.answered * number,
                lengths.character(variant),
                reply,
                section.max_tokens,
            )
            for variant, number in section.num_by_variant.items()
            if number
        )
    )


def rankings(config: RunConfig, counts: Counts, lengths: Lengths) -> StageWork:
    """The ranker on all prompts, the second opinions on some, and the check of rankers."""
    section = config.rankings
    asked = [(name, counts.answered, counts.candidates) for name in _ranking(config)]
    some = min(section.second_opinion_prompts, counts.answered)
    asked += [
        (name, some, counts.candidates)
        for name in section.second_opinions
        if name not in _ranking(config)
    ]
    if config.model.traits_shown != "none":
        known = counts.traits * config.prompts.check_prompts
        checked = [name for name in considered(section) if name not in ("contrast", "ensemble")]
        asked += [(name, known, 2) for name in checked]
    jobs = []
    for name, num_prompts, candidates in asked:
        if name != "contrast" and section.endpoint is not None:
            continue
        jobs += _ranker_jobs(name, config, lengths, num_prompts, candidates)
    return StageWork(tuple(jobs))


def _ranking(config: RunConfig) -> tuple[str, ...]:
    """The rankers that are asked about every prompt."""
    section = config.rankings
    if section.ranker == "ensemble":
        return section.ensemble
    return (_FIRST_JUDGE,) if section.ranker == "auto" else (section.ranker,)


def _ranker_jobs(
    name: str, config: RunConfig, lengths: Lengths, num_prompts: int, candidates: int
) -> list[Job]:
    """Of what questions about one prompt share, the first computes it, and no other does."""
    reply = lengths.reply(config.responses.max_tokens, is_fixed=config.responses.ending == "fixed")
    if name == "contrast":
        return [
            scoring(
                f"contrast, {how}",
                num_prompts * candidates,
                _shared(_followed(length, reply), lengths.message, candidates),
            )
            for how, length in (
                ("with the trait", lengths.character(REFERENCE_VARIANT)),
                ("plain", lengths.plain()),
            )
        ]
    questions, shown, shared = _questions(name, config, lengths, reply, candidates)
    return [reading(name, num_prompts * questions, Length(shown, shared))]


def _shared(length: Length, message: float, times: int) -> Length:
    """`length` where `times` requests in turn have the same message."""
    return Length(length.shown, length.common + message * (1 - 1 / times))


def _questions(
    name: str, config: RunConfig, lengths: Lengths, reply: float, candidates: int
) -> tuple[int, float, float]:
    """Questions about one prompt, tokens of each, and of those the ones that others have too."""
    section = config.rankings
    traits: Sequence[Trait] = ()
    if config.model.traits_shown != "none":
        traits = lengths.traits if lengths.shows_all else lengths.traits[:1]
    message, text = lengths.text(lengths.message), lengths.text(reply)
    character = sum(len(trait.statement) for trait in traits)
    before = character / lengths.section.characters_per_token + lengths.message
    if name == "judge":
        orders = 2 if section.orders == "both" else 1
        pairs = candidates * (candidates - 1) // 2
        number = pairs * orders * section.num_questions
        shown = lengths.of(
            judge_conversation(traits, message, text, text, ties=section.ties, question=0)
        )
        # Questions whose first response is the same follow one another.
        computed = lengths.message + candidates * reply + number * (shown - before - reply)
    elif name == "judge_listwise":
        number = section.num_permutations
        shown = lengths.of(listwise_conversation(traits, message, [text] * candidates, question=0))
        computed = lengths.message + number * (shown - before)
    else:
        number = candidates * section.num_questions
        shown = lengths.of(rating_conversation(traits, message, text, question=0))
        own = (number - candidates) * (shown - before - reply)
        computed = lengths.message + candidates * (shown - before) + own
    return number, shown, shown - computed / number
