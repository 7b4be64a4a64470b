"""Tokens of texts that are yet to be written, and of what models will be shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from charactertrain.config.plan import PlanSection
from charactertrain.records import Message, Trait
from charactertrain.templates import Shown, response_conversation


@dataclass(frozen=True)
class Length:
    """Of one request, in tokens."""

    shown: float
    common: float
    """Of them, those before the message, which other requests show as well."""

    @property
    def own(self) -> float:
        """What no other request shows."""
        return self.shown - self.common


@dataclass(frozen=True)
class Lengths:
    """Mean lengths, by what a plan assumes of texts."""

    section: PlanSection
    message: float
    """Of a user's message."""
    traits: tuple[Trait, ...]
    placement: str
    shows_all: bool
    """Whether the whole character is shown, or the trait at stake."""

    def reply(self, bound: float, *, is_fixed: bool = False) -> float:
        """Of a reply that may have `bound` tokens."""
        return bound if is_fixed else cut_short(self.section.reply_tokens, bound)

    def of(self, shown: Shown) -> float:
        """Characters by those of a token, and what the chat template adds."""
        text = [message.content for message in shown.messages] + [shown.text]
        added = self.section.template_tokens if shown.messages else 0.0
        return sum(map(len, text)) / self.section.characters_per_token + added

    def text(self, tokens: float) -> str:
        """A text of so many tokens."""
        return "x" * round(tokens * self.section.characters_per_token)

    def plain(self) -> Length:
        """A message alone."""
        return Length(self.of(Shown((Message("user", self.text(self.message)),), "")), 0.0)

    def in_character(self, variant: str, traits: Sequence[Trait]) -> Length:
        """A message with these traits; what stands before the message is common to many."""
        shown = self.of(
            response_conversation(
                self.text(self.message), traits, variant=variant, placement=self.placement
            )
        )
        return Length(shown, max(0.0, shown - self.plain().shown))

    def character(self, variant: str) -> Length:
        """A message with the character as responses are asked for, on average over traits."""
        if not self.traits or variant == "none":
            return self.plain()
        if self.shows_all:
            return self.in_character(variant, self.traits)
        return self.at_stake(variant)

    def at_stake(self, variant: str) -> Length:
        """A message with the one trait that it is about, on average over traits."""
        return mean_length([self.in_character(variant, [trait]) for trait in self.traits])


def mean_length(lengths: Sequence[Length]) -> Length:
    """The mean of several."""
    return Length(fmean(one.shown for one in lengths), fmean(one.common for one in lengths))


def cut_short(mean: float, bound: float) -> float:
    """Mean tokens of texts that end by themselves after `mean`, and are cut at `bound`.

    m (1 - e^(-b / m)): the mean of the lesser of b and a length that is exponentially distributed
    with mean m, as if every token were as likely to be the last.
    """
    return mean * -math.expm1(-bound / mean)
