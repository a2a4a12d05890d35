"""Per-token log-probabilities and entropy of completions, block by block of the vocabulary.

Float32 logits never exist whole. Those in the products' type are kept for the backward where they are few, and
otherwise computed again.

Measured (docs/measurements/logprobs_cpu.json): at 8,192 tokens of Qwen3's 151,936 words forward and backward take 269
MB at width 1,024 in float32 and 290 MB at 2,560 in bfloat16, beside the two gradients that are returned. PyTorch's own
`linear_cross_entropy` may need less, but it took 5 to 17 times the processor time at the laptop study's size with its
default blocks, and it has no entropy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from uniapl.attention import decoder_states
from uniapl.batch import MicroBatch
from uniapl.shapes import words_at_once


class _Sums(NamedTuple):
    """Of each token, over the words so far: m = max l, s = sum exp(l - m), u = sum (l - m) exp(l - m), target's l."""

    maximum_T: Tensor
    sum_T: Tensor
    weighted_T: Tensor
    chosen_T: Tensor

    @classmethod
    def of_no_words(cls, like_T: Tensor) -> _Sums:
        """Before the first block. A target that no block has stays NaN, which the trainer refuses."""
        zeros_T = torch.zeros_like(like_T, dtype=torch.float32)
        lowest_T = torch.full_like(zeros_T, torch.finfo(torch.float32).min)  # -inf would make NaN of -inf - -inf
        return cls(lowest_T, zeros_T, zeros_T, torch.full_like(zeros_T, torch.nan))

    def and_block(self, logits_TW: Tensor, targets_T: Tensor, start: int) -> _Sums:
        """With the words from `start` on; overwrites their logits."""
        inside_T, index_T = _places(targets_T, start, logits_TW.shape[1])
        chosen_T = torch.where(inside_T, logits_TW.gather(1, index_T[:, None])[:, 0], self.chosen_T)
        maximum_T = torch.maximum(self.maximum_T, logits_TW.amax(dim=-1))
        exponentials_TW = logits_TW.sub_(maximum_T[:, None]).exp()
        shift_T = self.maximum_T - maximum_T
        scale_T = shift_T.exp()
        sum_T = scale_T * self.sum_T + exponentials_TW.sum(dim=-1)
        weighted_T = scale_T * (self.weighted_T + shift_T * self.sum_T)
        weighted_T += exponentials_TW.mul_(logits_TW).sum(dim=-1)
        return _Sums(maximum_T, sum_T, weighted_T, chosen_T)


