"""What `test_zero.py` runs in every process of a group: rank, size, port, models, where to write.

python zero_cases.py RANK WORLD_SIZE PORT BASE POLICY DIRECTORY ELASTIC

ELASTIC is -1 for all the cases of a group, or the number of a step of the elastic case.
"""

import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from policy_gradients import PLAIN
from torch import Tensor

from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.lora import LoraSettings, add_adapters, merged_weights
from charactertrain.models.packing import PromptGroup
from charactertrain.objectives.advantages import RunningBaseline
from charactertrain.runtime.ray_worker import RayWorker
from charactertrain.runtime.torch_engine import TorchEngine
from charactertrain.runtime.training_engine import OptimizerSettings, TrainingEngine
from charactertrain.runtime.weights import Weight, gather
from charactertrain.runtime.worker import LocalWorker, Worker
from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings
from charactertrain.runtime.zero_checkpoint import read_state
from charactertrain.stages.policy.rollouts import Rollout
from charactertrain.stages.policy.step import policy_step
from charactertrain.stages.preference_model.step import (
    PreferenceObjective,
    RankedPair,
    RankedPrompt,
    group_rewards,
    preference_step,
)
from charactertrain.stages.response_logits import Models

STAGES = (0, 1, 2, 3)
STEPPED = (0, 2, 3)
"""Those of which steps are compared: gradients of 1 go the way of 2."""
BUDGETS = (10_000, 1)
"""Tokens of a microbatch: all of a step at once, and one prompt at a time."""
NUM_PROMPTS = 4
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 0.1
"""Below the norms that occur, so that clipping takes part in what is compared."""
END_TOKEN = 0
FIRST_STEP = 0.1
"""Far above the resolution of bf16 near 1."""
OBJECTIVE = PreferenceObjective("bradley_terry", centering=0.1, margin=0.3)
OPTIMIZER = OptimizerSettings(
    weight_decay=0.1, max_grad_norm=MAX_GRAD_NORM, recompute_activations=False
)

LORA = LoraSettings(rank=4, alpha=16)

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
                pairs=tuple(
                    RankedPair(i, j, 0.6 + 0.1 * j, 1.0 + index + i, 0.2 * i) for i, j in places
                ),
                utilities=tuple(0.5 * place for place in range(len(responses))),
            )
        )
    return tuple(prompts)


POLICY_GRADIENT = replace(PLAIN, advantages="grpo", clip_high=0.3, kl_coef=0.5)


def policy_gradient(models: Models, worker: Worker, budget: int) -> dict[str, Any]:
    """The policy's step, not taken yet."""
    return policy_step(
        models,
        POLICY_GRADIENT,
        rollout_groups(),
        worker,
        token_budget=budget,
        baseline=RunningBaseline(),
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
                    prompt_id=f"p{index}",
                    prompt="",
                    prompt_token_ids=question,
                    token_ids=tuple(torch.randint(4, 200, (length,), generator=random).tolist()),
                    text="",
                    logprobs=tuple((-6 + torch.randn(length, generator=random)).tolist()),
                    reward=float(torch.randn(1, generator=random)),
                    disagreement=0.0,
                    versions=((0, 0),),
                )
            )
        groups.append(group)
    return groups


def zero_settings(stage: int, *, bf16: bool = False) -> ZeroSettings:
    return ZeroSettings(stage=stage, offload=False, bf16=bf16, optimizer=OPTIMIZER)


def preference_engine(
    base: Path, settings: ZeroSettings, checkpoint: Path | None = None
) -> ZeroEngine:
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    load = partial(loading.load_preference_model, base, dtype, seed=3)
    return ZeroEngine(load, settings, checkpoint)


def full_state(engine: ZeroEngine) -> State:
    return engine.full_state(torch.float32)


def step(
    engine: TrainingEngine, worker: Worker, *, budget: int = 1, rate: float = LEARNING_RATE
) -> dict[str, Any]:
    """One whole step of the preference model."""
    values = preference_step(engine, ranked_prompts(), OBJECTIVE, worker, budget)
    return {**values, "grad_norm": engine.step(rate)}


