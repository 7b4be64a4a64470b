"""Packed rows: what a model makes of each response is what it makes of it alone."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AfmoeConfig,
    AutoConfig,
    AutoModelForCausalLM,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    NemotronConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from charactertrain.exceptions import ModelError
from charactertrain.models import loading, packed_attention, packing
from charactertrain.models.fused_kernels import FUSED, fuse
from charactertrain.models.packed_attention import Piece, cut
from charactertrain.models.packing import PromptGroup, check_packable, is_packable, pack

GROUPS = (
    PromptGroup((5, 6, 7), ((8, 9), (10, 11, 12), (13,))),
    PromptGroup((14, 15), ((16, 17, 18), (19, 20))),
)
LONGER = (
    *GROUPS,
    # Prompt and response beyond a window of four, a prompt of one token, an empty response.
    PromptGroup((3, 4, 5, 6, 7, 8, 9), ((21, 22), (), (23, 24, 25, 26, 27, 28, 29, 30), (31,))),
    PromptGroup((12,), ((11, 10, 9, 8, 7, 6),)),
)

SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    # At the usual 0.02 attention is all but even, and no test would tell one token from another.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2_windows": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "mistral": MistralConfig(**SIZES, sliding_window=4),
    "gemma3": Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        query_pre_attn_scalar=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt2": GPT2Config(
        vocab_size=32,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "phi3": Phi3Config(**SIZES),
    "phi3_window": Phi3Config(**SIZES, sliding_window=4),
    **{
        kind: AutoConfig.for_model(kind, **{**SIZES, **changes})
        for kind, changes in {
            "cohere2": {"sliding_window": 4},
            "deepseek_v3": {
                "num_key_value_heads": 4,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 16,
                "moe_intermediate_size": 16,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "first_k_dense_replace": 1,
            },
            "gemma": {"head_dim": 8},
            "gemma2": {"head_dim": 8, "attn_logit_softcapping": None, "sliding_window": 4},
            "glm4": {"head_dim": 8},
            "granite": {},
            "mixtral": {"num_local_experts": 4},
            "olmo2": {},
            "olmo3": {"sliding_window": 4},
            "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            "smollm3": {},
        }.items()
    },
}


def make_model(config: Any) -> PreTrainedModel:
    """With random weights, the same every time, and transformers' own attention."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.eval()


@pytest.fixture(name="model", params=CONFIGS)
def tiny_model_of_each_architecture(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_model(CONFIGS[request.param])


@pytest.fixture(name="llama")
def tiny_packed_llama() -> PreTrainedModel:
    model = make_model(CONFIGS["llama"])
    model.set_attn_implementation(packed_attention.NAME)
    return model


def logits_alone(model: PreTrainedModel, groups: tuple[PromptGroup, ...]) -> Tensor:
    """The logits of all response tokens, each response with its prompt in a call of its own."""
    alone = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt_token_ids, *response]])
            alone.append(model(input_ids=ids).logits[0, len(group.prompt_token_ids) - 1 : -1])
    return torch.cat(alone)


def logits_packed(model: PreTrainedModel, groups: tuple[PromptGroup, ...]) -> Tensor:
    """The same from one packed row."""
    row = pack(groups).to(model.device)
    logits: Tensor = model(**row.model_inputs(), logits_to_keep=row.predictor_N).logits[0]
    return logits


def gradients(model: PreTrainedModel, logits: Tensor) -> dict[str, Tensor]:
    """Of a fixed random combination of the logits."""
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    (logits * torch.randn(logits.shape, generator=generator)).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_every_type_that_is_packed_or_fused_is_tried() -> None:
    assert {config.model_type for config in CONFIGS.values()} == packing.PACKABLE
    assert FUSED <= packing.PACKABLE


def test_a_packed_response_gets_the_logits_that_it_gets_alone(model: PreTrainedModel) -> None:
    assert is_packable(model)
    with torch.no_grad():
        alone = logits_alone(model, LONGER)
        model.set_attn_implementation(packed_attention.NAME)
        packed = logits_packed(model, LONGER)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_a_packed_row_gives_the_gradients_of_its_responses_alone(model: PreTrainedModel) -> None:
    alone = gradients(model, logits_alone(model, LONGER))
    model.set_attn_implementation(packed_attention.NAME)
    packed = gradients(model, logits_packed(model, LONGER))
    assert packed.keys() == alone.keys() == dict(model.named_parameters()).keys()
    for name, gradient in alone.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_activations_computed_again_give_the_same_gradients(model: PreTrainedModel) -> None:
    loading_dropouts_off(model)
    model.set_attn_implementation(packed_attention.NAME)
    model.config.use_cache = False
    model.train()
    kept = gradients(model, logits_packed(model, LONGER))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing
    again = gradients(model, logits_packed(model, LONGER))
    assert again.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-6, msg=name)