class _BlockwiseLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] and entropy.

    Suffix W: the words of one block of the head. Between forward and backward stay the hidden states in the product's
    type, log Z, the blocks' products if `keep`, and the head itself: under FSDP2 the gathered parameter, which must not
    be copied.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor,
        words: int, temperature: float, product: torch.dtype, keep: bool,
    ) -> Any:  # fmt: skip
        hidden_dtype, hidden_TD = hidden_TD.dtype, hidden_TD.to(product)
        sums, kept = _Sums.of_no_words(targets_T), []
        for start in range(0, len(head_VD), words):
            products_TW = hidden_TD @ head_VD[start : start + words].to(product).T
            if keep:
                kept.append(products_TW)
            logits_TW = _logits(products_TW, temperature, keep=keep)
            del products_TW  # before the exponentials
            sums = sums.and_block(logits_TW, targets_T, start)
            del logits_TW
        log_sum_T = sums.sum_T.log()
        normalizer_T, entropy_T = sums.maximum_T + log_sum_T, log_sum_T - sums.weighted_T / sums.sum_T
        ctx.save_for_backward(hidden_TD, head_VD, targets_T, normalizer_T, *kept)
        ctx.words, ctx.temperature, ctx.hidden_dtype = words, temperature, hidden_dtype
        ctx.mark_non_differentiable(entropy_T)
        return sums.chosen_T - normalizer_T, entropy_T

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        hidden_TD, head_VD, targets_T, normalizer_T, *kept = ctx.saved_tensors
        upstream_T = gradients[0] / ctx.temperature
        hidden_gradient_TD = torch.zeros_like(hidden_TD, dtype=torch.float32)
        head_gradient_VD = torch.empty_like(head_VD) if ctx.needs_input_grad[1] else None
        for number, start in enumerate(range(0, len(head_VD), ctx.words)):
            block_WD = head_VD[start : start + ctx.words].to(hidden_TD.dtype)
            products_TW = kept[number] if kept else hidden_TD @ block_WD.T
            logits_TW = _logits(products_TW, ctx.temperature, keep=bool(kept))
            del products_TW
            inside_T, index_T = _places(targets_T, start, len(block_WD))
            logits_TW.sub_(normalizer_T[:, None]).exp_().mul_(-upstream_T[:, None])  # in place: large
            logits_TW.scatter_add_(1, index_T[:, None], torch.where(inside_T, upstream_T, 0.0)[:, None])
            gradient_TW = logits_TW.to(hidden_TD.dtype)
            del logits_TW
            hidden_gradient_TD += gradient_TW @ block_WD
            if head_gradient_VD is not None:
                rows_WD = head_gradient_VD[start : start + len(block_WD)]
                if rows_WD.dtype == gradient_TW.dtype:
                    torch.mm(gradient_TW.T, hidden_TD, out=rows_WD)
                else:
                    rows_WD.copy_(gradient_TW.T @ hidden_TD)
            del gradient_TW  # before the next block's logits
        return hidden_gradient_TD.to(ctx.hidden_dtype), head_gradient_VD, None, None, None, None, None


def _logits(products_TW: Tensor, temperature: float, *, keep: bool) -> Tensor:
    """A block's logits in float32, which may be overwritten."""
    logits_TW = products_TW.to(torch.float32, copy=keep)
    return logits_TW if temperature == 1.0 else logits_TW.div_(temperature)


def _places(targets_T: Tensor, start: int, words: int) -> tuple[Tensor, Tensor]:
    """Which targets are words of the block that begins at `start`, and where in it (anywhere for the others)."""
    index_T = targets_T - start
    return (index_T >= 0) & (index_T < words), index_T.clamp(0, words - 1)


def chunked_logprobs(
    hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, *, logits_bytes: int, kept_logits_bytes: int = 0,
    temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-probabilities of the targets (differentiable) and entropies (not), float32 [T], nats.

    Blocks have as many words as `logits_bytes` of float32 logits hold (`shapes.words_at_once`). The matrix products
    run in autocast's type where that is on, else in the hidden states', in the backward as in the forward; softmax and
    sums in float32. Products of at most `kept_logits_bytes` in all are kept for the backward; nothing else depends on
    that.
    """
    device = hidden_TD.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_TD.dtype
    words = words_at_once(len(head_VD), tokens=len(hidden_TD), logits_bytes=logits_bytes, on_gpu=hidden_TD.is_cuda)
    needed = len(hidden_TD) * len(head_VD) * product.itemsize
    keep = torch.is_grad_enabled() and needed <= kept_logits_bytes
    return _BlockwiseLogprobs.apply(hidden_TD, head_VD, targets_T, words, temperature, product, keep)  # type: ignore[no-any-return]


def completion_logprobs(
    model: Any, micro: MicroBatch, logits_bytes: int, kept_logits_bytes: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a micro-batch's completion tokens, [T] each, in the micro-batch's order."""
    hidden_TD = decoder_states(model.get_decoder(), micro)
    head_VD = model.get_output_embeddings().weight
    return chunked_logprobs(
        hidden_TD, head_VD, micro.targets_T, logits_bytes=logits_bytes, kept_logits_bytes=kept_logits_bytes,
        temperature=temperature,
    )  # fmt: skip
