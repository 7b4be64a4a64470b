"""The worker's side of the policy stage: a supervised warm start, then group-relative policy steps.

Shapes: P prompts, G responses per prompt, R responses of a microbatch, V vocabulary. A microbatch is
one packed row, so B is 1 and T its response tokens.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.packing import PackedRow, PromptGroup, check_packable, pack
from charactertrain.objectives import advantages as advantage
from charactertrain.objectives.logprobs import entropy, masked_sum, token_logprobs, token_mean
from charactertrain.objectives.policy import clipped_policy_loss, kl_k2, kl_k3
from charactertrain.objectives.warm_start import supervised_loss
from charactertrain.records import Prompt
from charactertrain.runtime import training
from charactertrain.runtime.hardware import resolve_precision
from charactertrain.runtime.sampling import Score, ScoreRequest
from charactertrain.runtime.training import Worker
from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings, read_state
from charactertrain.seeds import derive_seed
from charactertrain.stages.rollouts import Rollout, RolloutCollector, RolloutSettings
from charactertrain.storage import Directory
from charactertrain.templates import plain_conversation

_ADVANTAGE_EPSILON = 1e-4


@dataclass(frozen=True)
class WarmStartTask:
    """The supervised pass."""

    examples: tuple[PromptGroup, ...]
    """A prompt and its best response each."""
    epochs: int
    prompts_per_step: int
    learning_rate: float


@dataclass(frozen=True)
class OptimiseTask:
    """The policy steps."""

    prompts: tuple[Prompt, ...]
    num_steps: int
    prompts_per_step: int
    rollouts: RolloutSettings
    advantages: str
    clip_low: float
    clip_high: float
    kl_coef: float
    learning_rate: float
    warmup_steps: int
    sync_tolerance: float


@dataclass(frozen=True)
class PolicyTask:
    """All that a worker needs; plain values."""

    model_directory: str
    precision: str
    context_tokens: int
    warm_start: WarmStartTask
    optimise: OptimiseTask
    fixed_ending: bool
    """Responses cannot end by themselves, so tokens that end one have probability zero."""
    microbatch_size: int
    zero_stage: int
    offload: bool
    weight_decay: float
    max_grad_norm: float
    checkpoint_every: int
    seed: int
    output: Directory


def train(arguments: dict[str, Any]) -> None:
    """Warm start, optimise, and write the policy: the function that Ray Train runs."""
    task: PolicyTask = arguments["task"]
    worker = training.join_group(arguments)
    with training.last_checkpoint() as checkpoint:
        phase = read_state(checkpoint)["phase"] if checkpoint is not None else "warm_start"
        if task.warm_start.epochs > 0 and not task.output.exists("warm_start.json"):
            assert phase == "warm_start", "a checkpoint of policy steps follows a warm start"
            _warm_start(task, worker, checkpoint)
        _optimise(task, worker, arguments, checkpoint if phase == "optimise" else None)


def _engine(
    task: PolicyTask, directory: Path, prompts_per_step: int, worker: Worker
) -> tuple[ZeroEngine, int]:
    """A training engine on the weights in `directory`, and its microbatches per step."""
    dtype = resolve_precision(task.precision)
    count = -(-prompts_per_step // (worker.num_workers * task.microbatch_size))
    settings = _zero_settings(task, dtype, count)
    return ZeroEngine(partial(loading.load_causal_lm, directory, dtype), settings), count


def _zero_settings(task: PolicyTask, dtype: torch.dtype, microbatches: int) -> ZeroSettings:
    return ZeroSettings(
        stage=task.zero_stage,
        offload=task.offload,
        bf16=dtype is torch.bfloat16,
        microbatches=microbatches,
        weight_decay=task.weight_decay,
        max_grad_norm=task.max_grad_norm,
    )


# Warm start


def _warm_start(task: PolicyTask, worker: Worker, checkpoint: Path | None) -> None:
    """One or more supervised epochs on top-ranked responses; writes warm_start/."""
    warm = task.warm_start
    base = Path(task.model_directory)
    engine, count = _engine(task, base, warm.prompts_per_step, worker)
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
    _write_model(engine, task, worker, "warm_start")
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
    mine = examples[worker.rank :: worker.num_workers]
    loss = torch.zeros(1, device=engine.device)
    for index in range(count):
        batch = mine[index * task.microbatch_size : (index + 1) * task.microbatch_size]
        # A worker with nothing left still passes through the model, with weight zero.
        row = pack(batch or examples[:1]).to(engine.device)
        logprobs_BT = token_logprobs(_response_logits(engine, row, ()), row.token_ids_N[None])
        share = supervised_loss(logprobs_BT, _all(logprobs_BT), num_tokens=num_tokens)
        share = share * (1.0 if batch else 0.0)
        engine.backward(share)
        loss += share.detach()
    torch.distributed.all_reduce(loss)
    return {"loss": float(loss)}


# Logits


def _response_logits(
    model: ZeroEngine | FrozenModel, row: PackedRow, forbidden: Sequence[int]
) -> Tensor:
    """Logits that predict the response tokens, shape BTV; forbidden tokens are impossible."""
    logits: Tensor = model.forward(
        **row.model_inputs(), use_cache=False, logits_to_keep=row.predictor_N
    ).logits
    if forbidden:
        ids = torch.tensor(list(forbidden), device=logits.device)
        logits = logits.index_fill(-1, ids, float("-inf"))
    return logits


def _all(values_BT: Tensor) -> Tensor:
    """A mask in which every token counts: a packed row has no padding."""
    return torch.ones_like(values_BT, dtype=torch.bool)


# Optimisation


def _optimise(
    task: PolicyTask, worker: Worker, arguments: dict[str, Any], checkpoint: Path | None
) -> None:
    """Sample, score, step and send weights, `num_steps` times; writes model/."""
    from charactertrain.runtime.weight_sync.sender import WeightSender

    base = Path(task.model_directory)
    forbidden = tuple(loading.end_token_ids(base)) if task.fixed_ending else ()
    with _starting_weights(task) as start:
        engine, count = _engine(task, start, task.optimise.prompts_per_step, worker)
    check_packable(engine.module, task.context_tokens)
    dtype = resolve_precision(task.precision)
    reference = FrozenModel(
        partial(loading.load_causal_lm, base, dtype), _zero_settings(task, dtype, count)
    )
    models = Models(engine, reference, forbidden)
    history: list[dict[str, Any]] = []
    if checkpoint is not None:
        engine.load(checkpoint)
        history = read_state(checkpoint)["history"]
    engines = [arguments["policy_engine"]] if worker.rank == 0 else []
    collector = RolloutCollector(
        arguments["policy_engine"],
        arguments["reward_engine"],
        loading.load_tokenizer(base),
        task.optimise.rollouts,
    )
    # Under ZeRO-3 parameters are initialised by the first forward; weights sent before it are not.
    _warm_up(engine)
    sender = WeightSender(engine.module, engines, rank=worker.rank, dtype=dtype)
    first_step = len(history)
    sender.send(str(first_step))
    for step in range(first_step, task.optimise.num_steps):
        started = time.monotonic()
        groups = _broadcast(
            collector.collect(step_prompts(task, step), step) if worker.rank == 0 else None
        )
        sampled = time.monotonic()
        values = _policy_step(models, task, groups, count, worker)
        rate = training.learning_rate_at(
            step, peak=task.optimise.learning_rate, warmup_steps=task.optimise.warmup_steps
        )
        values["grad_norm"] = engine.step(rate)
        stepped = time.monotonic()
        sender.send(str(step + 1))
        synced = time.monotonic()
        if step == first_step:
            values["sync_difference"] = _check_sync(engine, task, arguments, groups, worker)
        values |= {
            "seconds": time.monotonic() - started,
            "sample_seconds": sampled - started,
            "train_seconds": stepped - sampled,
            "sync_seconds": synced - stepped,
        }
        history.append({"phase": "optimise", "step": step + 1, **values})
        worker.send({"step": f"{step + 1}/{task.optimise.num_steps}", **values})
        if (step + 1) % task.checkpoint_every == 0 and step + 1 < task.optimise.num_steps:
            state = {"phase": "optimise", "history": history}
            training.report_checkpoint(partial(engine.save, state=state), {"step": step + 1})
    _write_model(engine, task, worker, "model")
    if worker.rank == 0:
        task.output.write_bytes("optimise.json", json.dumps(history).encode())
    torch.distributed.barrier()
    sender.close()


def _starting_weights(task: PolicyTask) -> AbstractContextManager[Path]:
    """A context with the directory that the policy starts from."""
    if task.warm_start.epochs > 0:
        return task.output.child("warm_start").on_local_disk()
    return nullcontext(Path(task.model_directory))


def step_prompts(task: PolicyTask, step: int) -> list[Prompt]:
    """The prompts of a step: epochs of permutations that depend on the seed alone."""
    prompts, size = task.optimise.prompts, task.optimise.prompts_per_step

    @cache
    def order(epoch: int) -> list[Prompt]:
        return sorted(prompts, key=lambda p: derive_seed(task.seed, "policy", epoch, p.prompt_id))

    places = [divmod(position, len(prompts)) for position in range(step * size, (step + 1) * size)]
    return [order(epoch)[index] for epoch, index in places]


def _broadcast(groups: list[list[Rollout]] | None) -> list[list[Rollout]]:
    """Rank 0's rollouts on every rank."""
    box = [groups]
    torch.distributed.broadcast_object_list(box, src=0)
    assert box[0] is not None, "rank 0 sends rollouts"
    return box[0]


