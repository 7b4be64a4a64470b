"""How much of the device does training use, of the preference model or of the policy?

A Llama of random weights, about 1B parameters by default, on groups of a prompt with four
responses, in one process without Ray, vLLM or DeepSpeed: torch and transformers are all that it
needs; `--zero` measures on DeepSpeed's engine, where that is installed. Ours: the stage's own step,
with Liger's kernels where that is installed, as the GPU lock has it. Peer: the usual loop, a padded
batch of whole sequences through transformers' model, in the same precision on the same weights: of
chosen and rejected responses, or for `--stage policy` of prompts and responses, log-probabilities
picked from the softmax of the responses' logits. Rollouts of the policy are random tokens; sampling
is not measured. Both compare with a frozen reference, by a KL in the loss.

MFU is 6 x (parameters without embeddings) x tokens a second, by the rate of a large matrix product
measured in the same run; attention is not counted. Of a policy 8 x, as the reference computes
forward, and the parameters of the output layer count for response tokens alone. Prints one JSON
line; `ratio`: our comparisons, or responses, a second by the peer's.

python benchmarks/gpu_training.py [--stage policy] [--layers 16] [--hidden 2048] [--steps 6]
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedModel,
)

from charactertrain.models import packed_attention
from charactertrain.models.fused_kernels import fuse
from charactertrain.models.packing import PromptGroup
from charactertrain.objectives.advantages import RunningBaseline
from charactertrain.runtime.torch_engine import TorchEngine
from charactertrain.runtime.training_engine import Computing, OptimizerSettings, TrainingEngine
from charactertrain.runtime.worker import LocalWorker, process_group_of_one
from charactertrain.stages.policy.objective import PolicyGradient
from charactertrain.stages.policy.rollouts import Rollout
from charactertrain.stages.policy.step import policy_step
from charactertrain.stages.preference_model.step import (
    PreferenceObjective,
    RankedPair,
    RankedPrompt,
    preference_step,
)
from charactertrain.stages.response_logits import Models

CANDIDATES = 4
PROMPT_SHARE = 0.25
"""Of a group's tokens."""
VOCABULARY = 32000
LEARNING_RATE = 1e-6
CLIP = 0.2
KL_COEF = 0.05


@dataclass(frozen=True)
class Done:
    """What a step has computed on."""

    tokens: int
    """Without padding."""
    predicted: int
    """Of them, those whose logits were wanted."""
    loss: float
    """Of the whole step."""


Step = Callable[[TrainingEngine, Computing | None], Done]
"""Adds a step's gradient, given the policy's reference."""
Load = Callable[[torch.dtype], PreTrainedModel]


@dataclass(frozen=True)
class Stage:
    """What is measured: how models are made, and a step of each side."""

    auto_class: Any
    unit: str
    per_prompt: int
    """Units that a prompt of a step holds."""
    passes: int
    """Floating-point operations for each parameter and token."""
    ours: Step
    peer: Step
    peer_name: str


def main() -> None:
    """Measure both and print the line."""
    arguments = _arguments()
    rate = _matrix_rate(arguments)
    groups = _groups(arguments)
    stage = (_policy if arguments.stage == "policy" else _preference)(arguments, groups)
    with process_group_of_one():
        # The peer first: what is fused is fused for the whole process.
        sides = {
            "peer": _measure(stage, stage.peer, _load, arguments, rate),
            "ours": _measure(stage, stage.ours, _load_fused, arguments, rate),
        }
    ours, peer = (sides[side][f"{stage.unit}_per_second"] for side in ("ours", "peer"))
    cuda = torch.cuda.is_available()
    line = {
        "name": "gpu_training",
        "stage": arguments.stage,
        "ours": ours,
        "peer": peer,
        "peer_name": stage.peer_name,
        "unit": f"{stage.unit} per second",
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
    return float(10 * 2 * size**3) / (time.perf_counter() - started)


def _load(auto_class: Any, arguments: argparse.Namespace, dtype: torch.dtype) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=arguments.hidden,
        intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // arguments.head,
        num_key_value_heads=max(1, arguments.hidden // arguments.head // 4),
        vocab_size=VOCABULARY,
        num_labels=1,
        pad_token_id=0,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(_device()):
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype)
    return model


def _load_fused(
    auto_class: Any, arguments: argparse.Namespace, dtype: torch.dtype
) -> PreTrainedModel:
    """As the stages load models."""
    model = _load(auto_class, arguments, dtype)
    model.set_attn_implementation(packed_attention.NAME)
    fuse(model)
    return model


def _groups(arguments: argparse.Namespace) -> list[PromptGroup]:
    """Groups of `sequence` tokens on average; responses of half to one and a half of the mean."""
    random = torch.Generator().manual_seed(0)
    prompt_tokens = int(PROMPT_SHARE * arguments.sequence)
    mean = (arguments.sequence - prompt_tokens) / CANDIDATES

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCABULARY, (count,), generator=random).tolist())

    groups = []
    for _ in range(arguments.prompts):
        lengths = (mean * (0.5 + torch.rand(CANDIDATES, generator=random))).int().tolist()
        groups.append(
            PromptGroup(tokens(prompt_tokens), tuple(tokens(length) for length in lengths))
        )
    return groups


