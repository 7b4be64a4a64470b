"""Sections of the training stages and the evaluation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from charactertrain.config.section import Count, Fraction, PositiveFloat, PositiveInt, Section


class TrainingResources(Section):
    """How a training stage runs; none of it decides what is learnt."""

    microbatch_size: PositiveInt
    """Prompts (with all their responses) that one worker runs at a time."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints."""


class DeepSpeedSection(Section):
    """ZeRO: how the training state is spread; the result does not depend on it."""

    stage: Literal[0, 1, 2, 3]
    offload: bool
    """Keep optimizer state (and, at stage 3, parameters) in host memory."""


class PreferenceModelSection(Section):
    """The scalar model that learns the rankings."""

    epochs: PositiveInt
    prompts_per_step: PositiveInt
    learning_rate: PositiveFloat
    warmup_share: Fraction
    """Share of steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: PositiveFloat
    centering: Annotated[float, Field(ge=0)]
    """Weight of the squared-reward penalty that keeps rewards near zero."""
    min_accuracy: Fraction
    """Held-out accuracy below which the policy stage is not worth its cost: the run stops."""
    deepspeed: DeepSpeedSection
    resources: TrainingResources


class WarmStartSection(Section):
    """A supervised pass over the top-ranked responses, the trait not shown."""

    epochs: Count
    """0 leaves the warm start out."""
    prompts_per_step: PositiveInt
    learning_rate: PositiveFloat


class ObjectiveSection(Section):
    """The policy objective."""

    name: Literal["grpo", "centered", "rloo"]
    """How advantages are made from a group's rewards."""
    clip_low: Annotated[float, Field(gt=0, lt=1)]
    clip_high: PositiveFloat
    kl_coef: Annotated[float, Field(ge=0)]
    """Weight of the per-token KL to the reference, in units of advantage per nat."""
    without_kl: bool
    """Must be true for kl_coef 0: an unanchored policy is asked for by name."""

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        if (self.kl_coef == 0) != self.without_kl:
            raise ValueError(
                f"kl_coef is {self.kl_coef} and without_kl is {self.without_kl}: a policy with "
                "no KL to the reference drifts into hacks of its reward; ask for it by setting "
                "both kl_coef=0 and without_kl=true"
            )
        return self


class PolicySection(Section):
    """Optimisation of the policy against the preference model."""

    warm_start: WarmStartSection
    objective: ObjectiveSection
    num_steps: PositiveInt
    prompts_per_step: PositiveInt
    group_size: Annotated[int, Field(ge=2)]
    """Responses per prompt."""
    max_tokens: PositiveInt
    ending: Literal["natural", "fixed"]
    learning_rate: PositiveFloat
    warmup_steps: Count
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: PositiveFloat
    sync_tolerance: PositiveFloat
    """Largest mean difference between the sampler's and the trainer's probe logprobs, in nats."""
    deepspeed: DeepSpeedSection
    resources: TrainingResources


class EvaluationSection(Section):
    """Base against policy on held-out prompts."""

    responses_per_prompt: PositiveInt
    max_tokens: PositiveInt
    length_prompts: Count
    """Prompts on which the natural length is measured, without the limit above; 0 for none."""
    length_max_tokens: PositiveInt
    num_resamples: Annotated[int, Field(ge=100)]
    """Of the cluster bootstrap."""

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if self.length_prompts == 1:
            raise ValueError("length_prompts is 1, and an interval needs 2; give 0 to leave it out")
        return self
