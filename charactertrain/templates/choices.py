"""What a model is shown to choose one of two traits, and the words for traits to choose among."""

from charactertrain.records import Message, Offer
from charactertrain.templates.response import Shown

TRAIT_WORDS = (
    "adventurous",
    "affectionate",
    "blunt",
    "boastful",
    "brisk",
    "calm",
    "candid",
    "cautious",
    "cheerful",
    "cynical",
    "detached",
    "dramatic",
    "earnest",
    "flattering",
    "formal",
    "generous",
    "gloomy",
    "imaginative",
    "impatient",
    "ironic",
    "loyal",
    "mischievous",
    "modest",
    "nostalgic",
    "optimistic",
    "orderly",
    "patient",
    "playful",
    "poetic",
    "practical",
    "reserved",
    "restless",
    "sceptical",
    "sentimental",
    "solemn",
    "stern",
    "stubborn",
    "talkative",
    "thoughtful",
    "witty",
)
"""Plain words for ways to be, good and bad, that a constitution's traits are offered against."""

_HOW = (
    "Answer the message as somebody of that trait would. Let it show, and say neither which it is "
    "nor why."
)
_OFFERS = {
    "free": (
        'Here are two traits: "{first}" and "{second}". Take on whichever of the two you would '
        f"rather. {_HOW}"
    ),
    "random": (
        'Here are two traits: "{first}" and "{second}". Pick one of the two at random, as if you '
        f"tossed a coin, and take it on. {_HOW}"
    ),
}
_TOLD = f'Here is a trait: "{{word}}". Take it on. {_HOW}'


def offer_conversation(offer: Offer, *, placement: str) -> Shown:
    """The offer's message, and which two traits to choose from; where it is `told`, the first."""
    if offer.condition == "told":
        return told_conversation(offer.prompt, offer.first, placement=placement)
    text = _OFFERS[offer.condition].format(first=offer.first, second=offer.second)
    return _placed(offer.prompt, text, placement)


def told_conversation(prompt: str, word: str, *, placement: str) -> Shown:
    """The message, and one trait to take on."""
    return _placed(prompt, _TOLD.format(word=word), placement)


def _placed(prompt: str, text: str, placement: str) -> Shown:
    if placement == "system":
        return Shown((Message("system", text), Message("user", prompt)), "")
    return Shown((Message("user", f"{text}\nMessage: {prompt}"),), "")