def preference_numbers(base: Path, worker: Worker, stage: int, budget: int) -> dict[str, Any]:
    """Loss, gradient norm and parameters of one step of the preference model."""
    engine = preference_engine(base, zero_settings(stage))
    before = full_state(engine)
    values = step(engine, worker, budget=budget)
    after = full_state(engine)
    engine.close()
    return {"before": before, "after": after, **values}


def policy_numbers(
    base: Path, policy: Path, worker: Worker, stage: int, budget: int
) -> dict[str, Any]:
    """The same of the policy, with a reference that differs from it."""
    settings = zero_settings(stage)
    engine = ZeroEngine(partial(loading.load_causal_lm, policy, torch.float32), settings)
    reference = FrozenModel(partial(loading.load_causal_lm, base, torch.float32), settings)
    before = full_state(engine)
    models = Models(engine, reference, (END_TOKEN,))
    values = policy_gradient(models, worker, budget)
    values["grad_norm"] = engine.step(LEARNING_RATE)
    after = full_state(engine)
    engine.close()
    return {"before": before, "after": after, **values}


def plain_preference(base: Path) -> dict[str, Any]:
    """The preference model's step without DeepSpeed, in one piece."""
    load = partial(loading.load_preference_model, base, torch.float32, seed=3)
    engine = TorchEngine(load, OPTIMIZER, bf16=False)
    values = step(engine, LocalWorker(print), budget=10_000)
    return {**values, "after": plain_state(engine)}


def plain_policy(base: Path, policy: Path) -> dict[str, Any]:
    """The policy's step without DeepSpeed, in one piece."""
    engine = TorchEngine(
        partial(loading.load_causal_lm, policy, torch.float32), OPTIMIZER, bf16=False
    )
    reference = TorchEngine(
        partial(loading.load_causal_lm, base, torch.float32), OPTIMIZER, bf16=False
    )
    models = Models(engine, reference, (END_TOKEN,))
    values = policy_gradient(models, LocalWorker(print), 10_000)
    return {**values, "grad_norm": engine.step(LEARNING_RATE), "after": plain_state(engine)}


def plain_state(engine: TorchEngine) -> State:
    return {name: value.detach().clone() for name, value in engine.module.named_parameters()}


def save_merged(engine: ZeroEngine, worker: Worker, directory: Path, state: dict[str, Any]) -> Path:
    """A checkpoint as Ray Train makes it: each rank writes its own, all files end up in one."""
    engine.save(directory / f"rank{worker.rank}", state)
    torch.distributed.barrier()
    if worker.rank == 0:
        for rank in range(worker.num_workers):
            shutil.copytree(directory / f"rank{rank}", directory / "merged", dirs_exist_ok=True)
            shutil.rmtree(directory / f"rank{rank}")
    torch.distributed.barrier()
    return directory / "merged"


def adapted_policy(
    policy: Path, settings: ZeroSettings, checkpoint: Path | None = None
) -> ZeroEngine:
    """The policy with adapters on it."""

    def load() -> Any:
        torch.manual_seed(4)
        return add_adapters(loading.load_causal_lm(policy, torch.float32), LORA)

    return ZeroEngine(load, settings, checkpoint)


