"""The losses and their gradients are those that TRL's own trainers compute.

TRL has its losses in methods of trainers. They run here on trainers without a model, which have
what the method reads and no more. TRL is in requirements/bench.txt alone: without it, this is
skipped.

Shapes: B sequences, T tokens with padding, N tokens without, R = B responses.
"""

import math
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.aggregation import sequence_weights, token_weights, weighted_sum
from charactertrain.objectives.dpo import dpo_loss
from charactertrain.objectives.importance import truncated_importance_weights
from charactertrain.objectives.policy import (
    cispo_loss,
    clipped_policy_loss,
    kl_k3,
    sequence_policy_loss,
)

# Importing TRL takes most of the time.
pytestmark = pytest.mark.slow

pytest.importorskip("trl")
with warnings.catch_warnings():
    # What TRL and its dependencies warn of on import is not ours.
    warnings.simplefilter("ignore")
    grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer")
    dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer")

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
MAX_LENGTH = 7
LENGTHS_R = torch.tensor([7, 1, 4, 6])
MASK_BT = torch.arange(MAX_LENGTH) < LENGTHS_R[:, None]
RESPONSE_N = torch.arange(4).repeat_interleave(LENGTHS_R)
NUM_TOKENS = int(LENGTHS_R.sum())

BY_TOKEN = token_weights(RESPONSE_N, NUM_TOKENS)
BY_SEQUENCE = sequence_weights(LENGTHS_R, RESPONSE_N, 4)


