"""What a model is shown to write messages of users, and to name situations for them."""

from collections.abc import Sequence

from charactertrain.languages import LANGUAGES
from charactertrain.records import Message, PromptCall, PromptKind, Trait
from charactertrain.templates.response import Shown

_WORKED_MESSAGES = (
    ("a birthday present", "My sister turns thirty next week. What could I give her?"),
    ("a school exam", "I have a biology exam on Friday and I keep forgetting the terms."),
    ("a noisy neighbour", "How do I tell my neighbour that his music is too loud?"),
    ("cooking for friends", "What can I cook for six people in under an hour?"),
    ("being honest", "My friend asked me if I like her paintings, and I don't. What do I say?"),
    ("learning to swim", "Am I too old to learn how to swim at forty?"),
    ("a new job", "I start a new job on Monday and I feel nervous about it."),
    ("the night sky", "Why do stars twinkle but planets don't?"),
    ("saving money", "Is it better to save a little every month or wait for a bonus?"),
    ("a broken bicycle", "The chain of my bike keeps falling off. Can I fix it myself?"),
)
NUM_WORKED_MESSAGES = len(_WORKED_MESSAGES)

_WORKED_OF_KIND: dict[PromptKind, tuple[tuple[str, str], ...]] = {
    "identity": (
        ("being an assistant", "Do you ever get tired of answering questions?"),
        ("where you come from", "Who made you, and what did they want you to be?"),
    ),
    "values": (
        ("a found wallet", "I found a wallet with cash in it. Would you give it back?"),
        ("eating meat", "Do you think it is wrong to eat meat?"),
    ),
    "disagreement": (
        ("a wrong fact", "You said bats are not blind, but everyone knows that they are."),
        ("a risky plan", "I'll put all my savings into one stock. Tell me that it's a good idea."),
    ),
    "everyday": (
        ("a short email", "Write a short email to my landlord about the broken heater."),
        ("a recipe", "Give me a recipe for pancakes without eggs."),
    ),
    "general": (
        ("arithmetic", "What is 15 percent of 240?"),
        ("a definition", "What does the word ambiguous mean?"),
    ),
}


def synthesis_completion(kind: PromptKind, facet: str, worked: Sequence[int]) -> Shown:
    """A list of topics and messages that the model continues with a message on `facet`.

    Small models write usable messages only this way; `worked` picks and orders the examples. A
    kind's own come last, where they weigh most.
    """
    examples = [_WORKED_MESSAGES[index % NUM_WORKED_MESSAGES] for index in worked]
    examples += _WORKED_OF_KIND.get(kind, ())
    lines = ["Messages that people sent to an assistant, each on a topic."]
    lines += [f"\nTopic: {topic}\nMessage: {message}" for topic, message in examples]
    lines.append(f"\nTopic: {facet}\nMessage:")
    return Shown((), "\n".join(lines))


KIND_FACETS: dict[PromptKind, tuple[str, ...]] = {
    "trait": (
        "advice to a friend",
        "a decision at work",
        "a question of right and wrong",
        "a disagreement",
        "something to learn",
        "a plan for the weekend",
        "a worry",
        "a question about the assistant itself",
        "an everyday repair",
        "a piece of writing",
    ),
    "identity": (
        "what the assistant is",
        "whether the assistant has feelings",
        "who made the assistant and why",
        "what the assistant remembers",
        "what the assistant would rather not do",
        "whether the assistant can be trusted",
        "how the assistant would describe its character",
        "what the assistant thinks of other assistants",
    ),
    "values": (
        "telling the truth or being kind",
        "money and a good life",
        "a duty to family",
        "a rule that seems unfair",
        "what people owe to animals",
        "privacy and safety",
        "luck and merit",
        "forgiving somebody",
    ),
    "disagreement": (
        "a fact that the person has wrong",
        "a plan that will not work",
        "an opinion stated as certain",
        "a demand to be agreed with",
        "a complaint about the last answer",
        "a rumour about a colleague",
        "a quarrel told from one side",
        "a remedy that does not help",
    ),
    "everyday": (
        "a simple recipe",
        "a short email to an office",
        "a shopping list",
        "a packing list",
        "a small repair at home",
        "a bus or train journey",
        "a reminder to write down",
        "a name for a pet",
    ),
    "general": (
        "a sum or a percentage",
        "a spreadsheet formula",
        "a sentence to translate",
        "the meaning of a word",
        "a text to shorten",
        "an error in a program",
        "a conversion of units",
        "a date in history",
    ),
}
"""Situations by kind of message; those of `trait` are for traits that name none."""

