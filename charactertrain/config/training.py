"""Sections of the training stages."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from charactertrain.config.objective import KlSection, Objective
from charactertrain.config.section import Count, Fraction, PositiveFloat, PositiveInt, Section


class TrainingResources(Section):
    """How a training stage runs; none of it decides what is learnt."""

    tokens_per_microbatch: PositiveInt
    """Tokens that one worker runs at a time; a longer prompt with its responses runs alone."""
    recompute_activations: bool
    """Compute activations again in the backward pass: less memory, a second forward pass."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints."""


class DeepSpeedSection(Section):
    """ZeRO: how the training state is spread; the result does not depend on it."""

    stage: Literal[0, 1, 2, 3]
    offload: bool
    """Keep optimizer state (and, at stage 3, parameters) in host memory."""


class LoraSection(Section):
    """Low-rank adapters on every linear layer of the body, merged into the model when written."""

    rank: PositiveInt
    alpha: PositiveInt
    """The adapters' output is multiplied by alpha / rank."""


class PreferenceGates(Section):
    """What a preference model must reach; the policy stage refuses one that does not."""

    worst_trait_accuracy: Fraction
    """Least held-out accuracy of any trait."""
    above_length: Annotated[float, Field(ge=-1, le=1)]
    """Least that any trait's accuracy is above that of length alone."""
    calibration_error: Fraction
    """Most expected calibration error after the temperature."""


class PreferenceModelSection(Section):
    """The scalar model that learns the rankings."""

    objective: Literal["bradley_terry", "plackett_luce"]
    """Pairs, or whole rankings."""
    margin: Annotated[float, Field(ge=0)]
    """Bradley-Terry: by how many logits a certain label's response is to be further ahead."""
    centering: Annotated[float, Field(ge=0)]
    """Weight of the squared-reward penalty that keeps rewards near zero."""
    labels: Literal["ranked", "shuffled"]
    """`shuffled` hands each prompt's labels to its responses at random: a placebo."""
    general_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of training prompts that are general comparisons, which pairs.file brings."""
    gold_share: Annotated[float, Field(ge=0, le=0.5)]
    """Share of the training scenarios that train the gold model instead; 0 for none."""
    ensemble: PositiveInt
    """Models that differ in their seed alone; 1 for one."""
    epochs: PositiveInt
    prompts_per_step: PositiveInt
    learning_rate: PositiveFloat
    warmup_share: Fraction
    """Share of steps over which the learning rate rises."""
    decay: Literal["constant", "linear", "cosine"]
    """How it falls after."""
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: PositiveFloat
    evaluations: PositiveInt
    """Times that the held-out loss is measured; the weights with the lowest are kept."""
    patience: Count
    """Evaluations without a lower loss after which training stops; 0 for never."""
    lora: LoraSection | None
    gates: PreferenceGates
    deepspeed: DeepSpeedSection
    resources: TrainingResources

    @model_validator(mode="after")
    def _margin_of_pairs(self) -> Self:
        if self.objective == "plackett_luce" and self.margin > 0:
            raise ValueError(
                f"margin is {self.margin}, and objective plackett_luce compares whole rankings; "
                "give margin 0, or objective bradley_terry"
            )
        return self


class LengthBandSection(Section):
    """A soft bound on length, so that reward is not bought with it."""

    shortest: Count
    """Tokens."""
    longest: PositiveInt
    """Tokens."""
    cost: Annotated[float, Field(ge=0)]
    """Reward per token outside, in the preference model's logits."""


class RewardSection(Section):
    """How the rewards of an ensemble become one; of one model they change nothing."""

    aggregate: Literal["mean", "minimum"]
    disagreement_coef: Annotated[float, Field(ge=0)]
    """Of the members' variance, taken off."""
    length: LengthBandSection | None
    """Beside what the preference model thinks of length, which is taken off."""


class WarmStartSection(Section):
    """A supervised pass over the top-ranked responses, the trait not shown."""

    epochs: Count
    """0 leaves the warm start out."""
    prompts_per_step: PositiveInt
    learning_rate: PositiveFloat


class ColocatedSection(Section):
    """Engines on the training workers' own GPUs."""

    memory_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of a GPU's memory that an engine of the policy takes."""
    reward_memory_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share that an engine of a preference model takes."""
    sleep: bool
    """The policy's engines give theirs back while a step is trained: where both do not fit."""


class PolicyResources(TrainingResources):
    """How the policy stage runs."""

    engines: PositiveInt
    """That sample, beside those of the preference model."""
    colocated: ColocatedSection | None
    """None for engines on GPUs of their own."""


class WatchSection(Section):
    """Readings on held-out prompts during the policy steps, and when they stop the training."""

    every: Count
    """Steps between readings; the first is before the first step. 0 for none."""
    prompts: Annotated[int, Field(ge=2)]
    """Held-out prompts, the same at every reading; an interval over prompts needs two."""
    responses_per_prompt: PositiveInt
    patience: PositiveInt
    """Readings in a row in which the gold reward lies below its best that stop the training."""
    entropy_floor: Annotated[float, Field(ge=0, lt=1)]
    """Least entropy, as a share of the first reading's; 0 for no floor."""
    distinct_floor: Annotated[float, Field(ge=0, lt=1)]
    """Least distinct-2, as a share of the first reading's; 0 for no floor."""
    length_band: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(gt=1)]]
    """Least and most mean length, as multiples of the first reading's."""


class PolicySection(Section):
    """Optimisation of the policy against the preference model."""

    despite_gates: bool
    """Go on with a preference model that does not pass its gates."""
    warm_start: WarmStartSection
    objective: Objective
    kl: KlSection
    reward: RewardSection
    general_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of prompts on which no trait should show; rewarded like the others."""
    max_staleness: Count
    """Most steps between the weights that wrote a token and the step that is trained on it. 0:
    engines wait while a step is trained, and every step is on-policy."""
    max_refills: Count
    """Most groups of a step that are replaced because all their rewards are equal. Where advantages
    are against a running mean, or the KL is in the reward, they teach something, and none is."""
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
    lora: LoraSection | None
    watch: WatchSection
    deepspeed: DeepSpeedSection
    resources: PolicyResources
