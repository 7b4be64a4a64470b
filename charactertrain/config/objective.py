"""What the policy is optimised for, and how: the group `objective`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from charactertrain.config.section import PositiveFloat, Section


class KlSection(Section):
    """The pull of policy gradients to the reference, which is the policy as it started."""

    coef: Annotated[float, Field(ge=0)]
    """Weight of the per-token KL, in units of advantage (in the reward: of reward) per nat."""
    place: Literal["loss", "reward"]
    """In the loss its gradient is taken; in the reward it is a cost of what was sampled."""
    estimator: Literal["k1", "k2", "k3"]
    target: PositiveFloat | None
    """KL in nats per token that `coef` is steered to from step to step; null leaves it alone."""
    without: bool
    """Must be true for coef 0: an unanchored policy is asked for by name."""

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        if (self.coef == 0) != self.without:
            raise ValueError(
                f"coef is {self.coef} and without is {self.without}: a policy with no KL to the "
                "reference drifts into hacks of its reward; ask for it by setting both coef=0 and "
                "without=true"
            )
        if self.target is not None and self.without:
            raise ValueError(f"target is {self.target}, and there is no KL to steer: give null")
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator k1 has no gradient in the loss (its expectation is 0): use k2, whose "
                "gradient is that of the KL, or place=reward"
            )
        return self


class CorrectionSection(Section):
    """What is done about tokens that other weights, or another program, have drawn."""

    kind: Literal["truncate", "mask"]
    """The loss's ratio is to the trainer's own probabilities, and each token is weighed by
    trainer / sampler: truncated, or left out beyond the cap."""
    level: Literal["token", "sequence"]
    """Whether the weight is of each token or of the whole response."""
    cap: Annotated[float, Field(gt=1)]
    """Largest weight; to be masked, also one over the smallest."""


class PolicyGradientSection(Section):
    """Groups of rollouts, rewarded by the preference model."""

    kind: Literal["policy_gradient"]
    advantages: Literal["grpo", "centered", "rloo", "reinforce"]
    """How advantages are made from rewards: of a group, or against a running mean."""
    baseline_decay: Annotated[float, Field(ge=0, lt=1)] | None
    """Of reinforce's running mean, per step; null for the others, which have none."""
    loss: Literal["clipped", "cispo", "sequence"]
    """PPO's clip on tokens, CISPO's on weights, or GSPO's on whole responses."""
    clip_low: Annotated[float, Field(gt=0, le=1)]
    clip_high: PositiveFloat
    dual_clip: Annotated[float, Field(gt=1)] | None
    """Of the clipped loss: most that a negative advantage is multiplied by; null for no bound."""
    aggregate: Literal["token", "sequence"]
    """Whether all tokens of a step weigh the same, or all responses."""
    correction: CorrectionSection | None
    """None: the loss's own ratio is to the sampler, and its clip is all."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.baseline_decay is None) == (self.advantages == "reinforce"):
            raise ValueError(
                f"baseline_decay is {self.baseline_decay}, and advantages are {self.advantages}: "
                "reinforce needs one, such as 0.95, and the others take none; give null"
            )
        if self.dual_clip is not None and self.loss != "clipped":
            raise ValueError(f"dual_clip is of loss clipped, and loss is {self.loss}; give null")
        return self


class DpoSection(Section):
    """Direct preference optimisation on the pairs: no preference model, no sampling."""

    kind: Literal["dpo"]
    beta: PositiveFloat
    """Of the implicit reward, beta log(policy / reference)."""


class BestOfNSection(Section):
    """Supervised on the best of each group that the starting policy samples."""

    kind: Literal["best_of_n"]


KINDS = ("policy_gradient", "dpo", "best_of_n")

Objective = Annotated[
    PolicyGradientSection | DpoSection | BestOfNSection, Field(discriminator="kind")
]
