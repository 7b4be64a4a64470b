"""Log-probabilities, entropy and the supervised loss: by hand, and what must not matter."""

import math

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.logprobs import entropy, token_logprobs
from charactertrain.objectives.warm_start import supervised_loss


def random_batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(5, (3, 4), generator=generator)


def test_token_logprobs_by_hand() -> None:
    # Odds 1 : 2 : 5 are probabilities 1/8, 1/4, 5/8; odds 1 : 1 : 2 are 1/4, 1/4, 1/2.
    odds = torch.tensor([[[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]])
    logprobs = token_logprobs(odds.log(), torch.tensor([[2, 0]]))
    torch.testing.assert_close(logprobs, torch.tensor([[math.log(5 / 8), math.log(1 / 4)]]))


def test_token_logprobs_do_not_depend_on_the_level_of_the_logits() -> None:
    logits, token_ids = random_batch()
    torch.testing.assert_close(
        token_logprobs(logits + 100.0, token_ids), token_logprobs(logits, token_ids)
    )


def test_token_logprobs_gradient_is_that_of_log_softmax() -> None:
    logits, token_ids = random_batch()
    logits.requires_grad_()
    weights = torch.linspace(-1.0, 2.0, token_ids.numel(), dtype=torch.float64).view_as(token_ids)
    plain = logits.log_softmax(-1).gather(-1, token_ids[..., None]).squeeze(-1)
    (expected,) = torch.autograd.grad((weights * plain).sum(), logits)
    (found,) = torch.autograd.grad((weights * token_logprobs(logits, token_ids)).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_token_logprobs_leave_float32_logits_as_they_were() -> None:
    logits, token_ids = random_batch(dtype=torch.float32)
    before = logits.clone()
    logits.requires_grad_()
    token_logprobs(logits, token_ids).sum().backward()
    assert torch.equal(logits.detach(), before)


def test_token_logprobs_of_bfloat16_logits_are_computed_in_float32() -> None:
    # 256 equal logits: log(1/256) = -5.5452, which bfloat16 would round to -5.5312 or -5.5625.
    logits = torch.ones(1, 1, 256, dtype=torch.bfloat16, requires_grad=True)
    logprobs = token_logprobs(logits, torch.zeros(1, 1, dtype=torch.long))
    assert logprobs.dtype == torch.float32
    assert logprobs.item() == pytest.approx(-math.log(256), abs=1e-5)
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_token_logprobs_of_large_logits_are_finite() -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4]]], requires_grad=True)
    logprobs = token_logprobs(logits, torch.tensor([[2]]))
    assert logprobs.item() == pytest.approx(-2e4)
    logprobs.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[[-1.0, 0.0, 1.0]]]))


def test_token_logprobs_refuse_logits_that_were_not_shifted() -> None:
    logits, token_ids = random_batch()
    with pytest.raises(AssertionError):
        token_logprobs(logits[:, :-1], token_ids)


def test_entropy_by_hand() -> None:
    # Uniform over 4: log 4. Odds 1 : 1 : 2 : 0: 2 * (1/4) log 4 + (1/2) log 2 = 1.5 log 2.
    odds = torch.tensor([[[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 0.0]]])
    expected = torch.tensor([[math.log(4), 1.5 * math.log(2)]])
    torch.testing.assert_close(entropy(odds.log()), expected)


def test_entropy_of_a_certain_token_is_zero_with_a_finite_gradient() -> None:
    logits = torch.tensor([[[0.0, -torch.inf, -1e4]]], requires_grad=True)
    values = entropy(logits)
    assert values.item() == 0.0
    values.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_entropy_of_bfloat16_logits_is_computed_in_float32() -> None:
    assert entropy(torch.zeros(1, 1, 256, dtype=torch.bfloat16)).item() == pytest.approx(
        math.log(256), abs=1e-5
    )


def test_tokens_in_one_row_have_what_they_have_in_a_batch() -> None:
    logits, token_ids = random_batch()
    flat = logits.flatten(0, 1)
    torch.testing.assert_close(
        token_logprobs(flat, token_ids.flatten()), token_logprobs(logits, token_ids).flatten()
    )
    torch.testing.assert_close(entropy(flat), entropy(logits).flatten())


def test_no_tokens_have_no_logprobs() -> None:
    logits = torch.empty(0, 5, requires_grad=True)
    logprobs = token_logprobs(logits, torch.empty(0, dtype=torch.long))
    assert logprobs.shape == entropy(logits).shape == (0,)
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 5)


def test_supervised_loss_is_the_mean_surprise_per_token() -> None:
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    # (1 + 3) / 4, the other two tokens on another rank.
    loss = supervised_loss(logprobs, torch.full((2,), 0.25))
    assert loss.item() == 1.0
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.25, -0.25]))