@pytest.fixture(params=range(5))
def logprobs(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """Of policy, behaviour, reference and sampler, shape BT; padding holds other values."""
    generator = torch.Generator().manual_seed(request.param)
    names = ("policy", "behaviour", "reference", "sampler")
    values = {name: -3 * torch.rand(4, MAX_LENGTH, generator=generator) for name in names}
    # Half of the responses with means near one another, for clips of whole responses.
    values["behaviour"][::2] = values["policy"][::2] + 0.2 * values["behaviour"][::2] + 0.3
    values["advantages"] = torch.randn(4, generator=generator)
    values["policy"].requires_grad_()
    return values


def accelerator() -> SimpleNamespace:
    """Of one process."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        gather=lambda values: values,
        gather_for_metrics=lambda values: values,
        reduce=lambda values, reduction: values,
    )


def trl_policy_loss(
    values: dict[str, Tensor], extra: dict[str, Tensor] | None = None, **settings: Any
) -> Tensor:
    """`GRPOTrainer._compute_loss` with the given settings."""
    trainer = object.__new__(grpo_trainer.GRPOTrainer)
    attributes = {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": CLIP["clip_low"],
        "epsilon_high": CLIP["clip_high"],
        "delta": None,
        "max_completion_length": 32,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "aux_loss_enabled": False,
        "current_gradient_accumulation_steps": 1,
        "accelerator": accelerator(),
        "model": SimpleNamespace(training=True),
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list)},
    }
    for name, value in (attributes | settings).items():
        setattr(trainer, name, value)
    trainer.args = SimpleNamespace(
        delta=trainer.delta, use_bias_correction_kl=False, steps_per_generation=1
    )
    entropies = torch.zeros(4, MAX_LENGTH)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        values["policy"],
        entropies,
        None,
    )
    ids = torch.zeros(4, MAX_LENGTH, dtype=torch.long)
    loss: Tensor = trainer._compute_loss(
        None,
        {
            "prompt_ids": ids[:, :2],
            "prompt_mask": torch.ones(4, 2),
            "completion_ids": ids,
            "completion_mask": MASK_BT.float(),
            "advantages": values["advantages"],
            "old_per_token_logps": values["behaviour"],
            "ref_per_token_logps": values["reference"],
            "num_items_in_batch": torch.tensor(float(NUM_TOKENS)),
            **(extra or {}),
        },
    )
    return loss


def flat(values: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities under policy and behaviour, and advantages: shape N."""
    return (
        values["policy"][MASK_BT],
        values["behaviour"][MASK_BT],
        values["advantages"][RESPONSE_N],
    )


def assert_same(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    """The same loss, and the same gradient at each token."""
    torch.testing.assert_close(ours, theirs)
    (our_gradient,) = torch.autograd.grad(ours, leaf)
    (their_gradient,) = torch.autograd.grad(theirs, leaf)
    assert their_gradient.abs().max() > 0
    torch.testing.assert_close(our_gradient, their_gradient)


@pytest.mark.parametrize(
    ("loss_type", "weights_N"),
    [
        ("grpo", BY_SEQUENCE),
        ("dapo", BY_TOKEN),
        ("bnpo", BY_TOKEN),
        # It divides by the longest that responses may be, and not by their tokens.
        ("dr_grpo", token_weights(RESPONSE_N, 4 * 32)),
    ],
)
def test_clipped_policy_loss_agrees(
    logprobs: dict[str, Tensor], loss_type: str, weights_N: Tensor
) -> None:
    ours = clipped_policy_loss(*flat(logprobs), weights_N, **CLIP, dual_clip=None)
    theirs = trl_policy_loss(logprobs, loss_type=loss_type)
    assert_same(ours.loss, theirs, logprobs["policy"])


def test_dual_clip_agrees(logprobs: dict[str, Tensor]) -> None:
    # They bound the ratio of good responses too, where the other clip is lower already.
    ours = clipped_policy_loss(*flat(logprobs), BY_TOKEN, **CLIP, dual_clip=1.5)
    theirs = trl_policy_loss(logprobs, delta=1.5)
    assert_same(ours.loss, theirs, logprobs["policy"])


def test_cispo_agrees(logprobs: dict[str, Tensor]) -> None:
    # Their upper bound is the ratio itself and not its distance from 1; they have no lower one.
    ours = cispo_loss(*flat(logprobs), BY_TOKEN, clip_low=1.0, clip_high=0.3)
    theirs = trl_policy_loss(logprobs, loss_type="cispo", epsilon_high=1.3)
    assert_same(ours.loss, theirs, logprobs["policy"])


def test_sequence_policy_loss_agrees(logprobs: dict[str, Tensor]) -> None:
    ours = sequence_policy_loss(*flat(logprobs), BY_SEQUENCE, RESPONSE_N, 4, **CLIP)
    theirs = trl_policy_loss(logprobs, loss_type="grpo", importance_sampling_level="sequence")
    assert_same(ours.loss, theirs, logprobs["policy"])


def test_kl_agrees(logprobs: dict[str, Tensor]) -> None:
    ours = clipped_policy_loss(*flat(logprobs), BY_SEQUENCE, **CLIP, dual_clip=None).loss
    kl_N = kl_k3(logprobs["policy"][MASK_BT], logprobs["reference"][MASK_BT])
    theirs = trl_policy_loss(logprobs, loss_type="grpo", beta=0.4)
    assert_same(ours + 0.4 * weighted_sum(kl_N, BY_SEQUENCE), theirs, logprobs["policy"])


def test_importance_weights_in_the_advantages_agree(logprobs: dict[str, Tensor]) -> None:
    # What they multiply the loss by, the advantages are multiplied by here.
    weights_BT = truncated_importance_weights(
        logprobs["behaviour"].flatten(), logprobs["sampler"].flatten(), cap=2.0
    ).view_as(logprobs["sampler"])
    policy_N, behaviour_N, advantages_N = flat(logprobs)
    ours = clipped_policy_loss(
        policy_N,
        behaviour_N,
        advantages_N * weights_BT[MASK_BT],
        BY_TOKEN,
        **CLIP,
        dual_clip=None,
    )
    theirs = trl_policy_loss(logprobs, {"importance_sampling_ratio": weights_BT}, use_vllm=True)
    assert_same(ours.loss, theirs, logprobs["policy"])


def trl_dpo_loss(policy_2BT: Tensor, reference_2BT: Tensor, **settings: Any) -> Tensor:
    """`DPOTrainer._compute_loss`: rows are all chosen, then all rejected responses."""
    rows, length = policy_2BT.shape
    trainer = object.__new__(dpo_trainer.DPOTrainer)
    attributes = {
        "accelerator": accelerator(),
        "aux_loss_enabled": False,
        "beta": 0.3,
        "f_divergence_type": "reverse_kl",
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "model": SimpleNamespace(training=True),
        "precompute_ref_logps": True,
        "use_weighting": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (attributes | settings).items():
        setattr(trainer, name, value)

    def model(**_: Any) -> SimpleNamespace:
        zeros = torch.zeros(rows, length)
        return SimpleNamespace(
            log_probs=policy_2BT, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )

    reference_chosen_B, reference_rejected_B = reference_2BT.sum(1).chunk(2)
    loss: Tensor = trainer._compute_loss(
        model,
        {
            "input_ids": torch.zeros(rows, length + 1, dtype=torch.long),
            "attention_mask": torch.ones(rows, length + 1),
            "completion_mask": torch.ones(rows, length + 1),
            "ref_chosen_logps": reference_chosen_B,
            "ref_rejected_logps": reference_rejected_B,
        },
        return_outputs=False,
    )
    return loss


def our_dpo_loss(policy_2BT: Tensor, reference_2BT: Tensor, probability: float) -> Tensor:
    pairs = [*policy_2BT.sum(1).chunk(2), *reference_2BT.sum(1).chunk(2)]
    ones_B = torch.ones(len(pairs[0]))
    return dpo_loss(*pairs, probability * ones_B, ones_B / len(ones_B), beta=0.3).loss


def test_dpo_loss_agrees(logprobs: dict[str, Tensor]) -> None:
    policy_2BT, reference_2BT = logprobs["policy"], logprobs["reference"]
    ours = our_dpo_loss(policy_2BT, reference_2BT, 1.0)
    assert_same(ours, trl_dpo_loss(policy_2BT, reference_2BT), policy_2BT)
    assert not math.isclose(ours.item(), math.log(2), rel_tol=0.01)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_dpo_loss_of_soft_labels_agrees(logprobs: dict[str, Tensor], smoothing: float) -> None:
    # Their `sigmoid` smooths no labels. `aot` does; of one pair alone it is the same loss, as what
    # it sorts is that pair.
    policy_2BT, reference_2BT = logprobs["policy"][:2], logprobs["reference"][:2]
    theirs = trl_dpo_loss(policy_2BT, reference_2BT, loss_types=["aot"], label_smoothing=smoothing)
    ours = our_dpo_loss(policy_2BT, reference_2BT, 1 - smoothing)
    assert_same(ours, theirs, logprobs["policy"])
