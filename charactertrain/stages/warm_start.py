"""The supervised phase of the policy stage: top-ranked responses, the trait not shown.

The first phase of Constitutional AI, Bai et al. (2022), section 3, https://arxiv.org/abs/2212.08073.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from charactertrain.models.packing import PromptGroup, check_packable, pack
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.objectives.warm_start import supervised_loss
from charactertrain.runtime import training
from charactertrain.runtime.training import Worker
from charactertrain.runtime.zero import ZeroEngine, read_state
from charactertrain.seeds import derive_seed
from charactertrain.stages.policy_step import every_token, response_logits
from charactertrain.stages.policy_task import (
    PolicyTask,
    forbidden_tokens,
    training_engine,
    write_model,
)


def warm_start(task: PolicyTask, worker: Worker, checkpoint: Path | None) -> None:
    """One or more supervised epochs on top-ranked responses; writes warm_start/."""
    warm = task.warm_start
    base = Path(task.model_directory)
    engine, count = training_engine(task, base, warm.prompts_per_step, worker)
    check_packable(engine.module, task.context_tokens)
    history: list[dict[str, Any]] = []
    if checkpoint is not None:
        engine.load(checkpoint)
        history = read_state(checkpoint)["history"]
    per_epoch = -(-len(warm.examples) // warm.prompts_per_step)
    total = warm.epochs * per_epoch
    for step in range(len(history), total):
        started = time.monotonic()
        epoch, index = divmod(step, per_epoch)
        order = sorted(
            range(len(warm.examples)), key=lambda i: derive_seed(task.seed, "warm", epoch, i)
        )
        chosen = order[index * warm.prompts_per_step : (index + 1) * warm.prompts_per_step]
        examples = [warm.examples[i] for i in chosen]
        values = _warm_start_step(engine, task, examples, count, worker)
        grad_norm = engine.step(warm.learning_rate)
        values |= {"grad_norm": grad_norm, "seconds": time.monotonic() - started}
        history.append({"phase": "warm_start", "step": step + 1, **values})
        worker.send({"warm start": f"{step + 1}/{total}", **values})
        if (step + 1) % task.checkpoint_every == 0 and step + 1 < total:
            state = {"phase": "warm_start", "history": history}
            training.report_checkpoint(partial(engine.save, state=state), {"step": step + 1})
    write_model(engine, task, worker, "warm_start")
    if worker.rank == 0:
        task.output.write_bytes("warm_start.json", json.dumps(history).encode())
    torch.distributed.barrier()
    engine.close()


def _warm_start_step(
    engine: ZeroEngine,
    task: PolicyTask,
    examples: Sequence[PromptGroup],
    count: int,
    worker: Worker,
) -> dict[str, Any]:
    num_tokens = sum(len(example.responses[0]) for example in examples)
    # Fixed responses were drawn without an end; with it among the alternatives, they would teach
    # the policy never to end.
    forbidden = forbidden_tokens(task)
    mine = examples[worker.rank :: worker.num_workers]
    loss = torch.zeros(1, device=engine.device)
    for index in range(count):
        batch = mine[index * task.microbatch_size : (index + 1) * task.microbatch_size]
        # A worker with nothing left still passes through the model, with weight zero.
        row = pack(batch or examples[:1]).to(engine.device)
        logprobs_BT = token_logprobs(response_logits(engine, row, forbidden), row.token_ids_N[None])
        share = supervised_loss(logprobs_BT, every_token(logprobs_BT), num_tokens=num_tokens)
        share = share * (1.0 if batch else 0.0)
        engine.backward(share)
        loss += share.detach()
    torch.distributed.all_reduce(loss)
    return {"loss": float(loss)}
