"""A ranking of three responses, for tests of what is made of it."""

from charactertrain.records import Ranking

RANKING = Ranking(
    prompt_id="p1",
    trait_id="honest",
    split="train",
    response_ids=("b", "c", "a"),
    utilities=(1.0, 0.0, -1.0),
    # Of b over c, of b over a, of c over a.
    pair_probabilities=(0.7, 0.95, 0.8),
    num_tokens=(6, 7, 2),
    method="contrast",
    swap_consistency=None,
    cyclic_triads=0.0,
    split_half=None,
    opinions=(),
    prompt_tokens=60,
    cached_tokens=0,
)
