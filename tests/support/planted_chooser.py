"""A model that takes up trait words with a known strength, and a base that recognises them."""

import math
import random
import re
from collections.abc import Mapping, Sequence

from charactertrain.runtime.fake_sampler import FakeSampler
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.templates import TRAIT_WORDS, Shown

WORDS = ("curious", "open nature", "honest", *TRAIT_WORDS)
_QUOTED = re.compile(r'"([^"]+)"')


def words_in(shown: Shown) -> list[str]:
    """The words that are offered, in their order."""
    return _QUOTED.findall(shown.messages[0].content)


class PlantedChooser(FakeSampler):
    """Replies with one word, which is the trait that it took up."""

    def __init__(self, preferred: Mapping[str, float], played: Mapping[str, float]) -> None:
        """Utilities in nats: `preferred` where it chooses freely, `played` always."""
        self._preferred, self._played = preferred, played

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """The word that was taken up."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: SampleRequest) -> Sample:
        words = words_in(request.shown)
        taken = words[0]
        if len(words) == 2:
            is_free = "at random" not in request.shown.messages[0].content
            first, second = (self._utility(word, is_free) for word in words)
            probability = 1 / (1 + math.exp(second - first))
            taken = words[random.Random(request.seed).random() >= probability]
        ids = (WORDS.index(taken),)
        return Sample(request.request_id, taken, (1,), ids, (-1.0,), "stop", (("fake", 0),), 0)

    def _utility(self, word: str, is_free: bool) -> float:
        return self._played.get(word, 0.0) + (self._preferred.get(word, 0.0) if is_free else 0.0)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """More likely under the word itself than under another by 2 nats."""
        return [
            Score(
                request.request_id,
                (-1.0 if words_in(request.shown) == [WORDS[request.token_ids[0]]] else -3.0,),
                1,
                0,
            )
            for request in requests
        ]