# Measuring


class Reference:
    """A frozen model in plain torch."""

    def __init__(self, load: Load) -> None:
        """Load it in the precision of the computation."""
        self._model: Any = load(torch.bfloat16).eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def forward(self, **inputs: Any) -> Any:
        """The model's output."""
        return self._model(**inputs)

    def close(self) -> None:
        """Release the weights."""
        del self._model


def _engines(
    load: Load, arguments: argparse.Namespace, settings: OptimizerSettings
) -> tuple[TrainingEngine, Computing | None]:
    has_reference = arguments.stage == "policy"
    if arguments.zero is None:
        engine = TorchEngine(partial(load, torch.float32), settings, bf16=True)
        return engine, Reference(load) if has_reference else None
    from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings

    zero = ZeroSettings(arguments.zero, offload=False, optimizer=settings, bf16=True)
    start = partial(load, torch.bfloat16)
    return ZeroEngine(start, zero), FrozenModel(start, zero) if has_reference else None


def _measure(
    stage: Stage,
    step: Step,
    load: Callable[[Any, argparse.Namespace, torch.dtype], PreTrainedModel],
    arguments: argparse.Namespace,
    rate: float,
) -> dict[str, Any]:
    settings = OptimizerSettings(
        weight_decay=0.0, max_grad_norm=1.0, recompute_activations=arguments.recompute
    )
    engine, reference = _engines(partial(load, stage.auto_class, arguments), arguments, settings)
    body, head = _parameters(engine)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    done: list[Done] = []
    started = 0.0
    for number in range(arguments.steps + 1):
        if number == 1:
            _synchronize()
            started = time.perf_counter()
        done.append(step(engine, reference))
        engine.step(LEARNING_RATE)
    _synchronize()
    seconds = time.perf_counter() - started
    tokens = sum(one.tokens for one in done[1:])
    work = body * tokens + head * sum(one.predicted for one in done[1:])
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    engine.close()
    if reference is not None:
        reference.close()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    units = arguments.steps * arguments.prompts * stage.per_prompt
    return {
        f"{stage.unit}_per_second": round(units / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "mfu": round(stage.passes * work / seconds / rate, 3),
        "peak_gib": peak if peak is None else round(peak, 2),
        "parameters": body + head,
        # The same on both sides, but for rounding.
        "first_loss": round(done[0].loss, 4),
    }


def _parameters(engine: TrainingEngine) -> tuple[int, int]:
    """Of all layers but the embeddings, and of the output layer over the vocabulary."""
    sizes = {
        name: getattr(value, "ds_numel", value.numel())
        for name, value in engine.module.named_parameters()
        if "embed_tokens" not in name
    }
    head = sum(size for name, size in sizes.items() if "lm_head" in name)
    return sum(sizes.values()) - head, head


# The preference model


def _preference(arguments: argparse.Namespace, groups: list[PromptGroup]) -> Stage:
    places = list(combinations(range(CANDIDATES), 2))
    prompts = [
        RankedPrompt(
            f"p{index}",
            "any",
            group,
            tuple(RankedPair(i, j, 1.0, 1 / 6, 0.0) for i, j in places),
            (0.0,) * CANDIDATES,
        )
        for index, group in enumerate(groups)
    ]
    pairs = [
        ((*p, *responses[i]), (*p, *responses[j]))
        for p, responses in ((group.prompt_token_ids, group.responses) for group in groups)
        for i, j in places
    ]
    objective = PreferenceObjective("bradley_terry", centering=0.0, margin=0.0)

    def ours(engine: TrainingEngine, _: Computing | None) -> Done:
        worker = LocalWorker(print)
        values = preference_step(engine, prompts, objective, worker, arguments.token_budget)
        return Done(int(values["tokens"]), 0, values["loss"])

    def peer(engine: TrainingEngine, _: Computing | None) -> Done:
        """All pairs, some at a time, each as two whole sequences padded to the longest."""
        tokens, total = 0, torch.zeros((), device=engine.device)
        for start in range(0, len(pairs), arguments.peer_batch):
            batch = pairs[start : start + arguments.peer_batch]
            rows = [torch.tensor(pair[side]) for side in (0, 1) for pair in batch]
            tokens += sum(len(row) for row in rows)
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(engine.device)
            rewards: Tensor = engine.forward(input_ids=ids, attention_mask=(ids != 0).long()).logits
            chosen, rejected = rewards[:, 0].float().chunk(2)
            share = -F.logsigmoid(chosen - rejected).sum() / len(pairs)
            engine.backward(share, "pairs")
            total += share.detach()
        return Done(tokens, 0, float(total))

    return Stage(
        AutoModelForSequenceClassification,
        "comparisons",
        len(places),
        6,
        ours,
        peer,
        "transformers, padded pairs",
    )


# The policy


def _policy(arguments: argparse.Namespace, groups: list[PromptGroup]) -> Stage:
    rollouts = [_rollouts(index, group) for index, group in enumerate(groups)]
    everything = [rollout for group in rollouts for rollout in group]
    num_predicted = sum(len(rollout.token_ids) for rollout in everything)
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

    def ours(engine: TrainingEngine, reference: Computing | None) -> Done:
        values = policy_step(
            Models(engine, reference, ()),
            objective,
            rollouts,
            LocalWorker(print),
            token_budget=arguments.token_budget,
            baseline=RunningBaseline(),
        )
        tokens = sum(group.num_tokens for group in groups)
        return Done(tokens, num_predicted, values["loss"])

    def peer(engine: TrainingEngine, reference: Computing | None) -> Done:
        """Some responses at a time, each after its prompt, padded to the longest."""
        assert reference is not None, "a KL needs a reference"
        rewards_PG = torch.tensor([[one.reward for one in group] for group in rollouts])
        spread = rewards_PG.std(1, keepdim=True) + 1e-4
        advantages_B = ((rewards_PG - rewards_PG.mean(1, keepdim=True)) / spread).flatten()
        advantages_B = advantages_B.to(engine.device)
        total = torch.zeros((), device=engine.device)
        size = 2 * arguments.peer_batch
        for start in range(0, len(everything), size):
            chosen = everything[start : start + size]
            ids_BT, mask_BT, sampler_BT = _padded(chosen, engine.device)
            logprobs_BT = _logprobs(engine, ids_BT, mask_BT)
            with torch.no_grad():
                reference_BT = _logprobs(reference, ids_BT, mask_BT)
            advantages_B1 = advantages_B[start : start + size, None]
            ratios_BT = (logprobs_BT - sampler_BT).exp()
            clipped_BT = ratios_BT.clamp(1 - CLIP, 1 + CLIP)
            surrogate_BT = torch.minimum(ratios_BT * advantages_B1, clipped_BT * advantages_B1)
            distance_BT = reference_BT - logprobs_BT
            kl_BT = distance_BT.exp() - distance_BT - 1
            loss_BT = KL_COEF * kl_BT - surrogate_BT
            share = (loss_BT * mask_BT).sum() / num_predicted
            engine.backward(share, "responses")
            total += share.detach()
        tokens = num_predicted + sum(len(one.prompt_token_ids) for one in everything)
        return Done(tokens, num_predicted, float(total))

    return Stage(
        AutoModelForCausalLM,
        "responses",
        CANDIDATES,
        8,
        ours,
        peer,
        "transformers, padded responses",
    )


def _rollouts(index: int, group: PromptGroup) -> list[Rollout]:
    """The group's responses as if every token had been as likely."""
    return [
        Rollout(
            prompt_id=f"p{index}",
            prompt="",
            prompt_token_ids=tuple(group.prompt_token_ids),
            token_ids=tuple(response),
            text="",
            logprobs=(-math.log(VOCABULARY),) * len(response),
            reward=float(place),
            disagreement=0.0,
            versions=((0, 0),),
        )
        for place, response in enumerate(group.responses)
    ]


def _padded(rollouts: list[Rollout], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Whole sequences; for all tokens but the first whether they are a response's; logprobs."""
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    starts = [len(one.prompt_token_ids) for one in rollouts]
    ids = [torch.tensor((*one.prompt_token_ids, *one.token_ids)) for one in rollouts]
    masks = [(torch.arange(len(row)) >= s).float() for row, s in zip(ids, starts, strict=True)]
    drawn = [
        torch.tensor((*[0.0] * start, *one.logprobs))
        for one, start in zip(rollouts, starts, strict=True)
    ]
    return pad(ids).to(device), pad(masks)[:, 1:].to(device), pad(drawn)[:, 1:].to(device)


def _logprobs(model: Computing, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Of each token after the first; 0 where it is no response's."""
    # No logits of what all have before their responses, as TRL does it.
    start = int(mask_BT.any(dim=0).nonzero()[0])
    logits_BTV: Tensor = model.forward(
        input_ids=ids_BT,
        attention_mask=(ids_BT != 0).long(),
        logits_to_keep=ids_BT.shape[1] - start,
    ).logits
    logprobs_BTV = logits_BTV[:, :-1].float().log_softmax(-1)
    picked_BT = logprobs_BTV.gather(-1, ids_BT[:, start + 1 :, None])[..., 0]
    return F.pad(picked_BT, (start, 0)) * mask_BT


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--stage", choices=("preference_model", "policy"), default="preference_model"
    )
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--head", type=int, default=64, help="dimensions of an attention head")
    parser.add_argument("--sequence", type=int, default=2048, help="tokens of a group")
    parser.add_argument("--prompts", type=int, default=16, help="of a step")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--peer-batch", type=int, default=4, help="pairs of sequences at a time")
    parser.add_argument("--matrix", type=int, default=8192)
    parser.add_argument("--zero", type=int, choices=range(4), help="stage of DeepSpeed's engine")
    parser.add_argument("--recompute", action="store_true", help="recompute activations, both")
    return parser.parse_args()


if __name__ == "__main__":
    main()
