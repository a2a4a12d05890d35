"""Log-probs and entropy by vocabulary blocks against plain log_softmax: values, gradients and memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bench.memory import peak_bytes
from uniapl.config import LOGITS_BYTES
from uniapl.logprobs import chunked_logprobs
from uniapl.shapes import words_at_once

TOKENS, WIDTH, VOCABULARY = 23, 16, 101
WORD = 4 * TOKENS  # bytes of the logits of one word
BLOCKS = {"a word each": 1, "ten words and a rest of one": 10 * WORD, "one block": 10**9}
SEVEN_WORDS = 7 * WORD + 3  # 14 blocks and a rest of 3 words


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    head_VD = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_()
    targets_T = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return hidden_TD, head_VD, targets_T, torch.randn(TOKENS, generator=generator)


def naive(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs_TV = ((hidden_TD.float() @ head_VD.T) / temperature).log_softmax(-1)
    return logprobs_TV.gather(1, targets_T[:, None])[:, 0], -(logprobs_TV.exp() * logprobs_TV).sum(-1)


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "logits_bytes", "on_gpu", "words"),
    [
        # 4,681 fit, an odd number, whose rows begin at any even byte in bfloat16
        (151_936, 7168, 128 * 2**20, True, 4672), (151_936, 7168, 128 * 2**20, False, 4681),
        (49_152, 7168, 128 * 2**20, True, 4672), (49_152, 1, 10**9, True, 49_152),
        (101, 23, 7 * WORD + 3, True, 7), (101, 23, 7 * WORD + 3, False, 7), (101, 0, 1, True, 1),
    ],
)  # fmt: skip
def test_blocks_have_as_many_words_as_fit_and_on_a_gpu_whole_64s(
    vocabulary: int, tokens: int, logits_bytes: int, on_gpu: bool, words: int
) -> None:
    assert words_at_once(vocabulary, tokens=tokens, logits_bytes=logits_bytes, on_gpu=on_gpu) == words


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("logits_bytes", [*BLOCKS.values(), SEVEN_WORDS], ids=[*BLOCKS, "uneven"])
@pytest.mark.parametrize("kept_logits_bytes", [0, 2**20])
def test_values_and_gradients_equal_log_softmax(logits_bytes: int, kept_logits_bytes: int, temperature: float) -> None:
    hidden_TD, head_VD, targets_T, upstream_T = inputs()
    logprobs_T, entropy_T = chunked_logprobs(
        hidden_TD, head_VD, targets_T, logits_bytes=logits_bytes, kept_logits_bytes=kept_logits_bytes,
        temperature=temperature,
    )  # fmt: skip
    expected_T, expected_entropy_T = naive(hidden_TD, head_VD, targets_T, temperature)
    torch.testing.assert_close(logprobs_T, expected_T, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy_T, expected_entropy_T.detach(), atol=1e-5, rtol=0)
    assert not entropy_T.requires_grad
    ours = torch.autograd.grad(logprobs_T, (hidden_TD, head_VD), upstream_T)
    expected = torch.autograd.grad(expected_T, (hidden_TD, head_VD), upstream_T)
    for gradient, wanted in zip(ours, expected, strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)


def test_bfloat16_states_keep_float32_sums_and_the_head_its_own_type() -> None:
    hidden_TD, head_VD, targets_T, upstream_T = inputs(torch.bfloat16)
    logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD, targets_T, logits_bytes=SEVEN_WORDS, temperature=1.0)
    rounded_VD = head_VD.detach().bfloat16().float().requires_grad_()  # the product runs in the states' type
    expected_T, _ = naive(hidden_TD, rounded_VD, targets_T, 1.0)
    assert logprobs_T.dtype == torch.float32
    torch.testing.assert_close(logprobs_T, expected_T, atol=0.05, rtol=0)
    hidden_gradient, head_gradient = torch.autograd.grad(logprobs_T, (hidden_TD, head_VD), upstream_T)
    wanted = torch.autograd.grad(expected_T, (hidden_TD, rounded_VD), upstream_T)
    assert (hidden_gradient.dtype, head_gradient.dtype) == (torch.bfloat16, torch.float32)
    for gradient, reference in zip((hidden_gradient.float(), head_gradient), wanted, strict=True):
        assert (gradient - reference.float()).norm() / reference.float().norm() < 0.02


def test_under_autocast_the_backward_computes_the_forwards_logits() -> None:
    hidden_TD, head_VD, targets_T, upstream_T = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD, targets_T, logits_bytes=SEVEN_WORDS, temperature=1.0)
    gradients = torch.autograd.grad(logprobs_T, (hidden_TD, head_VD), upstream_T)  # outside, as the trainer does
    rounded_TD = hidden_TD.detach().bfloat16().requires_grad_()
    wanted_T, _ = chunked_logprobs(rounded_TD, head_VD, targets_T, logits_bytes=SEVEN_WORDS, temperature=1.0)
    wanted = torch.autograd.grad(wanted_T, (rounded_TD, head_VD), upstream_T)
    assert torch.equal(logprobs_T, wanted_T)
    assert [g.dtype for g in gradients] == [torch.float32, torch.float32]
    assert torch.equal(gradients[0].bfloat16(), wanted[0])
    assert torch.equal(gradients[1], wanted[1])


@pytest.mark.parametrize("product", [torch.float32, torch.bfloat16])
def test_logits_that_are_kept_change_no_bit(product: torch.dtype) -> None:
    hidden_TD, head_VD, targets_T, upstream_T = inputs()
    needed = TOKENS * VOCABULARY * product.itemsize
    saved = []
    results = []
    for kept_logits_bytes in (needed - 1, needed):
        shapes: list[torch.Size] = []
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=product == torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(lambda t, s=shapes: (s.append(t.shape), t)[1], lambda t: t),
        ):
            logprobs_T, entropy_T = chunked_logprobs(
                hidden_TD, head_VD, targets_T, logits_bytes=SEVEN_WORDS, kept_logits_bytes=kept_logits_bytes,
                temperature=0.7,
            )  # fmt: skip
        gradients = torch.autograd.grad(logprobs_T, (hidden_TD, head_VD), upstream_T)
        results.append((logprobs_T.detach(), entropy_T, *gradients))
        saved.append((TOKENS, 7) in shapes)
    assert saved == [False, True]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden_TD, head_VD, targets_T, _ = inputs()
    logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD.detach(), targets_T, logits_bytes=SEVEN_WORDS, temperature=1.0)
    logprobs_T.sum().backward()
    assert hidden_TD.grad is not None
    assert head_VD.grad is None


def test_no_tokens_give_a_gradient_of_zero() -> None:
    hidden_TD, head_VD, targets_T, _ = inputs()
    logprobs_T, entropy_T = chunked_logprobs(hidden_TD[:0], head_VD, targets_T[:0], logits_bytes=40, temperature=1.0)
    assert logprobs_T.shape == entropy_T.shape == (0,)
    logprobs_T.sum().backward()
    for parameter in (hidden_TD, head_VD):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_target_outside_of_the_vocabulary_is_not_a_number() -> None:
    hidden_TD, head_VD, targets_T, _ = inputs()
    targets_T[3] = VOCABULARY
    logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD, targets_T, logits_bytes=SEVEN_WORDS, temperature=1.0)
    assert logprobs_T.isnan().nonzero().tolist() == [[3]]


def test_entropy_of_equal_logits_is_the_logarithm_of_the_vocabulary() -> None:
    logprobs_T, entropy_T = chunked_logprobs(
        torch.zeros(2, 3), torch.ones(8, 3), torch.tensor([0, 7]), logits_bytes=24, temperature=1.0
    )
    assert entropy_T.tolist() == pytest.approx([math.log(8)] * 2)
    assert logprobs_T.tolist() == pytest.approx([-math.log(8)] * 2)


@pytest.mark.parametrize("logits_bytes", [8, 16])  # one word a block, both in one
def test_extreme_logits_stay_finite(logits_bytes: int) -> None:
    hidden_TD = torch.tensor([[1e4], [-1e4]])
    logprobs_T, entropy_T = chunked_logprobs(
        hidden_TD, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]), logits_bytes=logits_bytes, temperature=1.0
    )
    assert logprobs_T.tolist() == [0.0, -2e4]
    assert entropy_T.tolist() == pytest.approx([0.0, 0.0])


def test_peak_bytes_counts_what_lives_at_once() -> None:
    def function() -> Tensor:
        first = torch.ones(1_000_000)
        second = first.mul(2)  # 8 MB live here
        del first
        return second.exp_().sum()

    assert peak_bytes(function) == pytest.approx(8_000_000, abs=100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_qwen3s_vocabulary_needs_at_most_600_megabytes() -> None:
    """Extra is the peak of all tensors made in the forward, or in the backward less the two gradients it returns.

    Of Qwen3-0.6B's width, for so many tokens that all their logits would take 1.2 GB; `bench.logprobs` measures 8192,
    the larger model's width and bfloat16.
    """
    width = 1024
    hidden_TD = torch.randn(2048, width).requires_grad_()
    head_VD = (torch.randn(151_936, width) / width**0.5).requires_grad_()
    targets_T = torch.randint(len(head_VD), (len(hidden_TD),))

    logprobs_T = torch.empty(0)

    def forward() -> None:
        nonlocal logprobs_T
        logprobs_T, _ = chunked_logprobs(hidden_TD, head_VD, targets_T, logits_bytes=LOGITS_BYTES, temperature=1.0)

    forward_peak = peak_bytes(forward)  # it leaves a few [T] for the backward beside its own inputs
    backward_peak = peak_bytes(lambda: logprobs_T.sum().backward())
    returned = sum(t.grad.nbytes for t in (hidden_TD, head_VD) if t.grad is not None)
    assert returned == hidden_TD.nbytes + head_VD.nbytes
    assert LOGITS_BYTES < forward_peak <= 600_000_000
    assert LOGITS_BYTES < backward_peak - returned <= 600_000_000
