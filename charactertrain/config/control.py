"""The two controls of a run: the same without traits, and the same with meaningless labels."""

from typing import Literal

from charactertrain.config.data import ModelSection, RankingsSection, ResponsesSection
from charactertrain.config.training import PolicySection, PreferenceModelSection

Control = Literal["neutral", "placebo"]


def control_of(model: ModelSection, preference_model: PreferenceModelSection) -> Control | None:
    """Which control a run of these is; None for one that is to take on the traits."""
    if model.traits_shown == "none":
        return "neutral"
    return "placebo" if preference_model.labels == "shuffled" else None


def neutral_problems(
    model: ModelSection, responses: ResponsesSection, rankings: RankingsSection
) -> list[str]:
    """What would bring the character back into responses or rankings that are to be without it."""
    if model.traits_shown != "none":
        return []
    problems = []
    showing = [name for name, count in responses.variants.items() if count and name != "none"]
    if showing:
        problems.append(
            f"model.traits_shown is none, and responses.variants asks for {' and '.join(showing)}, "
            "which show the character; give responses.variants={none: 1, mild: 0, strong: 0}"
        )
    needs_character = {"auto": True, "contrast": True, "ensemble": "contrast" in rankings.ensemble}
    if needs_character.get(rankings.ranker, False):
        problems.append(
            f"model.traits_shown is none, and rankings.ranker {rankings.ranker} compares with and "
            "without the character; use ranker=judge or ranker=rating"
        )
    if "contrast" in rankings.second_opinions:
        problems.append(
            "model.traits_shown is none, and contrast, which compares with and without the "
            "character, is of rankings.second_opinions; leave it out"
        )
    return problems


def placebo_problems(
    model: ModelSection, preference_model: PreferenceModelSection, policy: PolicySection
) -> list[str]:
    """What would teach a placebo's policy the traits by another way than the preference model."""
    if preference_model.labels != "shuffled":
        return []
    problems = []
    if model.traits_shown == "none":
        problems.append(
            "model.traits_shown is none and preference_model.labels is shuffled: a run is one "
            "control at a time, the neutral one or the placebo"
        )
    if policy.objective.kind == "dpo":
        problems.append(
            "preference_model.labels is shuffled, and policy.objective dpo learns from the pairs "
            "as they were ranked; use an objective that follows the preference model"
        )
    if policy.warm_start.epochs > 0:
        problems.append(
            "preference_model.labels is shuffled, and policy.warm_start trains on responses that "
            "were written with the character shown; give policy.warm_start.epochs=0"
        )
    return problems
