from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from uniapl.norms import fuse_norms

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


def model_of(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter))  # all 1 (or 0) at the start, which would hide a weight
    return model


@pytest.mark.parametrize("config", [Qwen3Config(**SIZES), LlamaConfig(**SIZES)], ids=["qwen3", "llama"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_fused_norms_give_the_same_logits_and_gradients(config: PreTrainedConfig, autocast: bool) -> None:
    plain = model_of(config)
    fused = copy.deepcopy(plain)
    fuse_norms(fused)
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for model in (plain, fused):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = model(ids).logits.float()
        logits.square().sum().backward()
        found.append((logits, *(p.grad for p in model.parameters())))
    bound = 5e-2 if autocast else 1e-5
    for one, other in zip(*found, strict=True):
        assert float((one - other).detach().norm() / one.detach().norm()) < bound


@pytest.mark.parametrize("kinds", [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")])
def test_a_fused_norm_has_the_type_of_transformers_and_its_precision(kinds: tuple[str, str]) -> None:
    hidden, weight = (getattr(torch, kind) for kind in kinds)
    plain = model_of(LlamaConfig(**SIZES)).model.norm.to(weight)
    fused = copy.deepcopy(plain)
    fuse_norms(fused)
    states = torch.randn(5, SIZES["hidden_size"], generator=torch.Generator().manual_seed(0)).to(hidden)
    with torch.no_grad():
        found, expected = fused(states), plain(states)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(
        found, expected, rtol=1e-5 if found.dtype == torch.float32 and hidden == torch.float32 else 1e-2, atol=1e-5
    )


def test_norms_of_another_form_stay_as_they_are() -> None:
    model = model_of(Gemma3TextConfig(**SIZES))
    fuse_norms(model)
    assert not [module for module in model.modules() if "forward" in vars(module)]
    llama = model_of(LlamaConfig(**SIZES))
    fuse_norms(llama)
    assert (
        len([module for module in llama.modules() if "forward" in vars(module)]) == 2 * SIZES["num_hidden_layers"] + 1
    )
