"""What `test_zero.py` runs in every process of a group: rank, size, port, models, where to write.

python zero_cases.py RANK WORLD_SIZE PORT BASE POLICY DIRECTORY
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.runtime.training import Worker
from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings, read_state
from charactertrain.stages import policy_step as step_module
from charactertrain.stages import preference_loop
from charactertrain.stages.policy_step import Models
from charactertrain.stages.policy_task import OptimiseTask, PolicyTask, WarmStartTask
from charactertrain.stages.preference_loop import PreferenceTask, RankedPrompt
from charactertrain.stages.rollouts import Rollout, RolloutSettings
from charactertrain.storage import open_directory

STAGES = (0, 2, 3)
MICROBATCHES = (1, 4)
NUM_PROMPTS = 4
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 0.1
"""Below the norms that occur, so that clipping takes part in what is compared."""
END_TOKEN = 0
FIRST_STEP = 0.1
"""Far above the resolution of bf16 near 1."""

State = dict[str, Tensor]


def ranked_prompts() -> tuple[RankedPrompt, ...]:
    """Prompts with two or three responses of unlike lengths, and pairs of unlike weights."""
    random = torch.Generator().manual_seed(1)
    prompts = []
    for index in range(NUM_PROMPTS):
        question = tuple(torch.randint(4, 200, (5 + index,), generator=random).tolist())
        lengths = [3 + 4 * index, 9, 17 - 2 * index][: 2 + index % 2]
        responses = tuple(
            tuple(torch.randint(4, 200, (n,), generator=random).tolist()) for n in lengths
        )
        places = itertools.combinations(range(len(responses)), 2)
        prompts.append(
            RankedPrompt(
                prompt_id=f"p{index}",
                trait_id="warm",
                group=PromptGroup(question, responses),
                pairs=tuple((i, j, 0.6 + 0.1 * j, 1.0 + index + i) for i, j in places),
            )
        )
    return tuple(prompts)


def preference_task(model: Path, microbatch_size: int) -> PreferenceTask:
    return PreferenceTask(
        model_directory=str(model),
        precision="fp32",
        context_tokens=128,
        train=ranked_prompts(),
        validation=(),
        epochs=2,
        prompts_per_step=NUM_PROMPTS,
        microbatch_size=microbatch_size,
        learning_rate=LEARNING_RATE,
        warmup_share=0.0,
        centering=0.1,
        zero_stage=0,
        offload=False,
        weight_decay=0.1,
        max_grad_norm=MAX_GRAD_NORM,
        checkpoint_every=1,
        seed=3,
        output=open_directory("/nowhere"),
    )


def policy_task(model: Path, microbatch_size: int) -> PolicyTask:
    sampling = SamplingSettings(1.0, 1.0, 8, 0, ())
    return PolicyTask(
        model_directory=str(model),
        precision="fp32",
        context_tokens=128,
        warm_start=WarmStartTask((), 0, 1, 0.0),
        optimise=OptimiseTask(
            prompts=(),
            num_steps=1,
            prompts_per_step=NUM_PROMPTS,
            rollouts=RolloutSettings(sampling, 3, 0.0, 0),
            advantages="grpo",
            clip_low=0.2,
            clip_high=0.3,
            kl_coef=0.5,
            learning_rate=LEARNING_RATE,
            warmup_steps=0,
            sync_tolerance=0.1,
        ),
        fixed_ending=True,
        microbatch_size=microbatch_size,
        zero_stage=0,
        offload=False,
        weight_decay=0.1,
        max_grad_norm=MAX_GRAD_NORM,
        checkpoint_every=1,
        seed=3,
        output=open_directory("/nowhere"),
    )


def rollout_groups() -> list[list[Rollout]]:
    """Groups of three rollouts of unlike lengths, with the sampler a little off the policy."""
    random = torch.Generator().manual_seed(2)
    groups = []
    for index in range(NUM_PROMPTS):
        question = tuple(torch.randint(4, 200, (4 + index,), generator=random).tolist())
        group = []
        for place in range(3):
            length = 3 + 2 * index + place
            group.append(
                Rollout(
                    prompt_token_ids=question,
                    token_ids=tuple(torch.randint(4, 200, (length,), generator=random).tolist()),
                    logprobs=tuple((-6 + torch.randn(length, generator=random)).tolist()),
                    reward=float(torch.randn(1, generator=random)),
                    weight_version="0",
                )
            )
        groups.append(group)
    return groups


def zero_settings(stage: int, count: int, *, bf16: bool = False) -> ZeroSettings:
    return ZeroSettings(
        stage=stage,
        offload=False,
        bf16=bf16,
        microbatches=count,
        weight_decay=0.1,
        max_grad_norm=MAX_GRAD_NORM,
    )


def preference_engine(base: Path, settings: ZeroSettings) -> ZeroEngine:
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    return ZeroEngine(partial(loading.load_preference_model, base, dtype, seed=3), settings)


def full_state(engine: ZeroEngine) -> State:
    return engine.full_state(torch.float32)


def preference_step(base: Path, worker: Worker, stage: int, count: int) -> dict[str, Any]:
    """Loss, gradient norm and parameters of one step of the preference model."""
    task = preference_task(base, NUM_PROMPTS // count)
    engine = preference_engine(base, zero_settings(stage, count))
    before = full_state(engine)
    values = preference_loop._train_step(engine, task, 0, count, worker)
    after = full_state(engine)
    engine.close()
    return {"before": before, "after": after, **values}


def policy_step(base: Path, policy: Path, worker: Worker, stage: int, count: int) -> dict[str, Any]:
    """The same of the policy, with a reference that differs from it."""
    task = policy_task(base, NUM_PROMPTS // count)
    settings = zero_settings(stage, count)
    engine = ZeroEngine(partial(loading.load_causal_lm, policy, torch.float32), settings)
    reference = FrozenModel(partial(loading.load_causal_lm, base, torch.float32), settings)
    before = full_state(engine)
    models = Models(engine, reference, (END_TOKEN,))
    values = step_module.policy_step(models, task, rollout_groups(), count, worker)
    values["grad_norm"] = engine.step(LEARNING_RATE)
    after = full_state(engine)
    engine.close()
    return {"before": before, "after": after, **values}


def plain_preference_step(base: Path) -> dict[str, Any]:
    """The preference model's step without DeepSpeed, in one piece."""
    model = loading.load_preference_model(base, torch.float32, seed=3)
    loss, _, weight = preference_loop._microbatch_loss(plain_engine(model), ranked_prompts(), 0.1)
    return {"loss": float(loss) / weight, **plain_step(model, loss / weight)}


