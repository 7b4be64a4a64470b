"""Do the engines hold the weights that are trained? Seen by what both say of the same tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError

from charactertrain.exceptions import SamplingError, TrainingError
from charactertrain.models.packing import pack
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.runtime.sampling import Failure, ScoreRequest
from charactertrain.runtime.training_engine import TrainingEngine
from charactertrain.stages.policy_step import prompt_group
from charactertrain.stages.response_logits import response_logits
from charactertrain.stages.rollouts import Rollout
from charactertrain.templates import plain_conversation


def probe(
    policy: TrainingEngine, handles: Sequence[Any], group: Sequence[Rollout], *, tolerance: float
) -> dict[str, float]:
    """How far engines and trainer are apart, after a weight update; every rank must call.

    The mean, since in bf16 single tokens differ by up to half a nat between two right computations,
    and the mean by a twentieth.

    Args:
        policy: The trainer's.
        handles: Of the engines, on rank 0; elsewhere none.
        group: The responses that both score.
        tolerance: Nats.

    Returns:
        `sync_difference`, the mean absolute difference of their logprobs in nats, of the engine
        that is furthest off; nothing if the group has no tokens to score.

    Raises:
        TrainingError: It exceeds the tolerance: an engine would sample from other weights than
            those being trained. Raised on every rank.
    """
    # Less their last tokens: to score a token an engine wants room for one more.
    group = [replace(r, token_ids=r.token_ids[:-1]) for r in group if len(r.token_ids) > 1]
    if not group:
        return {}
    shown = plain_conversation(group[0].prompt)
    requests = [ScoreRequest("probe", shown, rollout.token_ids) for rollout in group]
    # While the trainer computes its own.
    calls = [handle.score.remote(requests) for handle in handles]
    with torch.no_grad():
        row = pack([prompt_group(group)]).to(policy.device)
        logprobs_N = token_logprobs(response_logits(policy, row), row.token_ids_N).cpu()
    difference = [0.0]
    for call in calls:
        try:
            scores = ray.get(call)
        except (RayActorError, ObjectLostError):
            # It will write nothing more. One in its place is sent the weights, and probed then.
            continue
        refused = [score for score in scores if isinstance(score, Failure)]
        if refused:
            raise SamplingError(f"the probe of a weight update: {refused[0].detail}")
        theirs = torch.tensor([value for score in scores for value in score.logprobs])
        difference[0] = max(difference[0], float((logprobs_N - theirs).abs().mean()))
    torch.distributed.broadcast_object_list(difference, src=0)
    # Not "greater": nan is no agreement either.
    if not difference[0] <= tolerance:
        raise TrainingError(
            "after a weight update the sampler's and the trainer's log-probabilities of the same "
            f"{len(logprobs_N)} tokens differ by {difference[0]:.3f} nats on average, more than "
            f"policy.sync_tolerance {tolerance}: the engine does not hold the trained weights"
        )
    return {"sync_difference": difference[0]}
