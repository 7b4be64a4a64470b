"""A policy step's numbers on a real engine of one process."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_gradients import PLAIN
from torch import Tensor
from transformers import AutoModelForCausalLM

from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup, pack
from charactertrain.objectives.advantages import RunningBaseline
from charactertrain.objectives.logprobs import token_logprobs
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.worker import LocalWorker
from charactertrain.runtime.zero import FrozenModel, ZeroEngine, ZeroSettings
from charactertrain.stages.policy.objective import Correction, PolicyGradient
from charactertrain.stages.policy.rollouts import Rollout
from charactertrain.stages.policy.step import cut, microbatch_loss, policy_step
from charactertrain.stages.policy.task import OptimiseTask, PolicyTask, WarmStartTask
from charactertrain.stages.policy.warm_start import warm_start_step
from charactertrain.stages.response_logits import (
    Models,
    end_logprobs,
    impossible,
    response_logits,
)
from charactertrain.storage import open_directory

END_TOKEN = 0
SHORT = PromptGroup((7, 30, 11), ((40, 41), (50, 51, 52, 53)))
LONG = PromptGroup((9, 8, 60, 61, 62, 63), (tuple(range(70, 90)), (91,)))
KL, SAMPLER_KL, ENTROPY, RATIO, CLIPPED, CORRECTION = range(1, 7)
OPTIMIZER = OptimizerSettings(weight_decay=0.0, max_grad_norm=1.0, recompute_activations=False)
SETTINGS = ZeroSettings(stage=0, offload=False, bf16=False, optimizer=OPTIMIZER)


@pytest.fixture(scope="module")
def models(tiny_model: Path, process_group: None) -> Iterator[Models]:
    """A policy on the reference's own weights, in a process group of one."""
    load = partial(loading.load_causal_lm, tiny_model, torch.float32)
    policy = ZeroEngine(load, SETTINGS)
    yield Models(policy, FrozenModel(load, SETTINGS), (END_TOKEN,))
    policy.close()


def make_task() -> PolicyTask:
    return PolicyTask(
        model_directory="",
        precision="fp32",
        context_tokens=128,
        warm_start=WarmStartTask((), 0, 1, 0.0),
        optimise=OptimiseTask(
            objective=PLAIN, num_steps=1, learning_rate=1e-3, warmup_steps=0, sync_tolerance=0.1
        ),
        fixed_ending=True,
        token_budget=1,
        lora=None,
        zero=SETTINGS,
        checkpoint_every=1,
        watch=None,
        seed=3,
        output=open_directory("/nowhere"),
    )


def policy_logprobs(models: Models, *groups: PromptGroup) -> Tensor:
    """Of all response tokens, with forbidden tokens impossible."""
    row = pack(groups).to(models.policy.device)
    with torch.no_grad():
        logits_NV = impossible(response_logits(models.policy, row), models.forbidden)
    return token_logprobs(logits_NV, row.token_ids_N).cpu()


def rollouts(group: PromptGroup, logprobs_N: Tensor, rewards: list[float]) -> list[Rollout]:
    """The group's responses, sampled with these log-probabilities."""
    parts = logprobs_N.split([len(response) for response in group.responses])
    return [
        Rollout(
            prompt_id="p",
            prompt="",
            prompt_token_ids=tuple(group.prompt_token_ids),
            token_ids=tuple(response),
            text="",
            logprobs=tuple(part.tolist()),
            reward=reward,
            disagreement=0.0,
            versions=((0, 0),),
        )
        for response, part, reward in zip(group.responses, parts, rewards, strict=True)
    ]


def own_rollouts(models: Models, group: PromptGroup, rewards: list[float]) -> list[Rollout]:
    """The group's responses as the policy itself would have sampled them."""
    return rollouts(group, policy_logprobs(models, group), rewards)


def loss_of(
    models: Models,
    groups: list[list[Rollout]],
    advantages_R: Tensor,
    objective: PolicyGradient = PLAIN,
    whole: list[list[Rollout]] | None = None,
) -> tuple[Tensor, Tensor]:
    """The share and sums of groups that are one microbatch, of a step of `whole`."""
    (batch,) = cut(models, groups, LocalWorker(print), 10_000)
    step = whole or groups
    lengths_PG = torch.tensor([[len(r.token_ids) for r in group] for group in step])
    mine_R = advantages_R.view(len(groups), -1)[batch.places].flatten()
    batch = replace(batch, places=[step.index(groups[place]) for place in batch.places])
    return microbatch_loss(models, objective, batch, mine_R, lengths_PG)


