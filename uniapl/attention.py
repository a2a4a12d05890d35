"""Attention of packed sequences by document: work and memory grow with the documents' lengths, not the row's square.

A packed row holds prompts and behind each its answers. Every layer lays queries, keys and values out as two batches:
the prompts, and the answers with the keys of prompt and answer behind each other, each as long as its longest (`split`
bounds what that wastes). It is registered as an attention of transformers', for decoders whose layers all attend to
everything before them; others are refused. Without documents it is transformers' own scaled dot product, but for rows
of a single query.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from uniapl.batch import MicroBatch

NAME = "sdpa_by_document"  # transformers refuses what has "sdpa" in its name for models that cannot have it
# Of scores in float32 that a CPU keeps for the backward, with their cast: 1.5 times as much.
PRODUCTS_BYTES = 32 * 2**20


class Documents(NamedTuple):
    """Where the prompts and answers of a packed row stand. B prompts, N answers, P and A their longest, S positions.

    A slot is a place in the prompts [B, P] and the answers [N, A], laid end to end. Unused slots are at position 0.
    """

    positions: Tensor  # [B P + N A], of each slot in the row
    used: Tensor  # bool, as long: not padding
    slots_S: Tensor  # of each position
    prompt_of_NB: Tensor  # 1 at each answer's prompt, else 0; float32
    prompts_see_BPP: Tensor  # bool: the earlier ones of the prompt
    answers_see_NAK: Tensor  # bool, K = P + A: the prompt, and the earlier ones of the answer

    @classmethod
    def of_row(
        cls, prompts: Sequence[int], answers: Sequence[Sequence[int]], device: torch.device | None = None
    ) -> Documents:
        """Lengths of prompts, and of each prompt's answers, which stand behind it in the row. No prompt is empty."""
        lengths_N = [length for of_prompt in answers for length in of_prompt]
        width, most = max(prompts), max(lengths_N, default=0)
        slots: list[Tensor] = []
        prompt_of: list[int] = []
        for b, prompt in enumerate(prompts):
            slots.append(b * width + torch.arange(prompt))
            for length in answers[b]:
                slots.append(len(prompts) * width + len(prompt_of) * most + torch.arange(length))
                prompt_of.append(b)
        slots_S = torch.cat(slots)
        num_slots = len(prompts) * width + len(lengths_N) * most
        positions = torch.zeros(num_slots, dtype=torch.long)
        positions[slots_S] = torch.arange(len(slots_S))
        used = torch.zeros(num_slots, dtype=torch.bool)
        used[slots_S] = True
        # On the device from here: on the host, masks of long answers take longer to make than the forward takes.
        positions, used, slots_S = positions.to(device), used.to(device), slots_S.to(device)
        prompt_of_N = torch.tensor(prompt_of, dtype=torch.long, device=device)
        prompts_used_BP, answers_used_NA = used.split([len(prompts) * width, len(lengths_N) * most])
        prompts_used_BP = prompts_used_BP.view(len(prompts), width)
        answers_used_NA = answers_used_NA.view(len(lengths_N), most)
        # A query in an unused slot sees keys too, since a softmax over nothing is not a number.
        own_NAA = answers_used_NA[:, None] & torch.ones(most, most, dtype=torch.bool, device=device).tril()
        before_NAP = prompts_used_BP[prompt_of_N][:, None].expand(-1, most, -1)
        return cls(
            positions, used, slots_S, functional.one_hot(prompt_of_N, len(prompts)).float(),
            prompts_used_BP[:, None] & torch.ones(width, width, dtype=torch.bool, device=device).tril(),
            torch.cat([before_NAP, own_NAA], dim=2),
        )  # fmt: skip


def decoder_states(decoder: Any, micro: MicroBatch) -> Tensor:
    """A decoder's last hidden states that predict a micro-batch's completion tokens, [T, D]; gradients flow."""
    if micro.documents is not None and decoder.config._attn_implementation != NAME:
        attend_by_document(decoder)
    states_BSD = decoder(
        input_ids=micro.input_ids_BS, position_ids=micro.position_ids_BS, attention_mask=micro.attention_mask,
        documents=micro.documents, use_cache=False,
    ).last_hidden_state  # fmt: skip
    picked_TD: Tensor = states_BSD.flatten(0, 1)[micro.predicting_T]
    return picked_TD