def loading_dropouts_off(model: PreTrainedModel) -> None:
    """As loading does it: GPT-2 has some."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_a_plain_call_is_the_models_own_attention(model: PreTrainedModel) -> None:
    ids = torch.randint(3, 32, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        own = model(input_ids=ids).logits
        model.set_attn_implementation(packed_attention.NAME)
        plain = model(input_ids=ids).logits
    torch.testing.assert_close(plain, own, atol=1e-5, rtol=1e-5)


def test_a_plain_call_of_rows_padded_at_their_ends_is_the_models_own_attention(
    model: PreTrainedModel,
) -> None:
    ids = torch.randint(3, 32, (2, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask).logits
        model.set_attn_implementation(packed_attention.NAME)
        plain = model(input_ids=ids, attention_mask=mask).logits
    counted = mask.bool()
    torch.testing.assert_close(plain[counted], own[counted], atol=1e-5, rtol=1e-5)


def test_a_saved_config_does_not_name_the_attention(model: PreTrainedModel, tmp_path: Path) -> None:
    model.set_attn_implementation(packed_attention.NAME)
    model.save_pretrained(tmp_path)
    assert packed_attention.NAME not in (tmp_path / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_loaded_model_has_packed_attention_where_it_is_right(tmp_path: Path) -> None:
    for name, config in {"plain": CONFIGS["llama"], "capped": Gemma2Config(**SIZES)}.items():
        make_model(config).save_pretrained(tmp_path / name)
    plain = loading.load_causal_lm(tmp_path / "plain", torch.float32)
    assert plain.config._attn_implementation == packed_attention.NAME
    capped = loading.load_causal_lm(tmp_path / "capped", torch.float32)
    assert capped.config._attn_implementation == "sdpa"


UNPACKABLE = {
    "capped_logits": Gemma2Config(**SIZES),
    "state_space": MambaConfig(
        vocab_size=32, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0
    ),
    "linear_attention": Qwen3NextConfig(
        **SIZES,
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts_per_tok=2,
        num_experts=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "sinks": GptOssConfig(
        **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4
    ),
}


@pytest.mark.parametrize("name", UNPACKABLE)
def test_a_model_of_another_attention_is_not_packed(name: str) -> None:
    torch.manual_seed(0)
    # As transformers would choose: some have no sdpa.
    model = AutoModelForCausalLM.from_config(UNPACKABLE[name])
    assert not is_packable(model)
    with pytest.raises(ModelError, match=model.config.model_type):
        check_packable(model)


ODD = {
    # The output is viewed as another shape, which only a contiguous one can be.
    "output_viewed": AfmoeConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    # What attention is called with besides does not reach it.
    "options_dropped": NemotronConfig(**SIZES, head_dim=8),
    # The window is in the mask alone.
    "window_in_the_mask": Qwen2MoeConfig(
        **SIZES,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    # Recurrent layers that `layer_types` does not name.
    "recurrent": RecurrentGemmaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=32,
        attention_window_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    # A mask that the model makes for itself in each layer.
    "own_mask": DogeConfig(**SIZES, keep_window_size=4),
    "later_tokens_seen": Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=4, use_bidirectional_attention=True
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_model_is_packed_only_if_its_logits_are_those_of_responses_alone(
    name: str,
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ODD[name]).eval()
    if not is_packable(model):
        return
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        alone = logits_alone(model, LONGER)
        model.set_attn_implementation(packed_attention.NAME)
        packed = logits_packed(model, LONGER)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_a_model_whose_logits_could_be_capped_and_are_not_is_packed() -> None:
    model = make_model(Gemma2Config(**SIZES, attn_logit_softcapping=None))
    assert is_packable(model)
    check_packable(model)


# The attention alone


def zero_heads(values: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys that attend to all alike, and one value of one dimension per token."""
    value = torch.tensor(values)[None, None, :, None]
    return torch.zeros_like(value), torch.zeros_like(value), value


PROMPT_AND_TWO = cut([Piece(0, 2), Piece(2, 5, 0, 2), Piece(5, 6, 0, 2)])
"""A prompt of two tokens, a response of three and one of one."""