def test_response_logits_are_those_of_each_response_alone(models: Models, tiny_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = []
    for group in (SHORT, LONG):
        for response in group.responses:
            ids = torch.tensor([[*group.prompt_token_ids, *response]])
            with torch.no_grad():
                logits_TV = plain(input_ids=ids).logits[0, -len(response) - 1 : -1]
            logits_TV[:, END_TOKEN] = -torch.inf
            expected.append(logits_TV.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]))
    found = policy_logprobs(models, SHORT, LONG)
    torch.testing.assert_close(found, torch.cat(expected).flatten(), rtol=1e-4, atol=1e-5)


def test_response_logits_do_not_depend_on_what_else_is_in_the_row(models: Models) -> None:
    alone = policy_logprobs(models, SHORT)
    beside = policy_logprobs(models, SHORT, LONG)[: len(alone)]
    behind = policy_logprobs(models, LONG, SHORT)[-len(alone) :]
    sibling = PromptGroup(SHORT.prompt_token_ids, (*SHORT.responses, tuple(range(90, 120))))
    with_sibling = policy_logprobs(models, sibling)[: len(alone)]
    for other in (beside, behind, with_sibling):
        torch.testing.assert_close(other, alone, rtol=1e-4, atol=1e-5)


def test_forbidden_tokens_have_probability_zero_and_the_rest_renormalise(models: Models) -> None:
    row = pack([SHORT]).to(models.policy.device)
    with torch.no_grad():
        free_TV = response_logits(models.policy, row).softmax(-1)
        bound_TV = impossible(response_logits(models.policy, row), (END_TOKEN, 40)).softmax(-1)
    forbidden = [END_TOKEN, 40]
    assert bool((free_TV[:, forbidden] > 0).all())
    assert bool((bound_TV[:, forbidden] == 0).all())
    expected_TV = free_TV / (1 - free_TV[:, forbidden].sum(-1, keepdim=True))
    expected_TV[:, forbidden] = 0
    torch.testing.assert_close(bound_TV, expected_TV)


def test_microbatch_on_policy_has_ratio_one_and_no_kl_to_itself(models: Models) -> None:
    group = own_rollouts(models, SHORT, [0.0, 0.0])
    advantages_R = torch.tensor([0.5, -2.0])
    share, sums = loss_of(models, [group], advantages_R, replace(PLAIN, kl_coef=0.3))
    assert float(sums[KL]) == pytest.approx(0.0, abs=1e-9)
    assert float(sums[RATIO]) == pytest.approx(6.0, rel=1e-5)
    assert float(sums[CLIPPED]) == 0
    assert 0 < float(sums[ENTROPY]) / 6 < 6
    assert float(sums[SAMPLER_KL]) == pytest.approx(0.0, abs=1e-9)
    assert float(sums[CORRECTION]) == 6
    # -(2 tokens of 0.5 and 4 of -2) over the step's 6.
    assert float(share.detach()) == pytest.approx(7 / 6, rel=1e-5)


def test_microbatch_takes_ratios_to_the_sampler_and_clips_them(models: Models) -> None:
    # The sampler found every token 1.5 times as likely as the policy does.
    logprobs = policy_logprobs(models, SHORT) + torch.log(torch.tensor(1.5))
    group = rollouts(SHORT, logprobs, [0.0, 0.0])
    share, sums = loss_of(models, [group], torch.tensor([1.0, -1.0]))
    assert float(sums[RATIO]) == pytest.approx(6 / 1.5, rel=1e-5)
    # Ratios of 2/3: clipped to 0.8 where the advantage is negative, free where it is positive.
    assert float(sums[CLIPPED]) == 4
    assert float(share.detach()) == pytest.approx(-(2 * (2 / 3) - 4 * 0.8) / 6, rel=1e-5)


