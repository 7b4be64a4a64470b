"""A policy gradient that tests change what they are about of."""

from charactertrain.stages.policy.objective import PolicyGradient

PLAIN = PolicyGradient(
    advantages="centered",
    baseline_decay=None,
    loss="clipped",
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=None,
    aggregate="token",
    correction=None,
    kl_coef=0.0,
    kl_target=None,
    kl_place="loss",
    kl_estimator="k2",
)
