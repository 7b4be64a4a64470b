"""The order of the policy's prompts."""

import pytest

from charactertrain.records import Prompt
from charactertrain.stages.prompts.stream import PromptStream


def prompts(kind: str, count: int) -> list[Prompt]:
    return [
        Prompt(f"{kind}{i}", "warm", "warm/tea", kind, f"Text {i}", "train")  # type: ignore[arg-type]
        for i in range(count)
    ]


def drawn(stream: PromptStream, count: int) -> list[str]:
    return [stream[number].prompt_id for number in range(count)]


def test_every_prompt_comes_once_per_epoch_in_another_order() -> None:
    stream = PromptStream(prompts("trait", 7), [], general_share=0.0, seed=1)
    found = drawn(stream, 21)
    epochs = [found[:7], found[7:14], found[14:]]
    assert all(sorted(epoch) == [f"trait{i}" for i in range(7)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn(PromptStream(prompts("trait", 7), [], general_share=0.0, seed=1), 21) == found
    assert drawn(PromptStream(prompts("trait", 7), [], general_share=0.0, seed=2), 21) != found


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6])
def test_general_prompts_have_their_share_everywhere(share: float) -> None:
    stream = PromptStream(prompts("trait", 7), prompts("general", 3), general_share=share, seed=1)
    found = drawn(stream, 200)
    for start in range(0, 180, 20):
        general = [name for name in found[start : start + 20] if name.startswith("general")]
        assert abs(len(general) - 20 * share) <= 1
    general = [name for name in found if name.startswith("general")]
    assert sorted(general[:3]) == ["general0", "general1", "general2"]
