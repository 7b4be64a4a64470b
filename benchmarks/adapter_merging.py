"""How much of what low-rank adapters have learnt is left when they are merged into bf16 weights?

Adapters on the embedded model learn a text for some steps of Adam. Merged by ours (in fp32, rounded
by a fixed pattern) and by the peer, peft's `merge_and_unload`; all three then compute in fp32, so
that the weights alone differ. By learning rate and step: what a token of the text gains, in nats,
and how far its log-probabilities are from the adapted model's on average. Prints one JSON line;
`ratio`: how much further off the peer is, at the last step of the last learning rate.

python benchmarks/adapter_merging.py [--rates 1e-5 1e-4] [--steps 8] [--rank 32]
"""

import argparse
import json
import platform
from collections.abc import Mapping
from typing import Any

import peft
import torch
from torch import Tensor

from charactertrain.models import loading, sources
from charactertrain.models.lora import LoraSettings, add_adapters, merge_adapters
from charactertrain.models.packing import PackedRow, PromptGroup, pack

MODEL = "embedded:smollm2_135m"
PROMPT = "<|im_start|>user\nTell me about tea and rain.<|im_end|>\n<|im_start|>assistant\n"
TEXT = (
    "Tea is a drink that is made of leaves, and rain is water that falls from the clouds. I love "
    "both of them very much, because they are warm and calm."
)


def main() -> None:
    """Train, merge, and print the line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-5, 1e-4])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rank", type=int, default=32)
    arguments = parser.parse_args()
    settings = LoraSettings(arguments.rank, 2 * arguments.rank)
    row = _row()
    base_N = _logprobs(_base().float(), row)
    found = []
    for rate in arguments.rates:
        for step, trained in _trained(settings, row, rate, arguments.steps):
            if step not in (1, arguments.steps):
                continue
            adapted = _adapted(settings, trained)
            peer: Any = _adapted(settings, trained)
            sides = {
                "adapted": adapted,
                "ours": merge_adapters(_base(), settings, trained),
                "peer": peer.merge_and_unload(),
            }
            logprobs = {name: _logprobs(model.float(), row) for name, model in sides.items()}
            entry: dict[str, float] = {"rate": rate, "step": step}
            for name, logprobs_N in logprobs.items():
                entry[f"{name}_gain"] = round(float((logprobs_N - base_N).mean()), 4)
                if name != "adapted":
                    off_N = (logprobs_N - logprobs["adapted"]).abs()
                    entry[f"{name}_off"] = round(float(off_N.mean()), 4)
            found.append(entry)
    last = found[-1]
    line = {
        "name": "adapter_merging",
        "ours": last["ours_off"],
        "peer": last["peer_off"],
        "peer_name": "peft, merge_and_unload",
        "unit": "nats a token off the adapted model",
        "ratio": round(last["peer_off"] / last["ours_off"], 1),
        "steps": found,
        "device": platform.processor() or platform.machine(),
        "versions": {"torch": torch.__version__, "peft": peft.__version__},
    }
    print(json.dumps(line))


def _row() -> PackedRow:
    tokenizer = loading.load_tokenizer(sources.resolve(MODEL))
    prompt, text = (tuple(map(int, tokenizer(part)["input_ids"])) for part in (PROMPT, TEXT))
    return pack([PromptGroup(prompt, (text,))])


def _base() -> Any:
    return loading.load_causal_lm(sources.resolve(MODEL), torch.bfloat16).eval()


def _adapted(settings: LoraSettings, trained: Mapping[str, Tensor]) -> Any:
    model = add_adapters(_base(), settings)
    model.load_state_dict(dict(trained), strict=False)
    return model


def _logits(model: Any, row: PackedRow) -> Tensor:
    logits_1NV: Tensor = model(
        **row.model_inputs(), use_cache=False, logits_to_keep=row.predictor_N
    ).logits
    return logits_1NV[0]


def _chosen(logits_NV: Tensor, row: PackedRow) -> Tensor:
    return logits_NV.log_softmax(-1).gather(-1, row.token_ids_N[:, None])[:, 0]


@torch.no_grad()
def _logprobs(model: Any, row: PackedRow) -> Tensor:
    return _chosen(_logits(model, row), row)


def _trained(
    settings: LoraSettings, row: PackedRow, rate: float, num_steps: int
) -> list[tuple[int, dict[str, Tensor]]]:
    """The adapters in bf16 after each step, from masters in fp32."""
    torch.manual_seed(0)
    model: Any = add_adapters(_base().float(), settings)
    adapters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(adapters.values(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    states = []
    for step in range(1, num_steps + 1):
        loss = -_chosen(_logits(model, row), row).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        states.append((step, {k: v.detach().bfloat16() for k, v in adapters.items()}))
    return states


if __name__ == "__main__":
    main()
