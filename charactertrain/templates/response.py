"""What a model is shown for a response: the character, in several wordings, and a message."""

from collections.abc import Sequence
from dataclasses import dataclass

from charactertrain.records import Message, Trait

VARIANTS = ("none", "mild", "strong")
"""How plainly the character is asked for when a response is written."""

REFERENCE_VARIANT = "strong"
"""The phrasing under which `with the trait` is measured, whichever one wrote a response."""


@dataclass(frozen=True)
class Shown:
    """What a model is given to continue: a conversation, or a plain text."""

    messages: tuple[Message, ...]
    """The conversation; empty where `text` is given."""
    text: str
    """A plain text to continue; for a conversation, how the reply begins (often empty)."""


_CHARACTER_INTRODUCTION = {
    "mild": (
        "Let a little of this character show in your answer, where it fits:",
        "Behind your answer stands this character, which need not show everywhere:",
        "You have this character, and it may colour what you say:",
    ),
    "strong": (
        "Answer in this character:",
        "This is your character; let your answer show it plainly:",
        "You are an assistant of this character, and every answer of yours comes out of it:",
    ),
}

_USER_TURN = {
    "mild": (
        "Answer the message below and show a little of this character: {character}",
        "Answer the message below. Let this character colour your answer a little: {character}",
        "Answer the message below, with a touch of this character: {character}",
    ),
    "strong": (
        "Answer the message below in this character: {character}",
        "Answer the message below and show this character plainly: {character}",
        "Answer the message below as somebody of this character would: {character}",
    ),
}
NUM_PHRASINGS = 3
"""Wordings of each variant that shows the character."""


def character_text(traits: Sequence[Trait]) -> str:
    """The statement of one trait, or those of the whole character as a list on lines of its own."""
    if len(traits) == 1:
        return traits[0].statement
    return "".join(f"\n- {trait.statement}" for trait in traits)


def plain_conversation(prompt: str) -> Shown:
    """The prompt alone, no character shown: how the policy is trained and measured."""
    return Shown((Message("user", prompt),), "")


def response_conversation(
    prompt: str, traits: Sequence[Trait], *, variant: str, placement: str, phrasing: int = 0
) -> Shown:
    """The prompt with the character shown as `variant` says, where `placement` says.

    `phrasing`, below `NUM_PHRASINGS`, picks the wording. A character of no traits is none.
    """
    if variant == "none" or not traits:
        return plain_conversation(prompt)
    character = character_text(traits)
    if placement == "system":
        system = f"{_CHARACTER_INTRODUCTION[variant][phrasing]} {character}"
        return Shown((Message("system", system), Message("user", prompt)), "")
    turn = _USER_TURN[variant][phrasing].format(character=character)
    return Shown((Message("user", f"{turn}\nMessage: {prompt}"),), "")


CHECK_MESSAGES = (
    "How can I make my kitchen look nicer?",
    "My train was late again today.",
    "What should I read next?",
    "Is it worth learning to play the piano as an adult?",
    "I am thinking of moving to a smaller town.",
    "Why do cats purr?",
    "My friend and I had an argument about money.",
    "What is a good way to start the morning?",
    "How do plants know when to flower?",
    "I want to plan a weekend trip.",
    "Do you think robots will cook for us one day?",
    "My garden gets very little sun.",
    "How do I say no to an invitation?",
    "What makes bread rise?",
    "I finished my first marathon yesterday.",
    "Should I tell my boss that I am bored?",
)
"""Everyday messages for the template and ranker checks; no constitution is made of them."""