def _advantages(kind: str, rewards_PG: Tensor) -> Tensor:
    match kind:
        case "grpo":
            return advantage.grpo_advantages(rewards_PG, epsilon=_ADVANTAGE_EPSILON)
        case "centered":
            return advantage.centered_advantages(rewards_PG)
        case "rloo":
            return advantage.leave_one_out_advantages(rewards_PG)
        case _:
            raise AssertionError(f"no advantages called {kind}")


@dataclass(frozen=True)
class Models:
    """What the tokens of a policy step pass through."""

    policy: ZeroEngine
    reference: FrozenModel
    forbidden: tuple[int, ...]
    """Tokens that no response can hold."""


def _policy_step(
    models: Models,
    task: PolicyTask,
    groups: list[list[Rollout]],
    count: int,
    worker: Worker,
) -> dict[str, Any]:
    """Add the gradient of one step; returns its metrics."""
    rewards_PG = torch.tensor([[rollout.reward for rollout in group] for group in groups])
    advantages_PG = _advantages(task.optimise.advantages, rewards_PG)
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
    mine = list(zip(groups, advantages_PG.tolist(), strict=True))[worker.rank :: worker.num_workers]
    sums = torch.zeros(5, dtype=torch.float64, device=models.policy.device)
    for index in range(count):
        batch = mine[index * task.microbatch_size : (index + 1) * task.microbatch_size]
        weight = 1.0 if batch else 0.0
        if not batch:
            batch = [(groups[0], [0.0] * len(groups[0]))]
        advantages_R = torch.tensor([a for _, values in batch for a in values])
        share, statistics = _microbatch(
            models, task, [group for group, _ in batch], advantages_R, num_tokens
        )
        models.policy.backward(share * weight)
        sums += statistics * weight
    torch.distributed.all_reduce(sums)
    loss, kl_sum, entropy_sum, ratio_sum, clipped_sum = sums.tolist()
    return {
        "loss": loss,
        "reward": float(rewards_PG.mean()),
        "reward_std": float(rewards_PG.std()),
        "kl": kl_sum / num_tokens,
        "entropy": entropy_sum / num_tokens,
        "ratio": ratio_sum / num_tokens,
        "clip_fraction": clipped_sum / num_tokens,
        "zero_variance_fraction": float(advantage.zero_variance_groups(rewards_PG).float().mean()),
        "length_tokens": num_tokens / rewards_PG.numel(),
    }


