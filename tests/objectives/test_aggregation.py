"""Weights of tokens, and sums and means over responses: by hand, and empty responses."""

import pytest
import torch

from charactertrain.objectives.aggregation import (
    response_means,
    response_sums,
    sequence_weights,
    token_weights,
    weighted_sum,
)

# Three responses of 2, 0 and 3 tokens, in another order than their numbers.
LENGTHS = torch.tensor([2, 0, 3])
RESPONSE = torch.tensor([2, 0, 2, 0, 2])
VALUES = torch.tensor([1.0, 10.0, 2.0, 30.0, 6.0])


def test_token_weights_by_hand() -> None:
    # 8 tokens in the step, 3 of them in another micro-batch.
    weights = token_weights(RESPONSE, 8)
    torch.testing.assert_close(weights, torch.full((5,), 0.125))


def test_sequence_weights_by_hand() -> None:
    # 4 responses in the step, one of them in another micro-batch.
    weights = sequence_weights(LENGTHS, RESPONSE, 4)
    torch.testing.assert_close(weights, torch.tensor([1 / 12, 1 / 8, 1 / 12, 1 / 8, 1 / 12]))


def test_the_two_weights_agree_where_all_responses_are_as_long() -> None:
    lengths, response = torch.tensor([3, 3]), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(token_weights(response, 6), sequence_weights(lengths, response, 2))


def test_a_mean_over_responses_counts_one_without_tokens_as_zero() -> None:
    # Means 3, 20 and nothing; (3 + 20 + 0) / 3.
    weights = sequence_weights(LENGTHS, RESPONSE, 3)
    assert weighted_sum(VALUES, weights).item() == pytest.approx(23 / 3)


def test_weights_of_a_micro_batch_without_tokens_are_none() -> None:
    lengths, response = torch.tensor([0, 0]), torch.empty(0, dtype=torch.long)
    for weights in (token_weights(response, 0), sequence_weights(lengths, response, 2)):
        assert weights.shape == (0,)
        assert weights.dtype == torch.float32
        assert weighted_sum(torch.empty(0), weights).item() == 0.0


def test_weighted_sum_by_hand() -> None:
    values = torch.tensor([2.0, -3.0], requires_grad=True)
    total = weighted_sum(values, torch.tensor([0.5, 0.25]))
    assert total.item() == 0.25
    total.backward()
    torch.testing.assert_close(values.grad, torch.tensor([0.5, 0.25]))


def test_weighted_sum_hides_no_value_that_is_not_finite() -> None:
    # There is no padding whose values could be anything: nan has to reach the check of the loss.
    assert weighted_sum(torch.tensor([1.0, torch.nan]), torch.tensor([0.5, 0.0])).isnan()


@pytest.mark.parametrize("weights", [torch.ones(1), torch.ones(3, 1), torch.tensor(1.0)])
def test_weighted_sum_refuses_weights_that_would_broadcast(weights: torch.Tensor) -> None:
    with pytest.raises(AssertionError):
        weighted_sum(torch.ones(3), weights)


def test_weighted_sum_refuses_a_batch_of_rows() -> None:
    with pytest.raises(AssertionError, match="not N"):
        weighted_sum(torch.ones(2, 3), torch.ones(2, 3))


def test_response_sums_and_means_by_hand() -> None:
    torch.testing.assert_close(response_sums(VALUES, RESPONSE, 3), torch.tensor([40.0, 0.0, 9.0]))
    torch.testing.assert_close(response_means(VALUES, RESPONSE, 3), torch.tensor([20.0, 0.0, 3.0]))


def test_response_sums_and_means_have_the_gradient_of_their_formula() -> None:
    values = VALUES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: response_sums(v, RESPONSE, 3), (values,))
    assert torch.autograd.gradcheck(lambda v: response_means(v, RESPONSE, 3), (values,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_narrow_floats_are_in_float32(dtype: torch.dtype) -> None:
    # 4096 times 60000 is beyond float16, and bfloat16 stops counting at 256.
    values, response = torch.full((4096,), 60000.0, dtype=dtype), torch.zeros(4096).long()
    expected = 4096 * values[0].item()
    assert response_sums(values, response, 1).item() == expected
    assert response_means(values, response, 1).item() == values[0].item()
    assert weighted_sum(values, torch.ones(4096)).item() == expected
