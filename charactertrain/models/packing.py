"""Prompts and their responses as one row of tokens, each prompt once, without any padding.

A prompt's responses follow it one after another. Each response sees the prompt and itself and
nothing else, at the positions it would have alone, so what the model computes for a response is
what it would compute for the two alone, and a prompt costs its tokens once however many responses
it has.

Shapes: L tokens of the row, N response tokens, R responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from charactertrain.exceptions import ModelError
from charactertrain.models.packed_attention import Piece, Pieces, cut


@dataclass(frozen=True)
class PromptGroup:
    """A prompt and its responses as token ids."""

    prompt_token_ids: Sequence[int]
    responses: tuple[Sequence[int], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of all responses."""
        return len(self.prompt_token_ids) + sum(map(len, self.responses))


@dataclass(frozen=True)
class PackedRow:
    """Groups packed into one row."""

    input_ids: Tensor
    """1 x L."""
    position_ids: Tensor
    """1 x L: a response's positions follow its prompt's."""
    pieces: Pieces
    """Which token sees which."""
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

    def model_inputs(self) -> dict[str, Any]:
        """What a transformers model is called with that was loaded with packed attention."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "pieces": self.pieces,
            # transformers makes no mask of its own where one of four dimensions is given.
            "attention_mask": self.position_ids.new_zeros(1, 1, 1, 1, dtype=torch.bool),
        }


def pack(groups: Sequence[PromptGroup]) -> PackedRow:
    """Groups as one row."""
    tokens: list[int] = []
    positions: list[int] = []
    pieces: list[Piece] = []
    targets: list[int] = []
    predictors: list[int] = []
    target_responses: list[int] = []
    last: list[int] = []
    for group in groups:
        length = len(group.prompt_token_ids)
        prompt = Piece(len(tokens), len(tokens) + length)
        pieces.append(prompt)
        tokens += group.prompt_token_ids
        positions += range(length)
        prompt_end = len(tokens) - 1
        for response in group.responses:
            start = len(tokens)
            tokens += response
            positions += range(length, length + len(response))
            if response:
                pieces.append(Piece(start, len(tokens), prompt.start, prompt.end))
            targets += response
            predictors += [prompt_end, *range(start, start + len(response) - 1)][: len(response)]
            target_responses += [len(last)] * len(response)
            last.append(len(tokens) - 1 if response else prompt_end)
    return PackedRow(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        pieces=cut(pieces),
        token_ids_N=torch.tensor(targets),
        predictor_N=torch.tensor(predictors),
        response_N=torch.tensor(target_responses),
        last_R=torch.tensor(last),
    )


PACKABLE = {
    "cohere2",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
}
"""Types of models of which tests show that a packed response gets what it gets alone.

No attribute tells: some hand nothing on to their attention, or hide a window in its mask.
"""


def is_packable(model: PreTrainedModel) -> bool:
    """Whether packed attention computes what the model's own would."""
    config = model.config
    return (
        config.model_type in PACKABLE
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(config, "use_bidirectional_attention", None)
    )


def check_packable(model: PreTrainedModel) -> None:
    """Raise ModelError if the model was not loaded with packed attention."""
    if not is_packable(model):
        raise ModelError(
            f"{model.config.model_type}: it is not known to compute the same for responses packed "
            "into one row, which the policy stage needs. Choose a model of one of these types: "
            f"{', '.join(sorted(PACKABLE))}."
        )