def plain_policy_step(base: Path, policy: Path) -> dict[str, Any]:
    """The policy's step without DeepSpeed, in one piece."""
    policy_model = loading.load_causal_lm(policy, torch.float32)
    reference = loading.load_causal_lm(base, torch.float32)
    models = Models(plain_engine(policy_model), plain_engine(reference), (END_TOKEN,))
    groups = rollout_groups()
    rewards_PG = torch.tensor([[rollout.reward for rollout in group] for group in groups])
    advantages_R = step_module.advantages_of("grpo", rewards_PG).flatten()
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
    task = policy_task(base, NUM_PROMPTS)
    loss, _ = step_module.microbatch_loss(models, task, groups, advantages_R, num_tokens)
    return {"loss": float(loss), **plain_step(policy_model, loss)}


def plain_engine(model: Any) -> Any:
    """What the stages' functions need of an engine."""
    return SimpleNamespace(module=model, forward=model.forward, device=torch.device("cpu"))


def plain_step(model: Any, loss: Tensor) -> dict[str, Any]:
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95)).step()
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"grad_norm": float(norm), "after": after}


def resumed(base: Path, worker: Worker, stage: int, directory: Path) -> dict[str, Any]:
    """Parameters after two steps, undisturbed and with a checkpoint taken up between them."""
    task, count = preference_task(base, 1), 4
    undisturbed = preference_engine(base, zero_settings(stage, count))
    first = preference_loop._train_step(undisturbed, task, 0, count, worker)
    # As Ray Train does: each rank has a directory of its own, and all files end up in one.
    mine, merged = directory / f"rank{worker.rank}", directory / "merged"
    undisturbed.save(mine, {"history": [first]})
    torch.distributed.barrier()
    if worker.rank == 0:
        for rank in range(worker.num_workers):
            shutil.copytree(directory / f"rank{rank}", merged, dirs_exist_ok=True)
    torch.distributed.barrier()
    preference_loop._train_step(undisturbed, task, 1, count, worker)
    expected = full_state(undisturbed)
    undisturbed.close()
    engine = preference_engine(base, zero_settings(stage, count))
    engine.load(merged)
    preference_loop._train_step(engine, task, 1, count, worker)
    found = full_state(engine)
    refusal = load_from_another_layout(engine, worker, merged)
    engine.close()
    return {
        "expected": expected,
        "found": found,
        "history": read_state(merged)["history"],
        "refusal": refusal,
    }


