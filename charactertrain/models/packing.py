"""Prompts and their responses as one row of tokens, each prompt once, without any padding.

A prompt's responses follow it one after another. Each response sees the prompt and itself and
nothing else, at the positions it would have alone, so what the model computes for a response is
what it would compute for the two alone, and a prompt costs its tokens once however many responses
it has.

Shapes: L tokens of the row, N response tokens, R responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from charactertrain.exceptions import ModelError


@dataclass(frozen=True)
class PromptGroup:
    """A prompt and its responses as token ids."""

    prompt_token_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PackedRow:
    """Groups packed into one row."""

    input_ids: Tensor
    """1 x L."""
    position_ids: Tensor
    """1 x L: a response's positions follow its prompt's."""
    attention_mask: Tensor
    """1 x 1 x L x L, True where a token (third axis) sees another (fourth)."""
    token_ids_N: Tensor
    """Response tokens, response by response."""
    predictor_N: Tensor
    """For each response token the index in the row of the token whose logits predict it."""
    response_N: Tensor
    """For each response token the number of its response, 0 to R - 1."""
    last_R: Tensor
    """For each response the index in the row of its last token; its prompt's, if it is empty."""

    def to(self, device: torch.device) -> "PackedRow":
        """The same on a device."""
        return PackedRow(*(value.to(device) for value in vars(self).values()))

    def model_inputs(self) -> dict[str, Tensor]:
        """What a transformers model is called with."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
        }


def pack(groups: Sequence[PromptGroup]) -> PackedRow:
    """Groups as one row."""
    tokens: list[int] = []
    positions: list[int] = []
    groups_of: list[int] = []
    responses_of: list[int] = []
    targets: list[int] = []
    predictors: list[int] = []
    target_responses: list[int] = []
    last: list[int] = []
    for number, group in enumerate(groups):
        length = len(group.prompt_token_ids)
        tokens += group.prompt_token_ids
        positions += range(length)
        groups_of += [number] * length
        responses_of += [-1] * length
        prompt_end = len(tokens) - 1
        for response in group.responses:
            start = len(tokens)
            tokens += response
            positions += range(length, length + len(response))
            groups_of += [number] * len(response)
            responses_of += [len(last)] * len(response)
            targets += response
            predictors += [prompt_end, *range(start, start + len(response) - 1)][: len(response)]
            target_responses += [len(last)] * len(response)
            last.append(len(tokens) - 1 if response else prompt_end)
    return PackedRow(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        attention_mask=_visibility(torch.tensor(groups_of), torch.tensor(responses_of)),
        token_ids_N=torch.tensor(targets),
        predictor_N=torch.tensor(predictors),
        response_N=torch.tensor(target_responses),
        last_R=torch.tensor(last),
    )


def _visibility(groups_L: Tensor, responses_L: Tensor) -> Tensor:
    """A token sees the tokens before it of its own prompt and its own response."""
    length = len(groups_L)
    earlier_LL = torch.ones(length, length, dtype=torch.bool).tril()
    same_group_LL = groups_L[:, None] == groups_L[None, :]
    same_response_LL = responses_L[:, None] == responses_L[None, :]
    is_prompt_L = responses_L == -1
    visible_LL = earlier_LL & same_group_LL & (same_response_LL | is_prompt_L[None, :])
    return visible_LL[None, None]


def check_packable(model: PreTrainedModel, context_tokens: int) -> None:
    """Raise ModelError if the model's attention cannot follow a packed row's mask."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    recurrent = kinds - {"full_attention", "sliding_attention", "attention"}
    if recurrent:
        raise ModelError(
            f"{config.model_type} has layers of kind {sorted(recurrent)}, which carry a state from "
            "token to token and would mix packed responses; training needs a model of attention"
        )
    if "sliding_attention" in kinds and window is not None and window < context_tokens:
        raise ModelError(
            f"{config.model_type} attends over a window of {window} tokens in some layers, shorter "
            f"than model.context_tokens {context_tokens}; lower model.context_tokens to {window}"
        )