def _microbatch(
    models: Models,
    task: PolicyTask,
    groups: Sequence[list[Rollout]],
    advantages_R: Tensor,
    num_tokens: int,
) -> tuple[Tensor, Tensor]:
    """The microbatch's share of the loss, and sums of (loss, KL, entropy, ratio, clipped)."""
    row = pack([_prompt_group(group) for group in groups]).to(models.policy.device)
    token_ids_BT = row.token_ids_N[None]
    sampled = [logprob for group in groups for rollout in group for logprob in rollout.logprobs]
    sampler_logprobs_BT = torch.tensor([sampled]).to(token_ids_BT.device)
    with torch.no_grad():
        reference_logprobs_BT = token_logprobs(
            _response_logits(models.reference, row, models.forbidden), token_ids_BT
        )
    logits_BTV = _response_logits(models.policy, row, models.forbidden)
    logprobs_BT = token_logprobs(logits_BTV, token_ids_BT)
    mask_BT = _all(logprobs_BT)
    terms = clipped_policy_loss(
        logprobs_BT,
        sampler_logprobs_BT,
        advantages_R.to(mask_BT.device)[row.response_N][None],
        mask_BT,
        clip_low=task.optimise.clip_low,
        clip_high=task.optimise.clip_high,
        num_tokens=num_tokens,
    )
    kl_loss = token_mean(kl_k2(logprobs_BT, reference_logprobs_BT), mask_BT, num_tokens=num_tokens)
    share = terms.loss + task.optimise.kl_coef * kl_loss
    with torch.no_grad():
        kl_sum = masked_sum(kl_k3(logprobs_BT, reference_logprobs_BT), mask_BT)
        entropy_sum = masked_sum(entropy(logits_BTV), mask_BT)
    statistics = torch.stack(
        [share.detach(), kl_sum, entropy_sum, terms.ratio_sum, terms.clipped_sum]
    )
    return share, statistics.double()


