"""The microbatches of an optimizer step: so many tokens at a time, as many for every worker."""

import heapq
from collections.abc import Sequence


def microbatches(lengths: Sequence[int], *, num_workers: int, budget: int) -> list[list[list[int]]]:
    """Items spread over workers and microbatches, loads as even as they get.

    The longest item goes first, each to the emptiest microbatch (Graham, 1969,
    https://doi.org/10.1137/0117039), of as few as keep to the budget in this way. The same lengths
    give the same microbatches on every worker.

    Args:
        lengths: Tokens of each item, such as a prompt with all its responses.
        num_workers: Every one gets as many microbatches, so that all reach the same collectives.
        budget: Tokens of a microbatch; an item that is longer has one to itself.

    Returns:
        [worker][microbatch] are indices of items. Some microbatches may be empty where there are
        fewer items than workers.
    """
    assert num_workers > 0 and budget > 0
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    # What is over the budget in one item takes no room from others.
    least = sum(min(length, budget) for length in lengths)
    per_worker = max(1, -(-least // (budget * num_workers)))
    while True:
        loads, bins = _spread(order, lengths, num_workers * per_worker)
        if all(load <= budget or len(items) == 1 for load, items in zip(loads, bins, strict=True)):
            break
        # By a tenth at a time: one at a time would take as many rounds as there are items.
        per_worker += 1 + per_worker // 10
    # Microbatches that run at the same time are about as long.
    by_load = sorted(range(len(bins)), key=lambda index: (-loads[index], index))
    return [[bins[index] for index in by_load[rank::num_workers]] for rank in range(num_workers)]


def _spread(
    order: Sequence[int], lengths: Sequence[int], num_bins: int
) -> tuple[list[int], list[list[int]]]:
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    heap = [(0, index) for index in range(num_bins)]
    for item in order:
        load, index = heapq.heappop(heap)
        bins[index].append(item)
        heapq.heappush(heap, (load + lengths[item], index))
    loads = [0] * num_bins
    for load, index in heap:
        loads[index] = load
    return loads, bins
