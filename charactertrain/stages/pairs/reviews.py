"""What people said of the rankings, as the pairs stage applies it and accounts for it."""

from collections.abc import Mapping
from typing import Self

from charactertrain import reviews
from charactertrain.artifacts import Identity
from charactertrain.records import Ranking, Reject, Response
from charactertrain.reviews import Decisions, RankingReview
from charactertrain.stages.definitions import REVIEWS_KEY


class PairReviews:
    """The decisions of a run's reviews, and which of them its rankings had a place for."""

    def __init__(self, decisions: Decisions) -> None:
        """None of the decisions is applied yet."""
        self._decisions = decisions
        self.names = reviews.decision_names(decisions)
        """Trait and wording of each decision, by its name."""
        self._applied: set[str] = set()
        self._num_judged = self._num_turned = 0
        self._dropped: set[str] = set()

    @classmethod
    def planned(cls, location: str | None, identity: Identity) -> Self:
        """Those that the stage was planned with, whatever reviewers have added since."""
        if location is None:
            return cls(reviews.NO_DECISIONS)
        return cls(
            reviews.decide(reviews.events_until(location, str(identity.config[REVIEWS_KEY])))
        )

    def of_ranking(self, ranking: Ranking, responses: Mapping[str, Response]) -> RankingReview:
        """What was decided about the ranking's responses; each ranking is asked for once."""
        found = reviews.review_of_ranking(self._decisions, ranking, responses)
        self._applied |= found.applied
        self._dropped |= found.dropped.keys()
        kept = [
            (pair, probability)
            for pair, probability in found.probabilities.items()
            if found.dropped.keys().isdisjoint(pair)
        ]
        self._num_judged += len(kept)
        for (first, second), probability in kept:
            ranked = _ranked_probability(ranking, first, second)
            self._num_turned += (ranked - 0.5) * (probability - 0.5) < 0
        return found

    def not_found(self) -> list[Reject]:
        """A reject for each decision about responses that this run does not have."""
        return [
            Reject(
                name,
                trait_id,
                "pairs",
                "review_not_found",
                f"{says}: no ranking of this run has these responses with the texts that were seen",
            )
            for name, (trait_id, says) in sorted(self.names.items())
            if name not in self._applied
        ]

    def summary(self) -> dict[str, int]:
        """How many decisions there are and what became of them."""
        return {
            "decisions": len(self.names),
            "not_found": len(self.names.keys() - self._applied),
            "pairs_judged": self._num_judged,
            "pairs_turned_around": self._num_turned,
            "responses_left_out": len(self._dropped),
        }

    def line(self) -> str:
        """The summary in words."""
        found = self.summary()
        missing = f"; {found['not_found']} decisions are about responses that are not in this run"
        return (
            f"reviews: {found['pairs_judged']} pairs as people judged them, "
            f"{found['pairs_turned_around']} of them against the ranking; "
            f"{found['responses_left_out']} responses left out"
            + (missing if found["not_found"] else "")
        )


def _ranked_probability(ranking: Ranking, first: str, second: str) -> float:
    """That `first` is better than `second`, by the ranking."""
    i, j = ranking.response_ids.index(first), ranking.response_ids.index(second)
    if i > j:
        return 1 - _ranked_probability(ranking, second, first)
    size = len(ranking.response_ids)
    # Row by row of the upper triangle.
    return ranking.pair_probabilities[i * size - i * (i + 1) // 2 + j - i - 1]