def load_from_another_layout(engine: ZeroEngine, worker: Worker, merged: Path) -> str:
    """What is said about a checkpoint of seven workers."""
    if worker.rank == 0:
        file = merged / "charactertrain.json"
        state = json.loads(file.read_text())
        file.write_text(json.dumps({**state, "layout": {**state["layout"], "workers": 7}}))
    torch.distributed.barrier()
    try:
        engine.load(merged)
    except TrainingError as error:
        return str(error)
    return ""


def first_bf16_step(base: Path, worker: Worker, stage: int) -> Tensor:
    """How far the last norm's weights move in the first step under bf16."""
    task = preference_task(base, NUM_PROMPTS)
    engine = preference_engine(base, zero_settings(stage, 1, bf16=True))
    before = full_state(engine)
    loss, _, weight = preference_loop._microbatch_loss(engine, task.train, 0.0)
    engine.backward(loss / weight / worker.num_workers)
    engine.step(FIRST_STEP)
    after = full_state(engine)
    engine.close()
    return (after["model.norm.weight"] - before["model.norm.weight"]) if after else torch.zeros(0)


def broken(base: Path, worker: Worker, stage: int) -> dict[str, Any]:
    """What happens when the last rank's second of two microbatches has a loss that is no number."""
    task = preference_task(base, 2)
    engine = preference_engine(base, zero_settings(stage, 2))
    before = full_state(engine)
    message = ""
    prompts = task.train[:2]
    try:
        for index in range(2):
            loss, _, _ = preference_loop._microbatch_loss(engine, prompts, 0.0)
            is_broken = index == 1 and worker.rank == worker.num_workers - 1
            engine.backward(loss * (float("nan") if is_broken else 1.0))
        engine.step(LEARNING_RATE)
    except TrainingError as error:
        message = str(error)
    after = full_state(engine)
    engine.close()
    return {"before": before, "after": after, "message": message}


def exploded(base: Path, worker: Worker, stage: int) -> str:
    """What is said about a gradient that is no number, of a loss that is one."""
    engine = preference_engine(base, zero_settings(stage, 1))
    rewards_R = preference_loop.group_rewards(engine, [ranked_prompts()[worker.rank].group])
    try:
        # sqrt has no derivative at 0.
        engine.backward((rewards_R - rewards_R.detach()).abs().sum().sqrt())
        engine.step(LEARNING_RATE)
    except TrainingError as error:
        return str(error)
    finally:
        engine.close()
    return ""


def bf16_norm(base: Path, worker: Worker, stage: int) -> Tensor:
    """The last norm's weights, all 1 at first, after steps each too small for bf16 near 1."""
    task = preference_task(base, NUM_PROMPTS)
    engine = preference_engine(base, zero_settings(stage, 1, bf16=True))
    for _ in range(60):
        loss, _, weight = preference_loop._microbatch_loss(engine, task.train, 0.0)
        engine.backward(loss / weight / worker.num_workers)
        engine.step(1e-4)
    norm = full_state(engine).get("model.norm.weight", torch.zeros(0))
    engine.close()
    return norm


def results(base: Path, policy: Path, worker: Worker, directory: Path) -> Iterator[tuple[Any, Any]]:
    for stage, count in itertools.product(STAGES, MICROBATCHES):
        yield ("preference", stage, count), preference_step(base, worker, stage, count)
        yield ("policy", stage, count), policy_step(base, policy, worker, stage, count)
    for stage in STAGES:
        yield ("resumed", stage), resumed(base, worker, stage, directory / f"stage{stage}")
        yield ("broken", stage), broken(base, worker, stage)
        yield ("exploded", stage), exploded(base, worker, stage)
        yield ("bf16", stage), bf16_norm(base, worker, stage)
        yield ("first", stage), first_bf16_step(base, worker, stage)
    if worker.num_workers == 1:
        yield ("plain", "preference"), plain_preference_step(base)
        yield ("plain", "policy"), plain_policy_step(base, policy)


def main(rank: int, world_size: int, port: str, base: Path, policy: Path, directory: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
    }
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    worker = Worker(rank, world_size, None)
    torch.save(dict(results(base, policy, worker, directory)), directory / f"results{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    rank, world_size, port, base, policy, directory = sys.argv[1:]
    main(int(rank), int(world_size), port, Path(base), Path(policy), Path(directory))
