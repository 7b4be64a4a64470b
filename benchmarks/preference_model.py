"""Does the preference model train faster than TRL's RewardTrainer on the same rankings?

Four responses of their natural lengths to each prompt, all six comparisons of them. Ours: the
stage's own step on DeepSpeed, in one process. Peer: `trl.RewardTrainer` with as many comparisons a
step, eight to a batch, at the same precision, without recomputing activations. Each in a process of
its own, in turn. Prints one JSON line; `ratio`: our comparisons a second by the peer's, and
`token_ratio` the same of tokens that are not padding.

python benchmarks/preference_model.py [--prompts 24] [--steps 4] [--runs 3] [--data FILE]
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = "embedded:smollm2_135m"
CANDIDATES = 4
PROMPTS_PER_STEP = 4
PEER_BATCH = 8
LEARNING_RATE = 1e-5


def main() -> None:
    """Measure both in turn and print the line."""
    arguments = _arguments()
    if arguments.side:
        SIDES[arguments.side](arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data or f"{scratch}/responses.json"
        if not arguments.data:
            _child("data", data, arguments)
        found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for turn in range(arguments.runs):
            for side in ("ours", "peer") if turn % 2 else ("peer", "ours"):
                found[side].append(_child(side, data, arguments))
    _print(arguments, found)


def _child(side: str, data: str, arguments: argparse.Namespace) -> dict[str, Any]:
    # This process stays small: a child's peak memory begins with its parent's.
    command = [sys.executable, __file__, "--side", side, "--data", data]
    for name in ("prompts", "steps", "token_budget"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def sample(arguments: argparse.Namespace) -> None:
    """Write responses of the embedded model, as the responses stage samples them."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from rich.console import Console

    from charactertrain.artifacts import FileEntry
    from charactertrain.config import validate
    from charactertrain.models import sources
    from charactertrain.records import Prompt, Response, Trait, from_table, to_table
    from charactertrain.runtime.chunks import FileSource
    from charactertrain.stages.responses.stage import response_job
    from charactertrain.stages.start import open_session
    from charactertrain.storage import open_directory
    from charactertrain.templates import CHECK_MESSAGES

    # Some to spare, as many of them without the character as are kept and two more.
    counts = f"{{per_prompt: {CANDIDATES + 7}, variants: {{none: {CANDIDATES + 2}}}}}"
    overrides = [f"responses={counts}", "responses.max_tokens=256"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
    config = validate(values)
    trait = Trait("curious", "Ideas delight me.", (), None, 1.0, "benchmark")
    prompts = [
        Prompt(
            f"p{index}",
            "curious",
            "curious/any",
            "trait",
            f"{CHECK_MESSAGES[index % len(CHECK_MESSAGES)]} (letter {index})",
            "train",
        )
        for index in range(arguments.prompts)
    ]
    model = str(sources.resolve(MODEL))
    with tempfile.TemporaryDirectory() as scratch:
        root = open_directory(scratch)
        root.write_table("prompts/part-000000.parquet", to_table(prompts, Prompt))
        files = (FileEntry("prompts/part-000000.parquet", 0, "", len(prompts)),)
        with open_session(config, root.child("session"), Console(quiet=True), {}) as session:
            job = response_job(
                config,
                [trait],
                prompts=FileSource(root, files, Prompt, whole_files=False),
                sampler=session.sampler(model, model),
                target=root.child("out"),
            )
            produced = session.run(job)
        texts: dict[str, list[str]] = {}
        for name in produced.files:
            for row in from_table(root.child("out").read_table(name), Response):
                texts.setdefault(row.prompt, []).append(row.text)
    rows = [
        {"prompt": prompt, "responses": found[:CANDIDATES]}
        for prompt, found in sorted(texts.items())
        if len(found) >= CANDIDATES
    ]
    Path(arguments.data).write_text(json.dumps(rows))
    print(json.dumps({"prompts": len(rows)}))


def ours(arguments: argparse.Namespace) -> None:
    """Steps of the stage."""
    import os

    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from charactertrain import chat
    from charactertrain.models import loading, sources
    from charactertrain.models.packing import PromptGroup
    from charactertrain.runtime.hardware import resolve_precision
    from charactertrain.runtime.training_engine import OptimizerSettings
    from charactertrain.runtime.worker import LocalWorker, process_group_of_one
    from charactertrain.runtime.zero import ZeroEngine, ZeroSettings
    from charactertrain.stages.preference_model.step import (
        PreferenceObjective,
        RankedPair,
        RankedPrompt,
        preference_step,
    )
    from charactertrain.templates import plain_conversation

    directory = sources.resolve(MODEL)
    tokenizer: Any = loading.load_tokenizer(directory)
    dtype = resolve_precision("auto")
    prompts = [
        RankedPrompt(
            row["prompt"],
            "any",
            PromptGroup(
                tuple(chat.encode(plain_conversation(row["prompt"]), tokenizer)),
                tuple(tuple(chat.encode_response(text, tokenizer)) for text in row["responses"]),
            ),
            tuple(RankedPair(i, j, 1.0, 1 / 6, 0.0) for i, j in combinations(range(CANDIDATES), 2)),
            tuple(-float(place) for place in range(CANDIDATES)),
        )
        for row in json.loads(Path(arguments.data).read_text())
    ]
    settings = ZeroSettings(
        stage=0,
        offload=False,
        bf16=dtype is torch.bfloat16,
        optimizer=OptimizerSettings(
            weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False
        ),
    )
    objective = PreferenceObjective("bradley_terry", centering=0.0, margin=0.0)
    seconds, tokens = [], []
    with process_group_of_one():
        load = partial(loading.load_preference_model, directory, dtype, seed=1)
        engine = ZeroEngine(load, settings)
        for step in range(arguments.steps + 1):
            batch = [prompts[(step * PROMPTS_PER_STEP + i) % len(prompts)] for i in range(4)]
            started = time.perf_counter()
            values = preference_step(
                engine, batch, objective, LocalWorker(print), arguments.token_budget
            )
            engine.step(LEARNING_RATE)
            # The first step warms up.
            if step:
                seconds.append(time.perf_counter() - started)
                tokens.append(values["tokens"])
    _report(seconds, tokens, loss=values["loss"], padding_share=values["padding_share"])


def peer(arguments: argparse.Namespace) -> None:
    """Steps of TRL's trainer."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RewardConfig, RewardTrainer

    from charactertrain.models import loading, sources
    from charactertrain.runtime.hardware import resolve_precision

    directory = sources.resolve(MODEL)
    tokenizer: Any = loading.load_tokenizer(directory)
    dtype = resolve_precision("auto")
    model: Any = loading.load_preference_model(directory, dtype, seed=1)
    model.set_attn_implementation("sdpa")
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["responses"][i]}],
            "rejected": [{"role": "assistant", "content": row["responses"][j]}],
        }
        for row in json.loads(Path(arguments.data).read_text())
        for i, j in combinations(range(CANDIDATES), 2)
    ]
    comparisons = PROMPTS_PER_STEP * CANDIDATES * (CANDIDATES - 1) // 2
    seconds: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Times each optimizer step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.started)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.append(logs.get("loss", float("nan")))

    with tempfile.TemporaryDirectory() as scratch:
        config = RewardConfig(
            output_dir=scratch,
            per_device_train_batch_size=PEER_BATCH,
            gradient_accumulation_steps=comparisons // PEER_BATCH,
            max_steps=arguments.steps + 1,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            bf16=dtype is torch.bfloat16,
            gradient_checkpointing=False,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = RewardTrainer(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock()],
        )
        lengths = [
            len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset
        ]
        trainer.train()
    # All comparisons are seen alike, in an order of TRL's own: tokens of a mean step.
    tokens = comparisons * statistics.fmean(lengths)
    _report(seconds[1:], [tokens] * len(seconds[1:]), loss=losses[0])


def _report(seconds: list[float], tokens: list[float], **extra: float) -> None:
    comparisons = PROMPTS_PER_STEP * CANDIDATES * (CANDIDATES - 1) // 2
    print(
        json.dumps(
            {
                "comparisons_per_second": comparisons * len(seconds) / sum(seconds),
                "tokens_per_second": sum(tokens) / sum(seconds),
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                **extra,
            }
        )
    )


def _print(arguments: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    from importlib.metadata import version

    def median(side: str, name: str) -> float:
        return float(statistics.median(run[name] for run in found[side]))

    names = ("comparisons_per_second", "tokens_per_second", "peak_gib")
    values = {side: {name: round(median(side, name), 3) for name in names} for side in found}
    line = {
        "name": "preference_model",
        "ours": values["ours"]["comparisons_per_second"],
        "peer": values["peer"]["comparisons_per_second"],
        "peer_name": "trl.RewardTrainer",
        "unit": "comparisons per second",
        "ratio": round(
            median("ours", "comparisons_per_second") / median("peer", "comparisons_per_second"), 2
        ),
        "token_ratio": round(
            median("ours", "tokens_per_second") / median("peer", "tokens_per_second"), 2
        ),
        "by_side": values,
        "token_budget": arguments.token_budget,
        "padding_share": median("ours", "padding_share"),
        "model": MODEL,
        "device": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("deepspeed", "torch", "transformers", "trl")},
    }
    print(json.dumps(line))


SIDES = {"data": sample, "ours": ours, "peer": peer}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--token-budget", type=int, default=1024)
    parser.add_argument("--data", help="a file that an earlier run wrote, instead of sampling")
    parser.add_argument("--side", choices=("data", "ours", "peer"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