def adapted(base: Path, policy: Path, worker: Worker, stage: int, directory: Path) -> Any:
    """The merged weights after two steps, undisturbed and with a checkpoint between them."""
    settings = zero_settings(stage)
    reference = FrozenModel(partial(loading.load_causal_lm, base, torch.float32), settings)

    def take_step(engine: ZeroEngine) -> dict[str, Any]:
        values = policy_gradient(Models(engine, reference, (END_TOKEN,)), worker, 1)
        return {**values, "grad_norm": engine.step(LEARNING_RATE)}

    def merged(engine: ZeroEngine) -> State:
        module: Any = engine.module
        weights = [Weight(*found) for found in merged_weights(module)]
        found = gather(weights, torch.float32)
        shapes = {weight.name: weight.shape for weight in weights}
        assert not found or shapes == {name: tuple(value.shape) for name, value in found.items()}
        return found

    undisturbed = adapted_policy(policy, settings)
    values = take_step(undisturbed)
    checkpoint = save_merged(undisturbed, worker, directory, {})
    take_step(undisturbed)
    after, trained = merged(undisturbed), full_state(undisturbed)
    undisturbed.close()
    engine = adapted_policy(policy, settings, checkpoint)
    take_step(engine)
    found = merged(engine)
    engine.close()
    return {"after": after, "trained": trained, "found": found, **values}


def resumed(base: Path, worker: Worker, stage: int, directory: Path) -> dict[str, Any]:
    """Parameters after two steps, undisturbed and with a checkpoint taken up between them."""
    settings = zero_settings(stage, bf16=True)
    undisturbed = preference_engine(base, settings)
    first = step(undisturbed, worker)
    merged = save_merged(undisturbed, worker, directory, {"history": [first]})
    step(undisturbed, worker)
    expected = full_state(undisturbed)
    undisturbed.close()
    engine = preference_engine(base, settings, merged)
    step(engine, worker)
    found = full_state(engine)
    engine.close()
    return {
        "expected": expected,
        "found": found,
        "history": read_state(merged)["history"],
        "refusal": load_from_another_stage(base, worker, settings, merged),
    }


def load_from_another_stage(
    base: Path, worker: Worker, settings: ZeroSettings, merged: Path
) -> str:
    """What is said about a checkpoint of another ZeRO stage."""
    if worker.rank == 0:
        file = merged / "charactertrain.json"
        state = json.loads(file.read_text())
        file.write_text(json.dumps({**state, "layout": {**state["layout"], "ZeRO stage": 7}}))
    torch.distributed.barrier()
    try:
        preference_engine(base, settings, merged)
    except TrainingError as error:
        return str(error)
    return ""


def first_bf16_step(base: Path, worker: Worker, stage: int) -> Tensor:
    """How far the last norm's weights move in the first step under bf16."""
    engine = preference_engine(base, zero_settings(stage, bf16=True))
    before = full_state(engine)
    step(engine, worker, rate=FIRST_STEP)
    after = full_state(engine)
    engine.close()
    return (after["model.norm.weight"] - before["model.norm.weight"]) if after else torch.zeros(0)


def bf16_grad_norms(base: Path, worker: Worker, stage: int) -> list[float]:
    """Of the first step under bf16, in one microbatch and in one for each prompt."""
    norms = []
    for budget in BUDGETS:
        engine = preference_engine(base, zero_settings(stage, bf16=True))
        norms.append(step(engine, worker, budget=budget)["grad_norm"])
        engine.close()
    return norms


def broken(base: Path, worker: Worker, stage: int) -> dict[str, Any]:
    """What happens when the last rank's second of two microbatches has a loss that is no number."""
    engine = preference_engine(base, zero_settings(stage))
    before = full_state(engine)
    message = ""
    group = ranked_prompts()[0].group
    for index in range(2):
        rewards_R, _, _ = group_rewards(engine, [group])
        is_broken = index == 1 and worker.rank == worker.num_workers - 1
        engine.backward(rewards_R.sum() * (float("nan") if is_broken else 1.0), f"part {index}")
    try:
        engine.step(LEARNING_RATE)
    except TrainingError as error:
        message = str(error)
    after = full_state(engine)
    engine.close()
    return {"before": before, "after": after, "message": message}


def exploded(base: Path, worker: Worker, stage: int) -> str:
    """What is said about a gradient that is no number, of a loss that is one."""
    engine = preference_engine(base, zero_settings(stage))
    rewards_R, _, _ = group_rewards(engine, [ranked_prompts()[worker.rank].group])
    try:
        # sqrt has no derivative at 0.
        engine.backward((rewards_R - rewards_R.detach()).abs().sum().sqrt(), "all")
        engine.step(LEARNING_RATE)
    except TrainingError as error:
        return str(error)
    finally:
        engine.close()
    return ""