def test_microbatch_kl_is_to_the_reference(models: Models, tiny_model: Path) -> None:
    # Reference and policy change places: the reference is the frozen one with other weights.
    other = loading.load_causal_lm(tiny_model, torch.float32)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.5)
    far = Models(models.policy, FrozenModel(lambda: other, SETTINGS), models.forbidden)
    group = own_rollouts(models, SHORT, [0.0, 0.0])
    pulled = replace(PLAIN, kl_coef=1.0)
    _, near_sums = loss_of(models, [group], torch.zeros(2), pulled)
    share, sums = loss_of(far, [group], torch.zeros(2), pulled)
    row = pack([SHORT]).to(models.policy.device)
    with torch.no_grad():
        logits_NV = impossible(response_logits(far.reference, row), far.forbidden)
        ends = [
            response_logits(model, row).log_softmax(-1)[:, END_TOKEN].cpu()
            for model in (far.policy, far.reference)
        ]
    log_ratios = policy_logprobs(models, SHORT) - token_logprobs(logits_NV, row.token_ids_N).cpu()
    assert float(near_sums[KL]) == pytest.approx(0.0, abs=1e-9)
    assert float(sums[KL]) == pytest.approx(
        float((torch.expm1(-log_ratios) + log_ratios).sum()), rel=1e-4
    )
    # The responses cannot end, so the inclination to end is held at the reference's besides.
    ours, theirs = (torch.distributions.Bernoulli(end.exp()) for end in ends)
    of_ending = torch.distributions.kl_divergence(theirs, ours).mean()
    expected = 0.5 * log_ratios.square().mean() + of_ending
    assert float(share.detach()) == pytest.approx(float(expected), rel=1e-4)


