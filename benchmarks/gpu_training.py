"""How much of the device does the preference model's training use?

A Llama of random weights, about 1B parameters by default, on groups of a prompt with four
responses, in one process without Ray, vLLM or DeepSpeed: torch and transformers are all that it
needs; `--zero` measures on DeepSpeed's engine, where that is installed. Ours: the stage's own step,
with Liger's kernels where that is installed, as the GPU lock has it. Peer: the usual loop, a padded
batch of whole chosen and rejected sequences through transformers' model, in the same precision on
the same weights. MFU is 6 x (parameters without embeddings) x tokens a second, by the rate of a
large matrix product measured in the same run; attention is not counted. Prints one JSON line;
`ratio`: our comparisons a second by the peer's.

python benchmarks/gpu_training.py [--layers 16] [--hidden 2048] [--sequence 2048] [--steps 6]
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel

from charactertrain.models import packed_attention
from charactertrain.models.fused_kernels import fuse
from charactertrain.models.packing import PromptGroup
from charactertrain.runtime.torch_engine import TorchEngine
from charactertrain.runtime.training_engine import OptimizerSettings, TrainingEngine
from charactertrain.runtime.worker import LocalWorker, process_group_of_one
from charactertrain.stages.preference_step import (
    PreferenceObjective,
    RankedPair,
    RankedPrompt,
    preference_step,
)

CANDIDATES = 4
PROMPT_SHARE = 0.25
"""Of a group's tokens."""
LEARNING_RATE = 1e-6


