"""From what a model is shown to its token ids, by the model's own chat template."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from charactertrain.exceptions import ChoiceError
from charactertrain.templates import Shown, plain_conversation


class AddedToken(Protocol):
    """A token that stands outside the vocabulary that was learnt from text."""

    @property
    def content(self) -> str:
        """How it is written."""

    @property
    def special(self) -> bool:
        """Whether it is structure rather than text, such as the end of a turn."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """The tokens that text is split at before anything else, by id."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: object) -> str:
        """Render a conversation."""

    def encode(self, text: str, **options: object) -> list[int]:
        """Token ids of a text."""


def encode(shown: Shown, tokenizer: Tokenizer) -> list[int]:
    """Token ids of what a model is to continue, up to where its own words begin."""
    if not shown.messages:
        return tokenizer.encode(shown.text)
    return tokenizer.encode(_render(shown, tokenizer), add_special_tokens=False)


def encode_exchange(prompt: str, response: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a prompt and a response to it, without the end of turn.

    What a preference model reads, in training and in serving alike; its scalar stands at the last
    token.
    """
    return encode(plain_conversation(prompt), tokenizer) + encode_response(response, tokenizer)


def encode_response(response: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a response, as `encode_exchange` puts them after those of its prompt."""
    return tokenizer.encode(defused(response, tokenizer), add_special_tokens=False)


def encode_choices(
    shown: Shown, choices: Sequence[str], tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """Token ids before a choice, and the one token that each choice then is.

    A tokenizer may merge the end of the text with the letter, so the whole is encoded with each
    choice and split where they part. Raises ChoiceError if a choice is not a single token there.
    """
    rendered = _render(shown, tokenizer) if shown.messages else shown.text
    special = not shown.messages
    encoded = [
        tokenizer.encode(rendered + choice, add_special_tokens=special) for choice in choices
    ]
    common = 0
    while all(len(ids) > common for ids in encoded) and len({ids[common] for ids in encoded}) == 1:
        common += 1
    if any(len(ids) != common + 1 for ids in encoded):
        raise ChoiceError(
            f"the choices {list(choices)} are not single tokens of this model's tokenizer after "
            f"{rendered[-40:]!r}; the judge ranker cannot read its letters. Use ranker=contrast."
        )
    return encoded[0][:common], [ids[common] for ids in encoded]


def _render(shown: Shown, tokenizer: Tokenizer) -> str:
    conversation = [
        {"role": message.role, "content": defused(message.content, tokenizer)}
        for message in shown.messages
    ]
    # Thoughts would be taken for the message or the response; templates without them ignore both
    # names, Qwen's and DeepSeek's.
    rendered: str = tokenizer.apply_chat_template(
        conversation,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        thinking=False,
    )
    return rendered + shown.text


def defused(text: str, tokenizer: Tokenizer) -> str:
    """`text` with the model's special tokens broken, so that no text can end its own turn."""
    # Not `all_special_tokens`: Llama's leaves out the tokens that open a turn.
    for added in tokenizer.added_tokens_decoder.values():
        token = added.content
        if added.special and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