def test_attention_over_pieces_by_hand() -> None:
    heads = zero_heads([1.0, 3.0, 8.0, 4.0, 9.0, 17.0])
    output, _ = packed_attention.packed_attention(nn.Module(), *heads, None, pieces=PROMPT_AND_TWO)
    assert output.shape == (1, 6, 1, 1)
    assert output.is_contiguous()
    # Means of what each token sees: the last one 1, 3 and itself.
    expected = torch.tensor([1.0, 2.0, 4.0, 4.0, 5.0, 7.0])
    torch.testing.assert_close(output.flatten(), expected)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, [1.0, 3.0, 8.0, 4.0, 9.0, 17.0]),
        # Itself and the one before it, which is the prompt's last for either response.
        (2, [1.0, 2.0, 5.5, 6.0, 6.5, 10.0]),
        (3, [1.0, 2.0, 4.0, 5.0, 7.0, 7.0]),
        (4, [1.0, 2.0, 4.0, 4.0, 6.0, 7.0]),
        (5, [1.0, 2.0, 4.0, 4.0, 5.0, 7.0]),
    ],
)
def test_attention_within_a_window_by_hand(window: int, expected: list[float]) -> None:
    heads = zero_heads([1.0, 3.0, 8.0, 4.0, 9.0, 17.0])
    output, _ = packed_attention.packed_attention(
        nn.Module(), *heads, None, pieces=PROMPT_AND_TWO, sliding_window=window
    )
    torch.testing.assert_close(output.flatten(), torch.tensor(expected))


def test_attention_scale_by_hand() -> None:
    # Scores 0 and log 3 after scaling: weights 1/4 and 3/4.
    query = torch.ones(1, 1, 2, 1)
    key = torch.tensor([0.0, 2 * torch.tensor(3.0).log()])[None, None, :, None]
    value = torch.tensor([4.0, 8.0])[None, None, :, None]
    output, _ = packed_attention.packed_attention(
        nn.Module(), query, key, value, None, pieces=cut([Piece(0, 2)]), scaling=0.5
    )
    torch.testing.assert_close(output.flatten(), torch.tensor([4.0, 7.0]))


def test_pieces_as_kernels_read_them_by_hand() -> None:
    assert PROMPT_AND_TWO.keys_K.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5]
    assert PROMPT_AND_TWO.query_ends_S.tolist() == [0, 2, 5, 6]
    assert PROMPT_AND_TWO.key_ends_S.tolist() == [0, 2, 7, 10]
    assert PROMPT_AND_TWO.query_ends_S.dtype == PROMPT_AND_TWO.key_ends_S.dtype == torch.int32
    assert (PROMPT_AND_TWO.longest_query, PROMPT_AND_TWO.longest_key) == (3, 5)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_attention_that_would_be_wrong_without_an_option_is_refused(name: str) -> None:
    heads = zero_heads([1.0, 2.0])
    pieces = cut([Piece(0, 2)])
    with pytest.raises(AssertionError, match=name):
        packed_attention.packed_attention(
            nn.Module(), *heads, None, pieces=pieces, **{name: torch.tensor(50.0)}
        )
    output, _ = packed_attention.packed_attention(
        nn.Module(), *heads, None, pieces=pieces, **{name: None}
    )
    torch.testing.assert_close(output.flatten(), torch.tensor([1.0, 1.5]))


def test_attention_over_pieces_of_several_rows_is_refused() -> None:
    heads = [tensor.expand(2, 1, 2, 1) for tensor in zero_heads([1.0, 2.0])]
    with pytest.raises(AssertionError, match="one row, found 2"):
        packed_attention.packed_attention(nn.Module(), *heads, None, pieces=cut([Piece(0, 2)]))


# The row


def test_a_prompt_stands_in_the_row_once() -> None:
    row = pack(GROUPS)
    assert row.input_ids[0].tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    assert row.position_ids[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 3, 0, 1, 2, 3, 4, 2, 3]
    assert row.input_ids.numel() == sum(group.num_tokens for group in GROUPS)


def test_each_response_sees_its_prompt_and_itself() -> None:
    first, second = (0, 3), (9, 11)
    assert pack(GROUPS).pieces.pieces == (
        Piece(*first),
        Piece(3, 5, *first),
        Piece(5, 8, *first),
        Piece(8, 9, *first),
        Piece(*second),
        Piece(11, 14, *second),
        Piece(14, 16, *second),
    )


def test_the_last_token_and_the_number_of_each_response() -> None:
    row = pack(GROUPS)
    assert row.last_R.tolist() == [4, 7, 8, 13, 15]
    assert row.response_N.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 4]
    assert row.predictor_N.tolist() == [2, 3, 2, 5, 6, 2, 10, 11, 12, 10, 14]
    assert row.token_ids_N.tolist() == [8, 9, 10, 11, 12, 13, 16, 17, 18, 19, 20]


