"""What the preference model pays for each trait, wherever it is shown: attribution untrained.

The base answers the prompts of every trait with every trait shown in turn. By how much a model
that learnt the comparisons of all traits rewards such a reply above one with nothing shown is what
a policy has to gain by showing the trait there.
"""

from collections.abc import Sequence

from charactertrain.artifacts import Json
from charactertrain.evaluation.effects import Bootstrap, attributed
from charactertrain.records import EvaluationSample

DESIGN = "shown"
MEASURES = ("reward", "gold_reward", "contrast", "detector_rate")
"""What is paid; and by how much the replies look like the trait that their prompt is about, without
which a reward off the diagonal cannot be told from two traits that look alike."""


def shown_arm(trait_id: str) -> str:
    """What replies are called that were written with the trait shown."""
    return f"shown {trait_id}"


def matrices(
    samples: Sequence[EvaluationSample],
    shown: Sequence[EvaluationSample],
    trait_ids: Sequence[str],
    bootstrap: Bootstrap,
) -> Json:
    """By measure: rows are the traits shown, columns those whose prompts were answered.

    Args:
        samples: Of all arms, the base's among them.
        shown: Of `shown_arm`, on some of the same prompts; none where nothing was asked for.
        trait_ids: Of the constitution.
        bootstrap: How intervals are made.

    Returns:
        `attribution.matrix` by measure under `DESIGN`; empty without `shown`.
    """
    if not shown:
        return {}
    base = [sample for sample in samples if sample.arm == "base"]
    rows = {trait_id: ("base", shown_arm(trait_id)) for trait_id in trait_ids}
    return attributed([*base, *shown], {DESIGN: rows}, bootstrap, by=MEASURES)