def attend_by_document(decoder: Any) -> None:
    """Let a decoder's layers use `attention`. Raise ValueError where they do not attend to all that stands before.

    With a mask torch prefers cuDNN's attention on recent GPUs, which builds a plan for every new shape, in up to a
    second (modelscope/FunASR#3704), and documents of ever new lengths have ever new shapes: this process does without.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    config = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(config, "sliding_window", None):
        kinds.add("sliding_window")
    if not kinds:  # else it stays as it is, so that it is refused again
        with suppress(ValueError):
            decoder.set_attn_implementation(NAME)
    if kinds or config._attn_implementation != NAME:
        what = f"has {', '.join(sorted(kinds))}" if kinds else "has an attention of its own"
        raise ValueError(
            f"model type {config.model_type} {what}, so its prompts and answers cannot share a row; set "
            f"machine.packing to false (a discriminator always packs: take another model for it)"
        )


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    documents: Documents | None = None, scaling: float | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' interface: query [B, H, S, D], key and value [B, G, K, D]; returns [B, S, H, D] and None.

    With documents B is 1 and K is S.
    """
    if documents is None and query.shape[2] == 1:
        return _attend_once(query, key, value, attention_mask, scaling), None
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    b, p = documents.prompts_see_BPP.shape[:2]
    n, a = documents.answers_see_NAK.shape[:2]
    prompts, answers = [], []
    for heads in (query, key, value):
        rows_SX = heads[0].transpose(0, 1).to(value.dtype).flatten(1)
        slots = _Rearranged.apply(rows_SX, documents.positions, documents.slots_S, None)
        of_prompts, of_answers = slots.split([b * p, n * a])
        prompts.append(of_prompts.view(b, p, *heads.shape[1::2]))
        answers.append(of_answers.view(n, a, *heads.shape[1::2]))
    outs = [_attend(*prompts, documents.prompts_see_BPP, scale).flatten(0, 1)]
    if n and a:
        for i in (1, 2):  # each answer's keys and values: those of its prompt, then its own
            of_prompt = documents.prompt_of_NB.to(value.dtype) @ prompts[i].flatten(1)
            answers[i] = torch.cat([of_prompt.view(n, *prompts[i].shape[1:]), answers[i]], dim=1)
        outs.append(_attend(*answers, documents.answers_see_NAK, scale).flatten(0, 1))
    out_S = _Rearranged.apply(torch.cat(outs).flatten(1), documents.slots_S, documents.positions, documents.used)
    return out_S.view(1, -1, query.shape[1], value.shape[3]), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Rearranged(torch.autograd.Function):
    """Rows in another order; the backward is a look-up too, since no used row is taken twice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, used: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, used)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inverse, used = ctx.saved_tensors
        gradient = gradients[0].index_select(0, inverse)
        return gradient if used is None else torch.where(used[:, None], gradient, 0), None, None, None


def _attend_once(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """One query of each row, [B, H, 1, D], to keys and values [B, G, K, D]: [B, 1, H, D].

    The queries of a key head's group stand in the place of a sequence, so that no key is laid out for each of them.
    """
    grouped = query.view(*key.shape[:2], -1, query.shape[3])
    out = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
    return out.flatten(1, 2)[:, None]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, see_NQK: Tensor, scale: float) -> Tensor:
    """Of queries [N, Q, H, D], keys [N, K, G, D] and values [N, K, G, E]: [N, Q, H, E].

    On a CPU by two matrix products and a softmax in float32, which is several times as fast as its fused kernel
    (docs/performance.md); elsewhere, and where the scores would take much memory, by the fused kernel.
    """
    n, q, h, d = queries.shape
    k, g = keys.shape[1:3]
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if queries.device.type != "cpu" or 4 * n * h * q * k > PRODUCTS_BYTES:
        keys, values = (t.repeat_interleave(h // g, dim=1) for t in (keys, values))
        out = functional.scaled_dot_product_attention(
            queries.transpose(1, 2), keys, values, attn_mask=see_NQK[:, None], scale=scale
        )
        return out.transpose(1, 2)
    grouped = queries.view(n, q, g, h // g, d).permute(0, 2, 3, 1, 4).reshape(n, g, -1, d)
    unseen = torch.where(see_NQK, 0.0, torch.finfo(torch.float32).min)[:, None]
    scores = torch.add(unseen, (grouped @ keys.transpose(2, 3)).float().view(n, h, q, k), alpha=scale)
    shares = scores.softmax(-1).to(values.dtype)
    out = (shares.view(n, g, -1, k) @ values).view(n, h, q, -1)
    return out.transpose(1, 2)