def _prompt_group(rollouts: Sequence[Rollout]) -> PromptGroup:
    """The rollouts of one prompt as token ids."""
    return PromptGroup(
        rollouts[0].prompt_token_ids, tuple(rollout.token_ids for rollout in rollouts)
    )


def _warm_up(engine: ZeroEngine) -> None:
    with torch.no_grad():
        _response_logits(engine, pack([PromptGroup((1, 1), ((1, 1),))]).to(engine.device), ())


def _check_sync(
    engine: ZeroEngine,
    task: PolicyTask,
    arguments: dict[str, Any],
    groups: list[list[Rollout]],
    worker: Worker,
) -> float:
    """Largest difference between the engine's and the trainer's logprobs of a fixed probe.

    Raises TrainingError on every rank if it exceeds the tolerance: the engine would sample from
    other weights than those being trained.
    """
    prompt = step_prompts(task, 0)[0]
    probe = groups[0][0]
    with torch.no_grad():
        row = pack([_prompt_group([probe])]).to(engine.device)
        logprobs_BT = token_logprobs(_response_logits(engine, row, ()), row.token_ids_N[None])
    difference = [0.0]
    if worker.rank == 0:
        request = ScoreRequest("probe", plain_conversation(prompt.text), probe.token_ids)
        (score,) = ray.get(arguments["policy_engine"].score.remote([request]))
        assert isinstance(score, Score), score
        theirs = torch.tensor(score.logprobs)
        difference = [float((logprobs_BT[0].cpu() - theirs).abs().max())]
    torch.distributed.broadcast_object_list(difference, src=0)
    if difference[0] > task.optimise.sync_tolerance:
        raise TrainingError(
            f"after the first weight update the sampler's and the trainer's log-probabilities of "
            f"the same {len(probe.token_ids)} tokens differ by up to {difference[0]:.3f} nats, "
            f"more than policy.sync_tolerance {task.optimise.sync_tolerance}: the engine does not "
            "hold the trained weights"
        )
    return difference[0]


def _write_model(engine: ZeroEngine, task: PolicyTask, worker: Worker, name: str) -> None:
    """Write the weights as a Hugging Face directory; every rank gathers, rank 0 writes."""
    base = Path(task.model_directory)
    state = engine.full_state(loading.stored_dtype(base))
    if worker.rank == 0:
        with tempfile.TemporaryDirectory(prefix="charactertrain-export-") as temporary:
            path = Path(temporary)
            engine.module.save_pretrained(path, state_dict=state)
            loading.load_tokenizer(base).save_pretrained(path)
            task.output.upload(path, name)
    torch.distributed.barrier()
