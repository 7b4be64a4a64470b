import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from charactertrain.models.packing import PromptGroup, pack

GROUPS = (
    PromptGroup((5, 6, 7), ((8, 9), (10, 11, 12), (13,))),
    PromptGroup((14, 15), ((16, 17, 18), (19, 20))),
)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()


def test_a_packed_response_gets_the_logits_that_it_gets_alone(model: LlamaForCausalLM) -> None:
    row = pack(GROUPS)
    with torch.no_grad():
        packed = model(**row.model_inputs(), logits_to_keep=row.predictor_N).logits[0]
        alone = []
        for group in GROUPS:
            for response in group.responses:
                ids = torch.tensor([[*group.prompt_token_ids, *response]])
                logits = model(input_ids=ids).logits[0]
                alone.append(logits[len(group.prompt_token_ids) - 1 : -1])
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_prompt_stands_in_the_row_once() -> None:
    row = pack(GROUPS)
    assert row.input_ids[0].tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert row.position_ids[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 3, 0, 1, 2, 3, 4, 2, 3]


def test_the_last_token_and_the_number_of_each_response() -> None:
    row = pack(GROUPS)
    assert row.last_R.tolist() == [4, 7, 8, 13, 15]
    assert row.response_N.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4]
    assert row.token_ids_N.tolist() == [8, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20]


def test_an_empty_response_is_read_at_its_prompt() -> None:
    row = pack([PromptGroup((5, 6), ((), (7,)))])
    assert row.last_R.tolist() == [1, 2]
    assert row.predictor_N.tolist() == [1]


def test_a_change_in_one_response_changes_no_other(model: LlamaForCausalLM) -> None:
    first, second = GROUPS
    changed = PromptGroup(first.prompt_token_ids, ((8, 9), (21, 22, 23), (13,)))
    row, other = pack([first, second]), pack([changed, second])
    with torch.no_grad():
        a = model(**row.model_inputs(), logits_to_keep=row.predictor_N).logits[0]
        b = model(**other.model_inputs(), logits_to_keep=other.predictor_N).logits[0]
    untouched = row.response_N != 1
    torch.testing.assert_close(a[untouched], b[untouched], atol=0, rtol=0)
