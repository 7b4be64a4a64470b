"""Does packing a prompt with all its responses beat a padded batch that repeats the prompt?

One training pass (forward and backward) of the preference model over the same prompts and
responses: packed by `charactertrain.models.packing`, and as a padded batch of whole sequences, the
form that TRL's RewardTrainer trains on. Prints one JSON line; `ratio`: peer seconds by ours.

python benchmarks/prompt_packing.py [--prompt-tokens 60] [--response-tokens 40] [--candidates 4]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from charactertrain.models import loading, sources
from charactertrain.models.packing import PromptGroup, pack
from charactertrain.runtime.hardware import resolve_precision


def main() -> None:
    """Measure both in turn and print the line."""
    arguments = _arguments()
    directory = sources.resolve(arguments.model)
    dtype = resolve_precision("auto")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = loading.load_preference_model(Path(directory), dtype, seed=0).to(device)
    groups = _groups(arguments, vocabulary=model.config.vocab_size)
    passes = {"packed": _packed_pass(model, groups), "padded": _padded_pass(model, groups)}
    rewards = {name: run() for name, run in passes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(arguments.runs):
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    ours, peer = (statistics.median(seconds[name]) for name in ("packed", "padded"))
    line = {
        "benchmark": "prompt_packing",
        "peer": "transformers padded batch",
        "ratio": round(peer / ours, 2),
        "seconds": round(ours, 3),
        "peer_seconds": round(peer, 3),
        "max_reward_difference": float((rewards["packed"] - rewards["padded"]).abs().max()),
        "model": arguments.model,
        "prompts": arguments.prompts,
        "candidates": arguments.candidates,
        "prompt_tokens": arguments.prompt_tokens,
        "response_tokens": arguments.response_tokens,
        "dtype": str(dtype),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(line))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="embedded:smollm2_135m")
    parser.add_argument("--prompts", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--response-tokens", type=int, default=40, help="of the longest response")
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args()


def _groups(arguments: argparse.Namespace, *, vocabulary: int) -> list[PromptGroup]:
    """Random tokens; responses of half to all of the longest's length, as sampled ones differ."""
    random = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=random).tolist())

    def length() -> int:
        longest: int = arguments.response_tokens
        return int(torch.randint(longest // 2, longest + 1, (1,), generator=random))

    return [
        PromptGroup(
            tokens(arguments.prompt_tokens),
            tuple(tokens(length()) for _ in range(arguments.candidates)),
        )
        for _ in range(arguments.prompts)
    ]


def _packed_pass(model: PreTrainedModel, groups: list[PromptGroup]) -> Callable[[], Tensor]:
    row = pack(groups).to(model.device)

    def run() -> Tensor:
        hidden = model.base_model(**row.model_inputs()).last_hidden_state[0]
        return _backward(model, model.score(hidden[row.last_R])[:, 0])

    return run


def _padded_pass(model: PreTrainedModel, groups: list[PromptGroup]) -> Callable[[], Tensor]:
    sequences = [
        (*group.prompt_token_ids, *response) for group in groups for response in group.responses
    ]
    longest = max(map(len, sequences))
    padding = model.config.pad_token_id
    ids_BT = torch.tensor([[*s, *[padding] * (longest - len(s))] for s in sequences])
    mask_BT = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in sequences])
    last_B = torch.tensor([len(s) - 1 for s in sequences])
    ids_BT, mask_BT, last_B = (value.to(model.device) for value in (ids_BT, mask_BT, last_B))

    def run() -> Tensor:
        hidden_BTD = model.base_model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return _backward(model, model.score(hidden_BTD[range(len(sequences)), last_B])[:, 0])

    return run


def _backward(model: PreTrainedModel, rewards: Tensor) -> Tensor:
    rewards.float().sum().backward()
    model.zero_grad(set_to_none=False)
    if rewards.is_cuda:
        torch.cuda.synchronize()
    return rewards.detach().float()


if __name__ == "__main__":
    main()