def test_an_empty_response_is_read_at_its_prompt() -> None:
    row = pack([PromptGroup((5, 6), ((), (7,)))])
    assert row.last_R.tolist() == [1, 2]
    assert row.predictor_N.tolist() == [1]
    assert row.pieces.pieces == (Piece(0, 2), Piece(2, 3, 0, 2))


def test_a_change_in_one_response_changes_no_other(llama: PreTrainedModel) -> None:
    first, second = GROUPS
    changed = PromptGroup(first.prompt_token_ids, ((8, 9), (21, 22, 23), (13,)))
    with torch.no_grad():
        a = logits_packed(llama, (first, second))
        b = logits_packed(llama, (changed, second))
    touched = pack(GROUPS).response_N == 1
    torch.testing.assert_close(a[~touched], b[~touched], atol=0, rtol=0)
    # The first token of the response is predicted at the prompt, the others behind the change.
    assert (a[touched][1:] != b[touched][1:]).any(dim=1).all()


# On a GPU

WIDE = {**SIZES, "hidden_size": 128, "intermediate_size": 256}
"""Heads of 32 dimensions: the kernel takes multiples of 8."""


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_the_kernels_attention_is_that_of_the_loop(window: int | None) -> None:
    pieces = pack(LONGER).pieces
    generator = torch.Generator().manual_seed(4)
    length = int(pieces.query_ends_S[-1])
    shapes = [(1, 4, length, 32), (1, 2, length, 32), (1, 2, length, 32)]
    heads = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    exact, _ = packed_attention.packed_attention(
        nn.Module(),
        *(tensor.float() for tensor in heads),
        None,
        pieces=pieces,
        scaling=0.25,
        sliding_window=window,
    )
    found, _ = packed_attention.packed_attention(
        nn.Module(),
        *(tensor.cuda() for tensor in heads),
        None,
        pieces=pieces.to(torch.device("cuda")),
        scaling=0.25,
        sliding_window=window,
    )
    assert found.dtype == torch.bfloat16
    # Seven bits after the leading one, and as many of each weight.
    torch.testing.assert_close(found.cpu().float(), exact, atol=2**-7, rtol=2**-7)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**WIDE),
        MistralConfig(**WIDE, sliding_window=4),
        Gemma3TextConfig(
            **WIDE,
            head_dim=32,
            query_pre_attn_scalar=16,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ],
    ids=["llama", "mistral", "gemma3"],
)
def test_packed_logits_in_bfloat16_on_a_gpu_are_those_of_the_loop_on_a_cpu(config: Any) -> None:
    # With weights that are bfloat16 numbers, so that the exact one computes with the same.
    model = make_model(config).bfloat16().float()
    model.set_attn_implementation(packed_attention.NAME)
    exact = logits_and_gradient(model)
    loop = logits_and_gradient(model.bfloat16())
    kernel = logits_and_gradient(model.to("cuda"))
    for found, rounded, value in zip(kernel, loop, exact, strict=True):
        rounding = relative_error(rounded, value)
        assert 0 < rounding < 0.1
        assert relative_error(found, value) < 2 * rounding


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", [name for name, config in CONFIGS.items() if config.model_type in FUSED]
)
def test_fused_kernels_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(CONFIGS[name])
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms would otherwise be all ones, or all zeros.
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    model.bfloat16().float().set_attn_implementation(packed_attention.NAME)
    exact = logits_and_gradient(model)
    plain = logits_and_gradient(model.bfloat16().to("cuda"))
    # Some are put into the module of the model's type.
    of_type = sys.modules[type(model).__module__]
    for attribute, value in list(vars(of_type).items()):
        monkeypatch.setattr(of_type, attribute, value)
    fuse(model)
    fused = logits_and_gradient(model)
    assert any(not torch.equal(a, b) for a, b in zip(fused, plain, strict=True))
    for found, rounded, value in zip(fused, plain, exact, strict=True):
        assert relative_error(found, value) < max(2 * relative_error(rounded, value), 0.01)


def logits_and_gradient(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """In float32 on the CPU; the gradient as one vector."""
    logits = logits_packed(model, LONGER).cpu().float()
    found = gradients(model, logits)
    return logits.detach(), torch.cat([value.cpu().float().flatten() for value in found.values()])


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, in that of what is exact."""
    return float((found - exact).norm() / exact.norm())
