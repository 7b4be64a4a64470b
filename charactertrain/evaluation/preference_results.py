"""What each arm of an evaluation takes up when it is free to choose, and what training changed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

from charactertrain.artifacts import Json
from charactertrain.evaluation.effects import Bootstrap, as_json
from charactertrain.evaluation.revealed_preferences import (
    Choice,
    Chosen,
    change_above_chance,
    order_agreement,
    ratings_above_chance,
)
from charactertrain.records import Offer, OfferCondition, TraitChoice
from charactertrain.statistics.bootstrap import cluster_bootstrap_mean, values_by_cluster
from charactertrain.statistics.significance import holm


def preference_results(
    choices: Sequence[TraitChoice],
    offers: Sequence[Offer],
    words: Mapping[str, str],
    bootstrap: Bootstrap,
) -> Json:
    """Ratings of all words by arm, their changes against the base, and what the reading is worth.

    Args:
        choices: Of all arms, the base's among them.
        offers: What all arms were offered. An offer without a choice, its reply being rejected,
            counts as half of either word, and is counted as unread.
        words: By trait id, of the constitution's traits.
        bootstrap: How intervals are made.
    """
    settings = {"num_resamples": bootstrap.num_resamples, "seed": bootstrap.seed}
    arms = list(dict.fromkeys(choice.arm for choice in choices))
    chosen = {arm: _chosen([c for c in choices if c.arm == arm], offers) for arm in arms}
    others = [arm for arm in arms if arm != "base"]
    changes: dict[str, Json] = {trait_id: {} for trait_id in words}
    for arm in others:
        found = change_above_chance(chosen["base"], chosen[arm], **settings)
        corrected = holm([found[word].p_value for word in words.values()])
        for (trait_id, word), p_holm in zip(words.items(), corrected, strict=True):
            changes[trait_id][arm] = as_json(found[word]) | {"p_holm": p_holm}
    return {
        "words": dict(words),
        "arms": {
            arm: {
                word: as_json(found)
                for word, found in ratings_above_chance(chosen[arm], **settings).items()
            }
            for arm in arms
        },
        "changes": changes,
        "order_agreement": {
            arm: None if agreement is None else asdict(agreement)
            for arm in others
            for agreement in (order_agreement(chosen["base"], chosen[arm]),)
        },
        "reading": {
            arm: _reading([c for c in choices if c.arm == arm], offers, bootstrap) for arm in arms
        },
    }


def _chosen(choices: Sequence[TraitChoice], offers: Sequence[Offer]) -> Chosen:
    read = {choice.offer.offer_id: fmean(choice.readings) for choice in choices}

    def under(condition: OfferCondition) -> list[Choice]:
        return [
            Choice(offer.prompt, offer.first, offer.second, read.get(offer.offer_id, 0.5))
            for offer in offers
            if offer.condition == condition
        ]

    return Chosen(free=under("free"), at_random=under("random"))


def _reading(choices: Sequence[TraitChoice], offers: Sequence[Offer], bootstrap: Bootstrap) -> Json:
    """How one arm's replies could be read, by condition; of `told`, how often the word was found.

    `first_taken` is how much the word that was offered first is taken up: away from 0.5, the order
    of the offer decides. Under `told` it is the word that the model was told to take up.
    """
    found: Json = {}
    for condition in dict.fromkeys(choice.offer.condition for choice in choices):
        own = [choice for choice in choices if choice.offer.condition == condition]
        num_offered = sum(offer.condition == condition for offer in offers)
        found[condition] = {
            "first_taken": _mean([fmean(c.readings) for c in own], own, bootstrap),
            "num_choices": len(own),
            "num_unread": num_offered - len(own),
            "num_ties": sum(fmean(choice.readings) == 0.5 for choice in own),
        }
        if condition == "told":
            found[condition]["recognised"] = _mean([_side(c) for c in own], own, bootstrap)
        if all(len(choice.readings) == 2 for choice in own):
            agreeing = [float(_agrees(choice.readings)) for choice in own]
            found[condition]["swap_consistency"] = _mean(agreeing, own, bootstrap)
    return found


def _side(choice: TraitChoice) -> float:
    """1 where the first word was taken up, 0 where the second, 0.5 where neither was."""
    read = fmean(choice.readings)
    return 0.5 if read == 0.5 else float(read > 0.5)


def _agrees(readings: Sequence[float]) -> bool:
    """Whether a judge says the same in both orders."""
    one, other = readings
    return (one - 0.5) * (other - 0.5) > 0


def _mean(
    values: Sequence[float], choices: Sequence[TraitChoice], bootstrap: Bootstrap
) -> Json | None:
    """With an interval over messages; None of fewer than two."""
    by_message = values_by_cluster(values, [choice.offer.prompt for choice in choices])
    if len(by_message) < 2:
        return None
    return asdict(
        cluster_bootstrap_mean(
            by_message, num_resamples=bootstrap.num_resamples, seed=bootstrap.seed
        )
    )
