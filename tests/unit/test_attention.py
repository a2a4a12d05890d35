"""Attention by document: what packed answers see, against each of them run alone with transformers' own attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from uniapl import attention
from uniapl.attention import Documents
from uniapl.batch import MicroBatch, layout
from uniapl.records import TokenSequence

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
PROMPTS, ANSWERS = (3, 5, 1), ((2, 4), (3,), (0, 1, 2))  # lengths; the third prompt has an answer without a token
LENGTH = sum(PROMPTS) + sum(map(sum, ANSWERS))
MODULE = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True, training=True)


def random_heads(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value [1, H or G, S, D], in the memory order of a projection's output."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, LENGTH, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [
        torch.randn(shape, generator=generator).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes
    ]  # fmt: skip


def documents_by_hand() -> list[tuple[list[int], int]]:
    """Positions of every prompt with each of its answers, and how many of them are the prompt's."""
    found, at = [], 0
    for prompt, answers in zip(PROMPTS, ANSWERS, strict=True):
        own = list(range(at, at + prompt))
        found.append((own, prompt))
        at += prompt
        for length in answers:
            found.append((own + list(range(at, at + length)), prompt))
            at += length
    return found


def one_at_a_time(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[1, S, H, D]: every document run alone, by PyTorch's causal attention in float32."""
    repeat = HEADS // KV_HEADS
    out = torch.zeros(1, LENGTH, HEADS, HEAD_DIM)
    for number, (places, prompt) in enumerate(documents_by_hand()):
        q, k, v = (heads[:, :, places].float() for heads in (query, key, value))
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        alone = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        kept = slice(0, None) if len(places) == prompt and number in PROMPT_NUMBERS else slice(prompt, None)
        out = out.index_copy(1, torch.tensor(places[kept], dtype=torch.long), alone[:, kept])
    return out


PROMPT_NUMBERS = {0, 3, 5}  # which of the documents are prompts alone


def together(heads: list[Tensor]) -> Tensor:
    found, weights = attention.attention(MODULE, *heads, None, Documents.of_row(PROMPTS, ANSWERS))
    assert weights is None
    return found


@pytest.mark.parametrize("products_bytes", [attention.PRODUCTS_BYTES, 0], ids=["products", "fused"])
def test_values_and_gradients_are_those_of_each_document_alone(
    monkeypatch: pytest.MonkeyPatch, products_bytes: int
) -> None:
    monkeypatch.setattr(attention, "PRODUCTS_BYTES", products_bytes)
    heads = random_heads()
    upstream = torch.randn(1, LENGTH, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    out, wanted = together(heads), one_at_a_time(*heads)
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=1e-5)
    found = torch.autograd.grad(out, heads, upstream)
    for gradient, alone in zip(found, torch.autograd.grad(wanted, heads, upstream), strict=True):
        torch.testing.assert_close(gradient, alone, atol=1e-6, rtol=1e-5)


def test_a_token_that_is_not_seen_changes_nothing() -> None:
    heads = random_heads()
    before = together(heads)
    with torch.no_grad():
        for tensor in heads:
            tensor[:, :, 3:5] += 1.0  # the first prompt's first answer
        after = together(heads)
    changed = (after != before).flatten(2).any(-1)[0].nonzero()[:, 0].tolist()
    assert changed == [3, 4]


def test_bfloat16_is_as_near_to_float32_as_the_fused_kernel_is(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = random_heads(torch.bfloat16)
    wanted = one_at_a_time(*heads)
    errors = []
    for products_bytes in (attention.PRODUCTS_BYTES, 0):
        monkeypatch.setattr(attention, "PRODUCTS_BYTES", products_bytes)
        errors.append(float((together(heads).float() - wanted).detach().pow(2).mean().sqrt()))
    assert errors[0] < 1.5 * errors[1]
    assert errors[1] < 0.01


def test_without_documents_it_is_transformers_own() -> None:
    heads = random_heads()
    own = attention.sdpa_attention_forward(MODULE, *heads, None, is_causal=True)[0]
    assert torch.equal(attention.attention(MODULE, *heads, None, is_causal=True)[0], own)


def test_a_row_of_prompts_alone_has_no_answers_to_attend_to() -> None:
    row = Documents.of_row((2,), ((),))
    assert row.slots_S.tolist() == [0, 1]
    assert row.answers_see_NAK.shape == (0, 0, 2)
    out, _ = attention.attention(MODULE, *(heads[:, :, :2] for heads in random_heads()), None, row)
    assert out.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_a_single_query_of_each_row_attends_as_in_transformers(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, HEADS, 1, HEAD_DIM), (3, KV_HEADS, 7, HEAD_DIM), (3, KV_HEADS, 7, HEAD_DIM)]
    heads = [torch.randn(shape, generator=generator) for shape in shapes]
    mask = torch.arange(7) >= torch.tensor([0, 2, 5])[:, None, None, None] if masked else None
    found, _ = attention.attention(MODULE, *heads, mask, scaling=0.3)
    expected, _ = sdpa_attention_forward(MODULE, *heads, mask, scaling=0.3)
    assert found.shape == expected.shape == (3, 1, HEADS, HEAD_DIM)
    torch.testing.assert_close(found, expected)


def test_documents_use_no_kernel_that_is_planned_anew_for_every_length() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    attention.attend_by_document(AutoModel.from_config(AutoConfig.for_model("llama", **SMALL)))
    assert not torch.backends.cuda.cudnn_sdp_enabled()


SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
NO_WINDOW = {"layer_types": ["full_attention"], "sliding_window": None}
HEADS_OF_KEYS = {"num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("falcon", {}, "falcon has an attention of its own"),  # outside of transformers' interface
        ("gpt_oss", NO_WINDOW | HEADS_OF_KEYS, "gpt_oss has an attention of its own"),  # its sinks are not in SDPA
        ("mistral", {"sliding_window": 4, **HEADS_OF_KEYS}, "mistral has sliding_window"),
    ],
)
def test_decoders_that_would_not_attend_by_document_are_refused(
    model_type: str, options: dict[str, Any], message: str
) -> None:
    config = AutoConfig.for_model(model_type, **SMALL, **options)
    decoder = AutoModel.from_config(config)
    micro = packed([1, 2], [3, 4])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{message}.*set machine.packing to false"):
            attention.decoder_states(decoder, micro)
    if model_type != "gpt_oss":  # whose own forward wants a window, if it is never used
        padded = packed([1, 2], [3, 4], packing=False)
        assert attention.decoder_states(decoder, padded).isfinite().all()


def test_a_decoder_that_looks_at_the_mask_gives_no_number() -> None:
    decoder = AutoModel.from_config(AutoConfig.for_model("llama", **SMALL))
    micro = packed([1, 2], [3, 4])
    states = decoder(input_ids=micro.input_ids_BS, attention_mask=micro.attention_mask).last_hidden_state
    assert states.isnan().all()
    assert attention.decoder_states(decoder, micro).isfinite().all()


def packed(prompt: list[int], answer: list[int], *, packing: bool = True) -> MicroBatch:
    sequence = TokenSequence(prompt, answer, frozenset({"sft"}))
    return layout([sequence], packing=packing, normalization="dapo", max_new_tokens=4, device=torch.device("cpu"))