def bf16_norm(base: Path, worker: Worker, stage: int) -> Tensor:
    """The last norm's weights, all 1 at first, after steps each too small for bf16 near 1."""
    engine = preference_engine(base, zero_settings(stage, bf16=True))
    for _ in range(60):
        step(engine, worker, budget=10_000, rate=1e-4)
    norm = full_state(engine).get("model.norm.weight", torch.zeros(0))
    engine.close()
    return norm


def put_back(base: Path, worker: Worker, stage: int) -> dict[str, Any]:
    """Rewards before a step, and after it with the weights of before put back."""
    engine = preference_engine(base, zero_settings(stage))
    group = ranked_prompts()[0].group
    with torch.no_grad():
        # Under ZeRO-3 the first forward initialises parameters.
        before = group_rewards(engine, [group])[0]
    kept = full_state(engine)
    step(engine, worker)
    with torch.no_grad():
        changed = group_rewards(engine, [group])[0]
        engine.load_full_state(kept)
        after = group_rewards(engine, [group])[0]
    engine.close()
    return {"before": before, "changed": changed, "after": after}


def elastic(base: Path, worker: Worker, stage: int, directory: Path, number: int) -> dict[str, Any]:
    """One step from the checkpoint of the group before, which had another number of workers."""
    earlier = directory / str(number - 1) / "merged" if number > 0 else None
    engine = preference_engine(base, zero_settings(stage, bf16=stage == 2), earlier)
    steps = read_state(earlier)["steps"] if earlier is not None else []
    values = step(engine, worker)
    merged = save_merged(engine, worker, directory / str(number), {"steps": [*steps, number]})
    after = full_state(engine)
    engine.close()
    return {"after": after, "steps": read_state(merged)["steps"], **values}


def results(base: Path, policy: Path, worker: Worker, directory: Path) -> Iterator[tuple[Any, Any]]:
    for stage, budget in itertools.product(STEPPED, BUDGETS):
        yield ("preference", stage, budget), preference_numbers(base, worker, stage, budget)
        yield ("policy", stage, budget), policy_numbers(base, policy, worker, stage, budget)
    for stage in STEPPED:
        place = directory / f"adapted{stage}"
        yield ("adapted", stage), adapted(base, policy, worker, stage, place)
    for stage in STAGES:
        yield ("resumed", stage), resumed(base, worker, stage, directory / f"stage{stage}")
        yield ("broken", stage), broken(base, worker, stage)
        yield ("exploded", stage), exploded(base, worker, stage)
        yield ("bf16", stage), bf16_norm(base, worker, stage)
        yield ("first", stage), first_bf16_step(base, worker, stage)
        yield ("bf16 norms", stage), bf16_grad_norms(base, worker, stage)
        yield ("put back", stage), put_back(base, worker, stage)
    if worker.num_workers == 1:
        yield ("plain", "preference"), plain_preference(base)
        yield ("plain", "policy"), plain_policy(base, policy)


def main(rank: int, world_size: int, port: str, places: list[Path], elastic_number: int) -> None:
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
    worker = RayWorker(rank, world_size, None)
    base, policy, directory = places
    if elastic_number < 0:
        found = dict(results(base, policy, worker, directory))
    else:
        found = {
            stage: elastic(base, worker, stage, directory / f"stage{stage}", elastic_number)
            for stage in STEPPED
        }
    name = f"results{rank}.pt" if elastic_number < 0 else f"elastic{elastic_number}-{rank}.pt"
    torch.save(found, directory / name)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    rank, world_size, port, base, policy, directory, number = sys.argv[1:]
    places = [Path(base), Path(policy), Path(directory)]
    main(int(rank), int(world_size), port, places, int(number))