def main() -> None:
    """Measure both and print the line."""
    arguments = _arguments()
    rate = _matrix_rate(arguments)
    prompts = _prompts(arguments)
    with process_group_of_one():
        # The peer first: what is fused is fused for the whole process.
        sides = {
            "peer": _measure(_peer, partial(_load, arguments), arguments, prompts, rate),
            "ours": _measure(_ours, partial(_load_fused, arguments), arguments, prompts, rate),
        }
    ours, peer = (sides[side]["comparisons_per_second"] for side in ("ours", "peer"))
    cuda = torch.cuda.is_available()
    line = {
        "name": "gpu_training",
        "ours": ours,
        "peer": peer,
        "peer_name": "transformers, padded pairs",
        "unit": "comparisons per second",
        "ratio": round(ours / peer, 2),
        "by_side": sides,
        "matrix_tflops": round(rate / 1e12, 2),
        "sequence": arguments.sequence,
        "token_budget": arguments.token_budget,
        "engine": "torch" if arguments.zero is None else f"DeepSpeed, ZeRO stage {arguments.zero}",
        "device": torch.cuda.get_device_name() if cuda else platform.machine(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(line))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _matrix_rate(arguments: argparse.Namespace) -> float:
    """Floating-point operations a second of a large bf16 matrix product."""
    size = arguments.matrix
    a = torch.randn(size, size, device=_device(), dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    _synchronize()
    started = time.perf_counter()
    for _ in range(10):
        a @ a
    _synchronize()
    return 10 * 2 * size**3 / (time.perf_counter() - started)


def _load(arguments: argparse.Namespace, dtype: torch.dtype) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // arguments.head,
        num_key_value_heads=max(1, arguments.hidden // arguments.head // 4),
        vocab_size=32000,
        num_labels=1,
        pad_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(_device()):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    return model


def _load_fused(arguments: argparse.Namespace, dtype: torch.dtype) -> PreTrainedModel:
    """As the stages load models."""
    model = _load(arguments, dtype)
    model.set_attn_implementation(packed_attention.NAME)
    fuse(model)
    return model


def _prompts(arguments: argparse.Namespace) -> list[RankedPrompt]:
    """Groups of `sequence` tokens on average; responses of half to one and a half of the mean."""
    random = torch.Generator().manual_seed(0)
    prompt_tokens = int(PROMPT_SHARE * arguments.sequence)
    mean = (arguments.sequence - prompt_tokens) / CANDIDATES

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, 32000, (count,), generator=random).tolist())

    prompts = []
    for index in range(arguments.prompts):
        lengths = (mean * (0.5 + torch.rand(CANDIDATES, generator=random))).int().tolist()
        pairs = [RankedPair(i, j, 1.0, 1 / 6, 0.0) for i, j in combinations(range(CANDIDATES), 2)]
        prompts.append(
            RankedPrompt(
                f"p{index}",
                "any",
                PromptGroup(tokens(prompt_tokens), tuple(tokens(length) for length in lengths)),
                tuple(pairs),
                (0.0,) * CANDIDATES,
            )
        )
    return prompts


Prompts = list[RankedPrompt]
Step = Callable[[TrainingEngine, Prompts, argparse.Namespace], int]
"""Adds a step's gradient; returns the tokens that are not padding."""
Load = Callable[[torch.dtype], PreTrainedModel]


def _engine(
    load: Load, arguments: argparse.Namespace, settings: OptimizerSettings
) -> TrainingEngine:
    if arguments.zero is None:
        return TorchEngine(partial(load, torch.float32), settings, bf16=True)
    from charactertrain.runtime.zero import ZeroEngine, ZeroSettings

    zero = ZeroSettings(arguments.zero, offload=False, optimizer=settings, bf16=True)
    return ZeroEngine(partial(load, torch.bfloat16), zero)


def _measure(
    step: Step, load: Load, arguments: argparse.Namespace, prompts: Prompts, rate: float
) -> dict[str, Any]:
    settings = OptimizerSettings(
        weight_decay=0.0, max_grad_norm=1.0, recompute_activations=arguments.recompute
    )
    engine = _engine(load, arguments, settings)
    body = sum(
        getattr(value, "ds_numel", value.numel())
        for name, value in engine.module.named_parameters()
        if "embed_tokens" not in name
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    tokens = 0
    started = 0.0
    for number in range(arguments.steps + 1):
        if number == 1:
            _synchronize()
            tokens, started = 0, time.perf_counter()
        tokens += step(engine, prompts, arguments)
        engine.step(LEARNING_RATE)
    _synchronize()
    seconds = time.perf_counter() - started
    comparisons = arguments.steps * len(prompts) * CANDIDATES * (CANDIDATES - 1) // 2
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    engine.close()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {
        "comparisons_per_second": round(comparisons / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "mfu": round(6 * body * tokens / seconds / rate, 3),
        "peak_gib": peak if peak is None else round(peak, 2),
        "parameters": body,
    }


def _ours(
    engine: TrainingEngine, prompts: list[RankedPrompt], arguments: argparse.Namespace
) -> int:
    objective = PreferenceObjective("bradley_terry", centering=0.0, margin=0.0)
    worker = LocalWorker(print)
    return int(
        preference_step(engine, prompts, objective, worker, arguments.token_budget)["tokens"]
    )


def _peer(
    engine: TrainingEngine, prompts: list[RankedPrompt], arguments: argparse.Namespace
) -> int:
    """All pairs, some at a time, each as two whole sequences padded to the longest."""
    pairs = [
        (
            (*prompt.group.prompt_token_ids, *prompt.group.responses[pair.chosen]),
            (*prompt.group.prompt_token_ids, *prompt.group.responses[pair.rejected]),
        )
        for prompt in prompts
        for pair in prompt.pairs
    ]
    tokens = 0
    for start in range(0, len(pairs), arguments.peer_batch):
        batch = pairs[start : start + arguments.peer_batch]
        rows = [torch.tensor(pair[side]) for side in (0, 1) for pair in batch]
        tokens += sum(len(row) for row in rows)
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(engine.device)
        rewards: Tensor = engine.forward(input_ids=ids, attention_mask=(ids != 0).long()).logits
        chosen, rejected = rewards[:, 0].float().chunk(2)
        engine.backward(-F.logsigmoid(chosen - rejected).sum() / len(pairs), "pairs")
    return tokens


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--head", type=int, default=64, help="dimensions of an attention head")
    parser.add_argument("--sequence", type=int, default=2048, help="tokens of a group")
    parser.add_argument("--prompts", type=int, default=16, help="of a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--peer-batch", type=int, default=4, help="pairs at a time")
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--zero", type=int, choices=range(4), help="stage of DeepSpeed's engine")
    parser.add_argument("--recompute", action="store_true", help="recompute activations, both")
    return parser.parse_args()


if __name__ == "__main__":
    main()
