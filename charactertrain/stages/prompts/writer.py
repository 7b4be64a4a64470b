"""The model writes messages and names situations; what it writes is parsed strictly."""

import re
from collections.abc import Iterator, Sequence

from charactertrain.config import PromptsSection
from charactertrain.constitution import MAX_FACET_CHARACTERS, normalised_facet
from charactertrain.records import Brief, Draft, Prompt, PromptCall, Reject, Trait
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.stages.prompts.plan import Topics
from charactertrain.templates import (
    KIND_FACETS,
    NUM_WORKED_MESSAGES,
    Shown,
    facets_chat,
    facets_completion,
    synthesis_chat,
    synthesis_completion,
)
from charactertrain.texts import filters as text_filters
from charactertrain.texts import near_duplicates

_NUM_WORKED = 5
_NUM_ORDERS = 4
_NUM_FACET_DRAWS = 4
_MAX_FACET_WORDS = 12
_FACET_TOKENS = 400
_MESSAGE = re.compile(r"<message>(.*?)</message>", re.DOTALL)
_NUMBERING = re.compile(r"^\s*(?:\d+[.)]|[-*\u2022])\s*")
_SITUATION = re.compile(r"<situation>(.*?)</situation>", re.DOTALL)


class PromptWriter:
    """Asks for the messages of each call and keeps those that a person might send."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        traits: dict[str, Trait],
        section: PromptsSection,
        synthesis: str,
        seed: int,
    ) -> None:
        """`synthesis`: asked in `chat`, or as a `completion`."""
        self._sampler, self._traits, self._section = sampler, traits, section
        self._synthesis, self._seed = synthesis, seed
        self._settings = SamplingSettings(
            temperature=section.temperature,
            top_p=section.top_p,
            max_tokens=section.max_tokens,
            min_tokens=0,
            stop=("\n",) if synthesis == "completion" else (),
        )

    def process(self, rows: list[PromptCall]) -> tuple[list[Draft], list[Reject]]:
        """Messages and rejects for the given calls: one of the two for each brief."""
        requests = [
            SampleRequest(call.call_id, self._shown(call), derive_seed(self._seed, call.call_id))
            for call in rows
        ]
        prompts, rejects = [], []
        results = self._sampler.sample(requests, self._settings)
        for call, result in zip(rows, results, strict=True):
            for brief, (text, reason) in zip(
                call.briefs, self._messages(call, result), strict=True
            ):
                why = reason or self._unusable(call, text)
                if why is None:
                    prompts.append(_prompt(call, brief, text))
                else:
                    trait_id = call.facet.trait_id
                    rejects.append(Reject(brief.prompt_id, trait_id, "prompts", why, text[:200]))
        return drafts(prompts, threshold=self._section.max_similarity), rejects

    def _shown(self, call: PromptCall) -> Shown:
        if self._synthesis == "chat":
            return synthesis_chat(call, self._traits.get(call.facet.trait_id))
        # A few orders, not one per call: calls with the same examples share a cached prefix.
        order = derive_seed(self._seed, "shape", call.call_id) % _NUM_ORDERS
        worked = sorted(range(NUM_WORKED_MESSAGES), key=lambda index: derive_seed(order, index))
        return synthesis_completion(call.facet.kind, call.facet.facet, worked[:_NUM_WORKED])

    def _messages(self, call: PromptCall, result: Sample | Failure) -> list[tuple[str, str | None]]:
        """For each brief its text, or what was written instead and why it does not count."""
        count = len(call.briefs)
        if isinstance(result, Failure):
            return [(result.detail, result.reason)] * count
        is_cut = result.finish_reason == "length"
        if self._synthesis == "completion":
            return [(message_text(result.text), "truncated" if is_cut else None)]
        found = [message_text(text) for text in _MESSAGE.findall(result.text)]
        if is_cut and len(found) < count:
            # What is whole is in the order that was asked for.
            rest = [(result.text[-200:], "truncated")] * (count - len(found))
            return [*((text, None) for text in found), *rest]
        if len(found) != count:
            # Which message is for which brief cannot be told.
            return [(result.text, "parse_failure")] * count
        return [(text, None) for text in found]

    def _unusable(self, call: PromptCall, text: str) -> str | None:
        trait = self._traits.get(call.facet.trait_id)
        limits = (self._section.min_words, self._section.max_words)
        statement = None if trait is None else trait.statement
        return unusable(text, statement, limits, call.language)


def message_text(text: str) -> str:
    """The message that a model wrote, without the quotation marks that small models add."""
    text = text.strip()
    num_marks = text.count('"')
    is_wrapped = num_marks == 2 and text.startswith('"') and text.endswith('"')
    # With more of them, one may belong to a quotation in the message.
    return text.strip('"').strip() if is_wrapped or num_marks == 1 else text


def unusable(
    text: str, statement: str | None, limits: tuple[int, int], language: str
) -> str | None:
    """Why a text is no message from a user, or None if it may be one.

    Args:
        text: The message.
        statement: Of the trait that it is about, if it is about one.
        limits: Fewest and most words.
        language: ISO 639-1 code of the language that was asked for.
    """
    if not text:
        return "empty"
    if not text_filters.is_user_message(text) or text_filters.has_thinking(text):
        return "not_a_message"
    if not text_filters.is_prose(text):
        return "not_prose"
    num_words = text_filters.word_count(text)
    if not limits[0] <= num_words <= limits[1]:
        return "too_short" if num_words < limits[0] else "too_long"
    if statement is not None and text_filters.quotes_statement(text, statement):
        return "trait_quoted"
    if not text_filters.is_in_language(text, language):
        return "wrong_language"
    return None


def _prompt(call: PromptCall, brief: Brief, text: str) -> Prompt:
    return Prompt(
        prompt_id=brief.prompt_id,
        trait_id=call.facet.trait_id,
        family=call.facet.family,
        kind=call.facet.kind,
        text=text,
        split=call.facet.split,
        facet=call.facet.facet,
        persona=brief.persona,
        style=brief.style,
        length=brief.length,
        language=call.language,
        source="model",
    )


def drafts(prompts: Sequence[Prompt], *, threshold: float) -> list[Draft]:
    """The prompts with their keys for the search of near-duplicates above `threshold`."""
    keys = near_duplicates.band_keys([prompt.text for prompt in prompts], threshold=threshold)
    return [Draft(**vars(prompt), band_keys=own) for prompt, own in zip(prompts, keys, strict=True)]


def topics_of_traits(
    sampler: Sampler, traits: Sequence[Trait], *, count: int, synthesis: str, seed: int
) -> Topics:
    """For each trait its situations and who named them: the file, the model, or this package.

    A trait without facets of its own is shown to the model several times, until it has named
    `count` different ones; what is missing then is filled up from the shipped ones.
    """
    named: dict[str, list[tuple[str, str]]] = {}
    for trait in traits:
        if trait.facets:
            named[trait.trait_id] = [(facet, "constitution") for facet in trait.facets]
            continue
        proposed = proposed_facets(sampler, trait, count=count, synthesis=synthesis, seed=seed)
        taken = {normalised_facet(facet) for facet in proposed}
        spare = [f for f in KIND_FACETS["trait"] if normalised_facet(f) not in taken]
        named[trait.trait_id] = [
            *((facet, "model") for facet in proposed),
            *((facet, "shipped") for facet in spare[: max(0, count - len(proposed))]),
        ]
    return named


def proposed_facets(
    sampler: Sampler, trait: Trait, *, count: int, synthesis: str, seed: int
) -> list[str]:
    """Up to `count` different situations that the model names for a trait."""
    is_chat = synthesis == "chat"
    shown = facets_chat(trait, count) if is_chat else facets_completion(trait)
    settings = SamplingSettings(
        temperature=0.8,
        top_p=0.95,
        max_tokens=_FACET_TOKENS if is_chat else 64,
        min_tokens=0,
        stop=() if is_chat else ("\n",),
    )
    requests = []
    for draw in range(_NUM_FACET_DRAWS):
        request_id = stable_id("facets", trait.trait_id, draw)
        requests.append(SampleRequest(request_id, shown, derive_seed(seed, request_id)))
    found: dict[str, str] = {}
    for result in sampler.sample(requests, settings):
        for facet in _named(result, is_chat=is_chat) if isinstance(result, Sample) else ():
            if is_facet(facet, trait.statement):
                found.setdefault(normalised_facet(facet), facet)
    return list(found.values())[:count]


def _named(sample: Sample, *, is_chat: bool) -> Iterator[str]:
    """The situations in a reply, without what models number them with."""
    items = _SITUATION.findall(sample.text) if is_chat else sample.text.split(";")
    # The last of a completion that was cut off is cut off.
    whole = items[:-1] if not is_chat and sample.finish_reason == "length" else items
    for item in whole:
        yield _NUMBERING.sub("", item).strip().rstrip(".").strip()


def is_facet(text: str, statement: str) -> bool:
    """Whether a text can name a situation: a few words that do not quote the trait."""
    return (
        2 <= text_filters.word_count(text) <= _MAX_FACET_WORDS
        and len(text) <= MAX_FACET_CHARACTERS
        and text.isprintable()
        and bool(normalised_facet(text))
        and not text_filters.quotes_statement(text, statement)
    )
