"""The supervised phase of the policy stage: top-ranked responses, the trait not shown.

The first phase of Constitutional AI, Bai et al. (2022), section 3, https://arxiv.org/abs/2212.08073.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charactertrain.models import loading
from charactertrain.models.packing import PackedRow, PromptGroup, pack
from charactertrain.models.token_budget import microbatches
from charactertrain.objectives.aggregation import token_weights
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.objectives.policy import ending_loss
from charactertrain.objectives.warm_start import supervised_loss
from charactertrain.runtime.hardware import resolve_precision
from charactertrain.runtime.worker import Worker, agreed
from charactertrain.runtime.zero import FrozenModel
from charactertrain.runtime.zero_checkpoint import read_state
from charactertrain.seeds import derive_seed
from charactertrain.stages.policy.task import (
    Phase,
    PolicyTask,
    forbidden_tokens,
    training_engine,
)
from charactertrain.stages.response_logits import (
    Models,
    end_logprobs,
    impossible,
    response_logits,
)


def warm_start_once(task: PolicyTask, worker: Worker, checkpoint: Path | None) -> bool:
    """Go on with the warm start, unless it is done or left out.

    Whether the phase after it begins anew: `checkpoint` is not its own, but the warm start's or
    None.
    """
    phase = read_state(checkpoint)["phase"] if checkpoint is not None else "warm_start"
    if task.warm_start.epochs > 0 and not agreed(worker, task.output.exists("warm_start.json")):
        assert phase == "warm_start", "a checkpoint of policy steps follows a warm start"
        warm_start(task, worker, checkpoint)
    return phase == "warm_start"


def warm_start(task: PolicyTask, worker: Worker, checkpoint: Path | None) -> None:
    """One or more supervised epochs on top-ranked responses; writes warm_start/."""
    warm = task.warm_start
    base = Path(task.model_directory)
    engine = training_engine(task, base, checkpoint)
    dtype = resolve_precision(task.precision)
    load_base = partial(loading.load_causal_lm, base, dtype)
    ends = forbidden_tokens(task)
    reference = FrozenModel(load_base, task.zero.in_dtype(dtype)) if ends else None
    models = Models(engine, reference, ends)
    per_epoch = -(-len(warm.examples) // warm.prompts_per_step)

    def take_step(step: int) -> dict[str, Any]:
        epoch, index = divmod(step, per_epoch)
        order = sorted(
            range(len(warm.examples)), key=lambda i: derive_seed(task.seed, "warm", epoch, i)
        )
        chosen = order[index * warm.prompts_per_step : (index + 1) * warm.prompts_per_step]
        values = warm_start_step(models, task, [warm.examples[i] for i in chosen], worker)
        return {**values, "grad_norm": engine.step(warm.learning_rate)}

    phase = Phase(
        name="warm_start",
        counter="warm start",
        num_steps=warm.epochs * per_epoch,
        model="warm_start",
        file="warm_start.json",
    )
    phase.run(engine, task, worker, checkpoint, take_step)
    engine.close()
    if reference is not None:
        reference.close()


def warm_start_step(
    models: Models,
    task: PolicyTask,
    examples: Sequence[PromptGroup],
    worker: Worker,
) -> dict[str, Any]:
    """Add the gradient of one step; returns its metrics."""
    num_tokens = sum(len(example.responses[0]) for example in examples)
    engine = models.policy
    spread = microbatches(
        [example.num_tokens for example in examples],
        num_workers=worker.num_workers,
        budget=task.token_budget,
    )
    loss = torch.zeros(1, device=engine.device)
    for indices in spread[worker.rank]:
        # A worker with nothing left still passes through the model, with weight zero.
        row = pack([examples[index] for index in indices or [0]]).to(engine.device)
        share = _loss_share(models, row, num_tokens) * (1.0 if indices else 0.0)
        engine.backward(share, f"examples {indices} of the step")
        loss += share.detach()
    torch.distributed.all_reduce(loss)
    return {"loss": float(loss)}


def _loss_share(models: Models, row: PackedRow, num_tokens: int) -> Tensor:
    free_NV = response_logits(models.policy, row)
    # Responses of a fixed length were drawn without an end; with it among the alternatives, they
    # would teach the policy never to end.
    logprobs_N = token_logprobs(impossible(free_NV, models.forbidden), row.token_ids_N)
    weights_N = token_weights(row.response_N, num_tokens)
    share = supervised_loss(logprobs_N, weights_N)
    if models.reference is None or not models.forbidden:
        return share
    with torch.no_grad():
        reference_ends_N = end_logprobs(response_logits(models.reference, row), models.forbidden)
    return share + ending_loss(end_logprobs(free_NV, models.forbidden), reference_ends_N, weights_N)
