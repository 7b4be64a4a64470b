"""Responses as rows of padded batches: little padding, each once, and the same rewards."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from charactertrain.models.packing import PromptGroup
from charactertrain.models.padding import MAX_PADDING, PaddedRows, num_batches, pad

GROUPS = (
    PromptGroup((5, 6, 7), ((8, 9), (10, 11, 12), (13,))),
    PromptGroup((14, 15), ((16, 17, 18), (19, 20))),
)


def random_groups(seed: int) -> list[PromptGroup]:
    """Some prompts of one to many tokens, with one to six responses each, some of them empty."""
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(32) for _ in range(draw.randint(low, high)))

    longest = draw.choice([3, 30, 300])
    return [
        PromptGroup(
            tokens(1, longest), tuple(tokens(0, longest) for _ in range(draw.randint(1, 6)))
        )
        for _ in range(draw.randint(1, 12))
    ]


def whole_rows(groups: list[PromptGroup] | tuple[PromptGroup, ...]) -> list[list[int]]:
    return [[*g.prompt_token_ids, *response] for g in groups for response in g.responses]


def counted(batches: list[PaddedRows]) -> list[int]:
    """The responses that are not there again, batch after batch."""
    return [number for batch in batches for number in batch.response_R.tolist() if number >= 0]


def padding_share(batch: PaddedRows) -> float:
    return 1 - int(batch.attention_mask.sum()) / batch.attention_mask.numel()


def test_of_any_batch_no_more_than_a_twentieth_is_padding() -> None:
    for seed in range(30):
        groups = random_groups(seed)
        fewest = num_batches(groups)
        for count in (fewest, fewest + 1, 2 * fewest, 100):
            for batch in pad(groups, count):
                assert padding_share(batch) <= 0.05 + 1e-9
        assert MAX_PADDING == 0.05


def test_batches_are_as_many_as_asked_for_with_every_response_once() -> None:
    for seed in range(30):
        groups = random_groups(seed)
        fewest = num_batches(groups)
        for count in (fewest, fewest + 1, fewest + 3, 100):
            batches = pad(groups, count)
            assert len(batches) == count
            assert sorted(counted(batches)) == list(range(len(whole_rows(groups))))


def test_rows_masks_and_last_tokens_are_those_of_each_response() -> None:
    for seed in range(30):
        groups = random_groups(seed)
        rows = whole_rows(groups)
        for batch in pad(groups, num_batches(groups)):
            assert batch.input_ids.shape == batch.attention_mask.shape
            assert batch.input_ids.shape[1] == int(batch.last_R.max()) + 1
            for ids, mask, last, number in zip(
                batch.input_ids, batch.attention_mask, batch.last_R, batch.response_R, strict=True
            ):
                row = rows[int(number)]
                assert ids[: len(row)].tolist() == row
                assert int(last) == len(row) - 1
                assert mask.tolist() == [1] * len(row) + [0] * (len(mask) - len(row))


def test_padded_rows_by_hand() -> None:
    # Rows of 5, 6, 4, 5 and 4 tokens: 4 and 4, 5 and 5, and 6.
    assert num_batches(GROUPS) == 3
    short, middle, long = pad(GROUPS, 3)
    assert short.response_R.tolist() == [2, 4]
    assert short.input_ids.tolist() == [[5, 6, 7, 13], [14, 15, 19, 20]]
    assert middle.response_R.tolist() == [0, 3]
    assert middle.last_R.tolist() == [4, 4]
    assert long.response_R.tolist() == [1]
    assert long.input_ids.tolist() == [[5, 6, 7, 10, 11, 12]]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((7, 7, 7, 7), 1),
        # 195 of 200 tokens are none of padding, and 189 of 200 are too few.
        ((100, 95), 1),
        ((89, 100), 2),
        # Exactly a twentieth: 190 of 200.
        ((90, 100), 1),
        ((1, 2, 4, 8), 4),
        ((96, 97, 98, 99, 100), 1),
    ],
)
def test_num_batches_by_hand(lengths: tuple[int, ...], expected: int) -> None:
    responses = tuple((1,) * (length - 1) for length in lengths)
    assert num_batches([PromptGroup((1,), responses)]) == expected


def test_more_batches_than_needed_are_parts_of_them() -> None:
    groups = [PromptGroup((1,), ((2,),) * 5)]
    assert num_batches(groups) == 1
    assert [batch.response_R.tolist() for batch in pad(groups, 2)] == [[0, 1, 2], [3, 4]]
    parts = pad(groups, 4)
    assert sorted(len(batch.response_R) for batch in parts) == [1, 1, 1, 2]
    assert counted(parts) == [0, 1, 2, 3, 4]


def test_more_batches_than_rows_hold_rows_that_come_again() -> None:
    first, second, third, fourth = pad([PromptGroup((1,), ((2, 3), (4,)))], 4)
    assert first.response_R.tolist() == [1]
    assert second.response_R.tolist() == [0]
    for again in (third, fourth):
        assert again.response_R.tolist() == [-1]
        assert again.input_ids.tolist() == second.input_ids.tolist()
        assert again.attention_mask.tolist() == second.attention_mask.tolist()
        assert again.last_R.tolist() == second.last_R.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_rewards_of_padded_rows_are_those_of_rows_alone(seed: int) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.2,
    )
    model = LlamaForSequenceClassification(config).eval()
    # Tokens of all ids, that of padding among them.
    groups = random_groups(seed)
    found = torch.full((len(whole_rows(groups)),), torch.nan)
    with torch.no_grad():
        for batch in pad(groups, num_batches(groups)):
            hidden = model.model(**batch.model_inputs()).last_hidden_state
            rewards = model.score(hidden)[..., 0]
            found[batch.response_R] = rewards[torch.arange(len(rewards)), batch.last_R]
        alone = [
            model.score(model.model(input_ids=torch.tensor([row])).last_hidden_state)[0, -1, 0]
            for row in whole_rows(groups)
        ]
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-5, rtol=1e-5)