OBJECTIVES = {
    "clipped": replace(PLAIN, kl_coef=0.3),
    "dual": replace(PLAIN, dual_clip=1.1),
    "cispo": replace(PLAIN, loss="cispo", clip_low=1.0, kl_coef=0.3, kl_estimator="k3"),
    "gspo": replace(PLAIN, loss="sequence", aggregate="sequence", clip_low=1e-3, clip_high=1e-3),
    "truncated": replace(PLAIN, correction=Correction("truncate", "token", 1.1)),
    "masked": replace(PLAIN, correction=Correction("mask", "sequence", 1.5)),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_microbatch_shares_and_sums_add_up_to_those_of_one_piece(
    models: Models, objective: PolicyGradient
) -> None:
    short = rollouts(SHORT, policy_logprobs(models, SHORT) - 0.1, [0.0, 0.0])
    long = rollouts(LONG, policy_logprobs(models, LONG) + 0.2, [0.0, 0.0])
    advantages_R = torch.tensor([0.5, -2.0, 1.0, 3.0])
    step = [short, long]
    whole, whole_sums = loss_of(models, step, advantages_R, objective)
    first, first_sums = loss_of(models, [short], advantages_R[:2], objective, step)
    second, second_sums = loss_of(models, [long], advantages_R[2:], objective, step)
    assert float((first + second).detach()) == pytest.approx(float(whole.detach()), rel=1e-5)
    torch.testing.assert_close(first_sums + second_sums, whole_sums, rtol=1e-5, atol=1e-6)


def test_policy_step_reports_means_over_the_step(models: Models) -> None:
    groups = [own_rollouts(models, SHORT, [1.0, 3.0]), own_rollouts(models, LONG, [2.0, 2.0])]
    values = step_of(models, groups)
    models.policy.step(0.0)
    assert values["ratio"] == pytest.approx(1.0, rel=1e-5)
    assert values["kl"] == pytest.approx(0.0, abs=1e-8)
    assert values["clip_fraction"] == 0
    assert values["reward"] == 2.0
    assert values["zero_variance_fraction"] == 0.5
    assert values["length_tokens"] == 27 / 4
    # Centered advantages: -1 on 2 tokens, 1 on 4, and 0 on the other group's.
    assert values["loss"] == pytest.approx(-(4 - 2) / 27, rel=1e-5)


def step_of(
    models: Models, groups: list[list[Rollout]], objective: PolicyGradient = PLAIN
) -> dict[str, Any]:
    return policy_step(
        models,
        objective,
        groups,
        LocalWorker(print),
        token_budget=1,
        baseline=RunningBaseline(mean=1.0, weight=0.5),
    )


def test_kl_in_the_reward_costs_each_response_its_own(models: Models) -> None:
    # The sampler finds each token 0.1 nats likelier than the reference does.
    sampled = policy_logprobs(models, SHORT) + 0.1
    groups = [rollouts(SHORT, sampled, [1.0, 1.0])]
    objective = replace(
        PLAIN, advantages="reinforce", kl_coef=2.0, kl_place="reward", kl_estimator="k1"
    )
    values = step_of(models, groups, objective)
    models.policy.step(0.0)
    # 2 and 4 tokens.
    assert values["kl_cost"] == pytest.approx(2.0 * 0.1 * 3, rel=1e-4)
    # Against the baseline 1: advantages of -0.4 and -0.8, and ratios of exp(-0.1).
    expected = (2 * 0.4 + 4 * 0.8) * math.exp(-0.1) / 6
    assert values["loss"] == pytest.approx(expected, rel=1e-4)


def test_corrected_tokens_are_credited_to_the_step_and_weighed(models: Models) -> None:
    # The sampler found every token half as likely as the policy does.
    group = rollouts(SHORT, policy_logprobs(models, SHORT) - math.log(2), [0.0, 0.0])
    advantages_R = torch.tensor([1.0, -1.0])
    truncated = replace(PLAIN, correction=Correction("truncate", "token", 1.5))
    share, sums = loss_of(models, [group], advantages_R, truncated)
    assert float(sums[RATIO]) == pytest.approx(6, rel=1e-5)
    assert float(sums[CORRECTION]) == pytest.approx(6 * 1.5, rel=1e-5)
    assert float(share.detach()) == pytest.approx(1.5 * (4 - 2) / 6, rel=1e-5)
    masked = replace(PLAIN, correction=Correction("mask", "token", 1.5))
    share, sums = loss_of(models, [group], advantages_R, masked)
    assert (float(share.detach()), float(sums[CORRECTION])) == (0, 0)
    # As sequences: 2^2 and 2^4, of which the bound lets the first through.
    of_sequences = replace(PLAIN, correction=Correction("mask", "sequence", 5.0))
    share, sums = loss_of(models, [group], advantages_R, of_sequences)
    assert float(sums[CORRECTION]) == pytest.approx(2 * 4, rel=1e-4)


def test_without_a_reference_nothing_is_pulled_and_no_kl_reported(models: Models) -> None:
    free = Models(models.policy, None, ())
    groups = [own_rollouts(free, SHORT, [1.0, 3.0])]
    values = step_of(free, groups)
    models.policy.step(0.0)
    assert "kl" not in values
    assert values["loss"] == pytest.approx(-(4 - 2) / 6, rel=1e-4)


def test_end_logprobs_are_over_the_whole_vocabulary(models: Models) -> None:
    row = pack([SHORT, LONG]).to(models.policy.device)
    with torch.no_grad():
        logits_NV = response_logits(models.policy, row)
        found = end_logprobs(logits_NV, (END_TOKEN, 40))
    expected = logits_NV.softmax(-1)[..., [END_TOKEN, 40]].sum(-1).log()
    torch.testing.assert_close(found, expected)


def drift_of_ending(models: Models, tiny_model: Path, *, is_held: bool) -> float:
    """Mean change of log P(end) over a response after warm-start steps on it, in nats."""
    load = partial(loading.load_causal_lm, tiny_model, torch.float32)
    engine = ZeroEngine(load, SETTINGS)
    held = Models(engine, models.reference if is_held else None, models.forbidden)
    example = PromptGroup(LONG.prompt_token_ids, LONG.responses[:1])
    row = pack([example]).to(engine.device)
    with torch.no_grad():
        before = end_logprobs(response_logits(engine, row), models.forbidden)
        for _ in range(30):
            with torch.enable_grad():
                warm_start_step(held, make_task(), [example], LocalWorker(print))
            engine.step(3e-3)
        after = end_logprobs(response_logits(engine, row), models.forbidden)
    engine.close()
    return float((after - before).abs().mean())


def test_warm_start_on_cut_responses_leaves_the_ending_where_it_was(
    models: Models, tiny_model: Path
) -> None:
    free, held = (drift_of_ending(models, tiny_model, is_held=held) for held in (False, True))
    assert free > 0.5
    assert held < free / 10