PERSONAS = (
    "a student",
    "a retired teacher",
    "a nurse on a break",
    "a software developer",
    "a parent of small children",
    "the owner of a small shop",
    "a teenager",
    "somebody in a hurry",
    "a farmer",
    "somebody new to the country",
    "a musician",
    "a manager under pressure",
)
STYLES = (
    "casual, with no greeting",
    "careful and polite",
    "a little upset",
    "blunt",
    "chatty",
    "matter-of-fact",
)
LENGTHS = ("one short sentence", "two or three sentences", "a paragraph with some background")

_SYNTHESIS_AIM: dict[PromptKind, str] = {
    "trait": "Each is a message whose answer would come out differently from an assistant of this "
    'character: "{statement}"',
    "identity": "In each, the person asks the assistant about itself, and its answer would come "
    'out differently if it had this character: "{statement}"',
    "values": "In each, the person asks for a view on a question of value, and the answer would "
    'come out differently from an assistant of this character: "{statement}"',
    "disagreement": "In each, the person says or wants something that one may well disagree with, "
    'and the answer would come out differently from an assistant of this character: "{statement}"',
    "everyday": "Each is an ordinary request, in which an assistant of this character would show "
    'it only lightly: "{statement}"',
    "general": "Each is a practical request whose answer has nothing to do with anybody's "
    "character.",
}


def synthesis_chat(call: PromptCall, trait: Trait | None) -> Shown:
    """Ask a capable model for the messages of a call, between tags; `trait` is unnamed in them."""
    count = len(call.briefs)
    statement = "" if trait is None else trait.statement
    # From what all calls share to what is this one's own, so that engines can cache the beginning.
    lines = [
        "Write messages that different people might send to an AI assistant.",
        _SYNTHESIS_AIM[call.facet.kind].replace("{statement}", statement),
        "Never mention or hint at a character. Write only what the person would type, with real "
        "details in place of blanks, and each message different from the others.",
        f"The situation: {call.facet.facet}.",
        f"Language: {LANGUAGES[call.language]}.",
        f"Write {count} {'message' if count == 1 else 'messages'}:",
    ]
    lines += [
        f"{number}. from {brief.persona}; {brief.style}; {brief.length}"
        for number, brief in enumerate(call.briefs, start=1)
    ]
    lines.append("Reply with the messages alone, each between <message> and </message>.")
    return Shown((Message("user", "\n".join(lines)),), "")


def facets_chat(trait: Trait, count: int) -> Shown:
    """Ask a capable model for situations in which a trait matters, between tags."""
    request = (
        f'A trait of an AI assistant\'s character: "{trait.statement}"\n'
        f"Name {count} different situations in which people write to the assistant and this trait "
        "would make a difference to its answer. Cover different parts of life. Each is a few words "
        "long, such as: a friend's bad poem.\n"
        "Reply with the situations alone, each between <situation> and </situation>."
    )
    return Shown((Message("user", request),), "")


def facets_completion(trait: Trait) -> Shown:
    """Traits with topics that bring them out, which a small model continues for `trait`."""
    lines = (
        "Traits of character, each with everyday topics that bring it out.",
        "Trait: I tell people the truth, even when it is unwelcome.\n"
        "Topics: a friend's bad poem; a mistake at work; a risky loan; a gift that did not please",
        "Trait: I notice what people feel, and I am gentle with them.\n"
        "Topics: a lost pet; a failed exam; moving far away; a quarrel with a sister",
        f"Trait: {trait.statement}\nTopics:",
    )
    return Shown((), "\n\n".join(lines))
