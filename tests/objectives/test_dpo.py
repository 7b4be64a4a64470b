"""Direct preference optimization: by hand, its invariances and its gradient."""

import math

import pytest
import torch
from torch import Tensor

from charactertrain.objectives.dpo import DPOTerms, dpo_loss

LOG_3 = math.log(3.0)
CERTAIN, EQUAL = torch.ones(4), torch.full((4,), 0.25)


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # With beta = 1/2 the margins beta d are log 3, -log 3, 0 and log 3.
    policy_chosen = torch.tensor([-10.0 + LOG_3, -20.0, -30.0, -40.0 + 2 * LOG_3])
    policy_rejected = torch.tensor([-11.0 - LOG_3, -21.0 + LOG_3, -31.0, -41.0])
    reference_chosen = torch.tensor([-10.0, -20.0 + LOG_3, -35.0, -40.0])
    reference_rejected = torch.tensor([-11.0, -21.0, -36.0, -41.0])
    return policy_chosen, policy_rejected, reference_chosen, reference_rejected


def terms_of(probabilities: Tensor, weights: Tensor) -> DPOTerms:
    return dpo_loss(*pairs(), probabilities, weights, beta=0.5)


def test_dpo_loss_by_hand() -> None:
    # sigma of the margins: 3/4, 1/4, 1/2, 3/4.
    terms = terms_of(torch.tensor([1.0, 0.75, 0.25, 0.5]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    near, far = math.log(4 / 3), math.log(4)
    expected = (
        0.1 * near
        + 0.2 * (0.75 * far + 0.25 * near)
        + 0.3 * math.log(2)
        + 0.4 * (0.5 * near + 0.5 * far)
    )
    assert terms.loss.item() == pytest.approx(expected, rel=1e-5)


def test_dpo_statistics_by_hand() -> None:
    terms = terms_of(torch.tensor([1.0, 0.75, 0.25, 0.5]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert terms.weight_sum.item() == pytest.approx(1.0)
    # Pair 1 agrees. Pair 2 is wrong, pair 3 has no sign, pair 4 has no label.
    assert terms.accuracy_sum.item() == pytest.approx(0.1)
    assert terms.undecided_weight_sum.item() == pytest.approx(0.4)
    assert terms.margin_sum.item() == pytest.approx((0.1 - 0.2 + 0.4) * LOG_3, rel=1e-5)


def test_dpo_loss_of_certain_labels_is_the_papers() -> None:
    chosen, rejected, reference_chosen, reference_rejected = pairs()
    margins = 0.5 * (chosen - reference_chosen) - 0.5 * (rejected - reference_rejected)
    expected = -torch.nn.functional.logsigmoid(margins).mean()
    torch.testing.assert_close(terms_of(CERTAIN, EQUAL).loss, expected)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.5, 1.0])
def test_dpo_loss_is_log_2_where_policy_and_reference_agree(probability: float) -> None:
    chosen, rejected, *_ = pairs()
    labels = torch.full((4,), probability)
    terms = dpo_loss(chosen, rejected, chosen, rejected, labels, EQUAL, beta=0.1)
    assert terms.loss.item() == pytest.approx(math.log(2))
    assert terms.margin_sum.item() == terms.accuracy_sum.item() == 0.0


def test_dpo_loss_is_the_same_for_a_pair_told_the_other_way_round() -> None:
    labels = torch.tensor([1.0, 0.75, 0.25, 0.5])
    chosen, rejected, reference_chosen, reference_rejected = pairs()
    told = dpo_loss(
        rejected, chosen, reference_rejected, reference_chosen, 1 - labels, EQUAL, beta=0.5
    )
    plain = terms_of(labels, EQUAL)
    torch.testing.assert_close(told.loss, plain.loss)
    torch.testing.assert_close(told.accuracy_sum, plain.accuracy_sum)
    torch.testing.assert_close(told.margin_sum, -plain.margin_sum)


def test_dpo_gradient_is_the_distance_to_the_label() -> None:
    chosen, rejected, reference_chosen, reference_rejected = (
        values.requires_grad_() for values in pairs()
    )
    labels = torch.tensor([1.0, 0.75, 0.25, 0.5])
    dpo_loss(
        chosen, rejected, reference_chosen, reference_rejected, labels, EQUAL, beta=0.5
    ).loss.backward()
    # w beta (sigma - p), and the opposite for the other response.
    expected = 0.25 * 0.5 * (torch.tensor([0.75, 0.25, 0.5, 0.75]) - labels)
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)
    assert reference_chosen.grad is None
    assert reference_rejected.grad is None


def test_dpo_loss_is_lowest_where_the_policy_prefers_as_much_as_the_label() -> None:
    # logit 0.75 = log 3, the first and the last pair's margin.
    chosen, rejected, *reference = (values[[0, 3]] for values in pairs())
    chosen.requires_grad_()
    labels = torch.full((2,), 0.75)
    dpo_loss(chosen, rejected, *reference, labels, torch.ones(2), beta=0.5).loss.backward()
    torch.testing.assert_close(chosen.grad, torch.zeros(2), rtol=0, atol=1e-6)


def test_dpo_shares_of_micro_batches_add_up() -> None:
    labels = torch.tensor([1.0, 0.75, 0.25, 0.5])
    whole = terms_of(labels, EQUAL)
    parts = [
        dpo_loss(*(values[part] for values in pairs()), labels[part], EQUAL[part], beta=0.5)
        for part in ([2, 0], [3], [1], [])
    ]
    for name in ("loss", "weight_sum", "accuracy_sum", "undecided_weight_sum", "margin_sum"):
        total = torch.stack([getattr(part, name) for part in parts]).sum()
        torch.testing.assert_close(total, getattr(whole, name), msg=name)


@pytest.mark.parametrize("difference", [1000.0, -1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dpo_loss_is_finite_where_policy_and_reference_are_far_apart(
    difference: float, dtype: torch.dtype
) -> None:
    chosen = torch.tensor([-60000.0], dtype=dtype).requires_grad_()
    reference = chosen.detach() - difference
    even = torch.zeros(1, dtype=dtype)
    terms = dpo_loss(chosen, even, reference, even, torch.tensor([0.9]), torch.ones(1), beta=0.5)
    # Half of 1000 (float16 has steps of 32 there), times the label that speaks against it.
    against = 0.1 if difference > 0 else 0.9
    assert terms.loss.item() == pytest.approx(500 * against, rel=0.05)
    terms.loss.backward()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_dpo_loss_of_bfloat16_sums_is_computed_in_float32() -> None:
    # bfloat16 has 8 bits: the differences to the reference have more.
    sums = [torch.tensor([value], dtype=torch.bfloat16) for value in (-10.0625, -3.0, -0.0078, -1)]
    label, weight = torch.tensor([0.75]), torch.ones(1)
    narrow = dpo_loss(*sums, label, weight, beta=0.5)
    wide = dpo_loss(*(values.float() for values in sums), label, weight, beta=0.5)
    assert narrow.loss.dtype == torch.float32
    assert torch.equal(narrow.loss, wide.loss)
