"""Do the engines hold the weights that are trained? Seen by what both say of the same tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError
from torch import Tensor

from charactertrain.exceptions import SamplingError, TrainingError
from charactertrain.models.packing import pack
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.runtime.sampling import Failure, ScoreRequest
from charactertrain.runtime.training_engine import TrainingEngine
from charactertrain.stages.policy.rollouts import Rollout
from charactertrain.stages.policy.step import prompt_group
from charactertrain.stages.response_logits import response_logits
from charactertrain.templates import plain_conversation

_LEAST_TOKENS = 256
"""That both score, where the step has so many."""
_TIMEOUT_SECONDS = 600.0


def probe(
    policy: TrainingEngine,
    handles: Sequence[Any],
    groups: Sequence[Sequence[Rollout]],
    *,
    tolerance: float,
) -> dict[str, float]:
    """How far engines and trainer are apart, after a weight update; every rank must call.

    The mean, since in bf16 single tokens differ by up to half a nat between two right computations,
    and the mean by a twentieth.

    Args:
        policy: The trainer's.
        handles: Of the engines, on rank 0; elsewhere none.
        groups: Of the step; both score the first of them, as many as have enough tokens.
        tolerance: Nats.

    Returns:
        `sync_difference`, the mean absolute difference of their logprobs in nats, of the engine
        that is furthest off; nothing if there are no tokens to score, or no engines.

    Raises:
        TrainingError: It exceeds the tolerance: an engine would sample from other weights than
            those being trained. Raised on every rank.
    """
    chosen = _chosen(groups)
    if not chosen:
        return {}
    requests = [
        ScoreRequest("probe", plain_conversation(rollout.prompt), rollout.token_ids)
        for group in chosen
        for rollout in group
    ]
    # While the trainer computes its own.
    calls = [handle.score.remote(requests) for handle in handles]
    with torch.no_grad():
        row = pack([prompt_group(group) for group in chosen]).to(policy.device)
        logprobs_N = token_logprobs(response_logits(policy, row), row.token_ids_N).cpu()
    box = [max(_differences(calls, logprobs_N), default=None)]
    torch.distributed.broadcast_object_list(box, src=0)
    difference = box[0]
    if difference is None:
        return {}
    # Not "greater": nan is no agreement either.
    if not difference <= tolerance:
        raise TrainingError(
            "after a weight update the sampler's and the trainer's log-probabilities of the same "
            f"{len(logprobs_N)} tokens differ by {difference:.3f} nats on average, more than "
            f"policy.sync_tolerance {tolerance}: the engine does not hold the trained weights"
        )
    return {"sync_difference": difference}


def _chosen(groups: Sequence[Sequence[Rollout]]) -> list[list[Rollout]]:
    chosen: list[list[Rollout]] = []
    num_tokens = 0
    for group in groups:
        # Less their last tokens: to score a token an engine wants room for one more.
        cut = [replace(r, token_ids=r.token_ids[:-1]) for r in group if len(r.token_ids) > 1]
        if cut and num_tokens < _LEAST_TOKENS:
            chosen.append(cut)
            num_tokens += sum(len(rollout.token_ids) for rollout in cut)
    return chosen


def _differences(calls: Sequence[Any], logprobs_N: Tensor) -> Iterator[float]:
    """Of each engine that answers."""
    for call in calls:
        try:
            scores = ray.get(call, timeout=_TIMEOUT_SECONDS)
        except (RayActorError, ObjectLostError):
            # It will write nothing more. One in its place is sent the weights, and probed then.
            continue
        refused = [score for score in scores if isinstance(score, Failure)]
        if refused:
            raise SamplingError(
                "an engine could not score, after a weight update, what it had written before: "
                f"{refused[0].reason}: {refused[0].detail}"
            )
        theirs_N = torch.tensor([value for score in scores for value in score.logprobs])
        yield float((logprobs_N - theirs_N).abs().mean())
