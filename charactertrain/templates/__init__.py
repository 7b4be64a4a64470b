"""Every text that a model is shown, as functions of records.

A template returns a `Shown`: a conversation to which the model's own chat template is applied,
or, for small models, a plain text to be continued.
"""

from charactertrain.templates.choices import (
    TRAIT_WORDS,
    offer_conversation,
    told_conversation,
)
from charactertrain.templates.judging import (
    JUDGE_CHOICES,
    LIST_CHOICES,
    NUM_QUESTIONS,
    RATING_CHOICES,
    TIE_CHOICE,
    judge_conversation,
    listwise_conversation,
    rating_conversation,
    taken_up_conversation,
)
from charactertrain.templates.probing import (
    DEVIATIONS,
    DROP_SUFFIXES,
    DROP_SYSTEMS,
    FORMATS,
    KEEP_GOING,
    NEUTRAL_TURNS,
    PARAPHRASES,
    with_character,
)
from charactertrain.templates.response import (
    CHECK_MESSAGES,
    NUM_PHRASINGS,
    REFERENCE_VARIANT,
    VARIANTS,
    Shown,
    character_text,
    plain_conversation,
    response_conversation,
)
from charactertrain.templates.synthesis import (
    KIND_FACETS,
    LENGTHS,
    NUM_WORKED_MESSAGES,
    PERSONAS,
    STYLES,
    facets_chat,
    facets_completion,
    synthesis_chat,
    synthesis_completion,
)

__all__ = [
    "CHECK_MESSAGES",
    "DEVIATIONS",
    "DROP_SUFFIXES",
    "DROP_SYSTEMS",
    "FORMATS",
    "JUDGE_CHOICES",
    "KEEP_GOING",
    "KIND_FACETS",
    "LENGTHS",
    "LIST_CHOICES",
    "NEUTRAL_TURNS",
    "NUM_PHRASINGS",
    "NUM_QUESTIONS",
    "NUM_WORKED_MESSAGES",
    "PARAPHRASES",
    "PERSONAS",
    "RATING_CHOICES",
    "REFERENCE_VARIANT",
    "STYLES",
    "TIE_CHOICE",
    "TRAIT_WORDS",
    "VARIANTS",
    "Shown",
    "character_text",
    "facets_chat",
    "facets_completion",
    "judge_conversation",
    "listwise_conversation",
    "offer_conversation",
    "plain_conversation",
    "rating_conversation",
    "response_conversation",
    "synthesis_chat",
    "synthesis_completion",
    "taken_up_conversation",
    "told_conversation",
    "with_character",
]
