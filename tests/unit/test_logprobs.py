"""Chunked log-probs and entropy against plain log_softmax, values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from uniapl.logprobs import chunked_logprobs

TOKENS, WIDTH, VOCABULARY = 23, 16, 101


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    head_VD = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    targets_T = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden_TD, head_VD, targets_T, torch.randn(TOKENS, generator=generator)


def naive(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs_TV = ((hidden_TD.float() @ head_VD.T) / temperature).log_softmax(-1)
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 5, 23, 1000])
def test_values_and_gradients_equal_log_softmax(chunk: int, temperature: float) -> None:
    hidden_TD, head_VD, targets_T, upstream_T = inputs()
    logprobs_T, entropy_T = chunked_logprobs(hidden_TD, head_VD, targets_T, chunk_tokens=chunk, temperature=temperature)
    expected_T, expected_entropy_T = naive(hidden_TD, head_VD, targets_T, temperature)
    torch.testing.assert_close(logprobs_T, expected_T, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy_T, expected_entropy_T.detach(), atol=1e-4, rtol=0)
    ours = torch.autograd.grad(logprobs_T, (hidden_TD, head_VD), upstream_T)
    expected = torch.autograd.grad(expected_T, (hidden_TD, head_VD), upstream_T)
    for gradient, wanted in zip(ours, expected, strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)


def test_bfloat16_states_keep_float32_sums_and_the_head_its_own_type() -> None:
    hidden_TD, head_VD, targets_T, upstream_T = inputs(torch.bfloat16)
    logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD, targets_T, chunk_tokens=5, temperature=1.0)
    rounded_VD = head_VD.detach().bfloat16().float().requires_grad_()  # the product runs in the states' type
    expected_T, _ = naive(hidden_TD, rounded_VD, targets_T, 1.0)
    assert logprobs_T.dtype == torch.float32
    torch.testing.assert_close(logprobs_T, expected_T, atol=0.05, rtol=0)
    hidden_gradient, head_gradient = torch.autograd.grad(logprobs_T, (hidden_TD, head_VD), upstream_T)
    wanted = torch.autograd.grad(expected_T, (hidden_TD, rounded_VD), upstream_T)
    assert (hidden_gradient.dtype, head_gradient.dtype) == (torch.bfloat16, torch.float32)
    for gradient, reference in zip((hidden_gradient.float(), head_gradient), wanted, strict=True):
        assert (gradient - reference.float()).norm() / reference.float().norm() < 0.02


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden_TD, head_VD, targets_T, _ = inputs()
    logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD.detach(), targets_T, chunk_tokens=5, temperature=1.0)
    logprobs_T.sum().backward()
    assert hidden_TD.grad is not None
    assert head_VD.grad is None


def test_entropy_of_equal_logits_is_the_logarithm_of_the_vocabulary() -> None:
    logprobs_T, entropy_T = chunked_logprobs(
        torch.zeros(2, 3), torch.ones(8, 3), torch.tensor([0, 7]), chunk_tokens=1, temperature=1.0
    )
    assert entropy_T.tolist() == pytest.approx([math.log(8)] * 2)
    assert logprobs_T.tolist() == pytest.approx([-math.log(8)] * 2)


def test_extreme_logits_stay_finite() -> None:
    hidden_TD = torch.tensor([[1e4], [-1e4]])
    logprobs_T, entropy_T = chunked_logprobs(
        hidden_TD, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]), chunk_tokens=1, temperature=1.0
    )
    assert logprobs_T.tolist() == [0.0, -2e4]
    assert entropy_T.tolist() == pytest.approx([0.0, 0.0])
