"""Per-token log-probabilities and entropy of completions, chunked over tokens so that logits never exist whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uniapl.batch import MicroBatch


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] and entropy; logits of one chunk at a time, again in backward."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, chunk: int, temperature: float) -> Any:
        head = head_VD.to(hidden_TD.dtype)
        logprobs, entropies, normalizers = [], [], []
        for h, y in zip(hidden_TD.split(chunk), targets_T.split(chunk), strict=True):
            logits = (h @ head.T).float().div_(temperature)
            normalizer = logits.logsumexp(dim=-1)
            logprobs.append(logits.gather(1, y[:, None])[:, 0] - normalizer)
            probabilities = (logits - normalizer[:, None]).exp_()
            entropies.append(normalizer - probabilities.mul_(logits).sum(dim=-1))
            normalizers.append(normalizer)
        ctx.save_for_backward(hidden_TD, head, targets_T, torch.cat(normalizers))
        ctx.chunk, ctx.temperature, ctx.head_dtype = chunk, temperature, head_VD.dtype
        entropy_T = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_T)
        return torch.cat(logprobs), entropy_T

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        hidden_TD, head, targets_T, normalizers_T = ctx.saved_tensors
        gradient_T = gradients[0]
        gradient_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        gradient_hidden = []
        pieces = (hidden_TD, targets_T, normalizers_T, gradient_T)
        for h, y, normalizer, g in zip(*(piece.split(ctx.chunk) for piece in pieces), strict=True):
            logits = (h @ head.T).float().div_(ctx.temperature)
            gradient_logits = logits.sub_(normalizer[:, None]).exp_().mul_(-g[:, None])  # in place: logits are large
            gradient_logits.scatter_add_(1, y[:, None], g[:, None])
            gradient_logits = gradient_logits.div_(ctx.temperature).to(head.dtype)
            gradient_hidden.append(gradient_logits @ head)
            if gradient_head is not None and gradient_logits.dtype == gradient_head.dtype:
                gradient_head.addmm_(gradient_logits.T, h)  # a chunk's own [V, D] never exists
            elif gradient_head is not None:
                gradient_head += gradient_logits.T @ h
        if gradient_head is not None:
            gradient_head = gradient_head.to(ctx.head_dtype)
        return torch.cat(gradient_hidden), gradient_head, None, None, None


def chunked_logprobs(
    hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, *, chunk_tokens: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the targets (differentiable) and entropies (not), float32 [T], nats.

    The matrix product runs in the hidden states' type, softmax and sums in float32.
    """
    return _ChunkedLogprobs.apply(hidden_TD, head_VD, targets_T, chunk_tokens, temperature)  # type: ignore[no-any-return]


def completion_logprobs(model: Any, micro: MicroBatch, chunk_tokens: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a micro-batch's completion tokens, [T] each, in the micro-batch's order."""
    output = model.get_decoder()(
        input_ids=micro.input_ids_BS,
        position_ids=micro.position_ids_BS,
        attention_mask=micro.attention_mask,
        use_cache=False,
    )
    hidden_TD = output.last_hidden_state.flatten(0, 1)[micro.predicting_T]
    head_VD = model.get_output_embeddings().weight
    return chunked_logprobs(hidden_TD, head_VD, micro.targets_T, chunk_tokens=chunk_tokens, temperature=temperature)
