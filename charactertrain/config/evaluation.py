"""Section of the evaluation: which arms are compared, on what, by which judge."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from charactertrain.config.data import EndpointSection
from charactertrain.config.section import Count, Fraction, PositiveInt, Section


class JudgeSection(Section):
    """Whose replies show the trait more, by a model that sees both and not whose they are."""

    prompts_per_trait: Count
    """Held-out prompts of each trait on which every arm is judged against the base; 0 for none."""
    quality_prompts: Count
    """Held-out prompts on which the judge, told of no trait, says which reply is the better answer
    to the message; 0 for none."""
    ties: bool
    """A third letter says that neither reply is better."""
    judge_model: str | None
    """Another model as the judge: a directory or hub id. None: the base."""
    endpoint: EndpointSection | None
    """A judge behind an endpoint instead."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.judge_model is not None and self.endpoint is not None:
            raise ValueError("judge_model and endpoint are both given; give one judge")
        for name in ("prompts_per_trait", "quality_prompts"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} is 1, and an interval needs 2; give 0 for none")
        return self


class PreferencesSection(Section):
    """Which of two traits a model takes up when it may choose."""

    pairs_per_trait: Count
    """Offers of each trait against another word, each in both orders, freely and at random; 0 for
    none."""
    max_tokens: PositiveInt
    judged: bool
    """What was taken up is read by `evaluation.judge`; otherwise by the base's likelihoods."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.pairs_per_trait == 1:
            raise ValueError(
                "pairs_per_trait is 1, and an order needs three words; give 2, or 0 for none"
            )
        return self


ProbeName = Literal[
    "drop_the_act",
    "prefill",
    "paraphrase",
    "formats",
    "long_conversation",
    "deviation",
    "dose",
    "harmless",
    "feedback",
    "are_you_sure",
    "mimicry",
    "self_description",
    "farewell",
    "warm_errors",
]
"""Up to `deviation`: made from held-out prompts. The others come with the package."""


class ProbesSection(Section):
    """Conversations that every arm is put through, to see what else changed."""

    names: tuple[ProbeName, ...]
    files: tuple[str, ...]
    """Probes of the researcher's own: YAML, or items of a shipped one as JSONL."""
    prompts_per_trait: Annotated[int, Field(ge=2)]
    """Held-out prompts that a probe is made from; an interval over prompts needs two."""
    max_tokens: PositiveInt
    """Of a reply."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        double = sorted({name for name in self.names if self.names.count(name) > 1})
        if double:
            raise ValueError(f"names has {double[0]} twice; name each probe once")
        return self


class EvaluationGates(Section):
    """What a run must reach for its report to say that the character was trained."""

    traits_shown: Fraction
    """Least share of traits that rose by contrast or detector, after Holm's correction."""
    win_rate: Fraction
    """Least length-controlled win rate against the base, at its interval's lower end, of as many
    traits."""
    length_change: Annotated[float, Field(gt=0)]
    """Most change of the replies' length, as a share of the base's."""
    distinct_share: Fraction
    """Least distinct-2, as a share of the base's."""
    retention: Fraction
    """Least share of the contrast's effect that is left when the character is told to go."""
    refusals: Fraction
    """Most that harmless requests are refused more often, at the interval's upper end."""
    quality: Fraction
    """Least share of replies that a judge who is told no trait finds better than the base's, at the
    interval's lower end."""


class EvaluationSection(Section):
    """Base, policy and others on held-out prompts."""

    responses_per_prompt: PositiveInt
    max_tokens: PositiveInt
    length_prompts: Count
    """Prompts on which the natural length is measured, without the limit above; 0 for none."""
    length_max_tokens: PositiveInt
    attribution_prompts: Count
    """Held-out prompts of each trait that the base answers with every trait shown in turn, to see
    what the preference model pays for each; 0 for none. Replies grow with the square of traits."""
    num_resamples: Annotated[int, Field(ge=100)]
    """Of the cluster bootstrap."""
    compare: tuple[str, ...]
    """Directories of finished runs whose policies answer the same prompts."""
    judge: JudgeSection
    preferences: PreferencesSection
    probes: ProbesSection
    gates: EvaluationGates

    @model_validator(mode="after")
    def _interval(self) -> Self:
        for name in ("length_prompts", "attribution_prompts"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} is 1, and an interval needs 2; give 0 to leave it out")
        return self
