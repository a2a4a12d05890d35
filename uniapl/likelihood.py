"""Log-probabilities of given answers under a frozen model: for lm-eval's tasks and Figure 2's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from uniapl.batch import layout, split
from uniapl.records import TokenSequence

CHUNK_TOKENS = 512  # tokens whose logits exist at once; memory only


@dataclass(frozen=True)
class Likelihood:
    """Of one completion: its tokens' summed log-probs (nats), their number, whether greedy decoding gives it."""

    sum_nats: float
    num_tokens: int
    is_greedy: bool

    @property
    def mean_nats(self) -> float:
        """Mean log-prob per token."""
        return self.sum_nats / max(1, self.num_tokens)


@torch.no_grad()
def completion_likelihoods(
    model: Any, pairs: Sequence[tuple[list[int], list[int]]], *, micro_batch_tokens: int
) -> list[Likelihood]:
    """Score (prompt ids, completion ids) pairs, batched by length; logits are computed for completion tokens only.

    What all prompts begin with (a chat template's system message) is run once a batch. A prompt must not be empty.
    Softmax and sums are in float32, the forward in the model's type.
    """
    shared = _common_beginning([prompt[:-1] for prompt, _ in pairs])  # a prompt's last token stays its own
    sequences = [TokenSequence(prompt[len(shared) :], completion, frozenset()) for prompt, completion in pairs]
    place = {id(sequence): i for i, sequence in enumerate(sequences)}
    found: dict[int, Likelihood] = {i: Likelihood(0.0, 0, True) for i in range(len(pairs))}
    scored = [s for s in sequences if s.completion_ids]
    device, head_VD = next(model.parameters()).device, model.get_output_embeddings().weight
    for group in split(scored, micro_tokens=micro_batch_tokens, packing=False):
        micro = layout(group, packing=False, normalization="dapo", max_new_tokens=1, device=device)
        before = _prefix(model, shared, len(group))
        seen_BP = micro.attention_mask.new_ones(len(group), len(shared))
        hidden_BSD = model.get_decoder()(
            input_ids=micro.input_ids_BS,
            position_ids=micro.position_ids_BS + len(shared),
            attention_mask=torch.cat([seen_BP, micro.attention_mask], dim=1),
            past_key_values=before,
            use_cache=bool(shared),
        ).last_hidden_state
        hidden_TD = hidden_BSD.flatten(0, 1)[micro.predicting_T]
        logprobs, greedy = [], []
        for h, y in zip(hidden_TD.split(CHUNK_TOKENS), micro.targets_T.split(CHUNK_TOKENS), strict=True):
            logits = (h @ head_VD.T).float()
            logprobs.append(logits.gather(1, y[:, None])[:, 0] - logits.logsumexp(dim=-1))
            greedy.append(logits.argmax(dim=-1) == y)
        lengths = [len(s.completion_ids) for s in group]
        pieces = zip(torch.cat(logprobs).split(lengths), torch.cat(greedy).split(lengths), strict=True)
        for sequence, (logprobs_T, greedy_T) in zip(group, pieces, strict=True):
            value = Likelihood(float(logprobs_T.sum()), len(sequence.completion_ids), bool(greedy_T.all()))
            found[place[id(sequence)]] = value
    return [found[i] for i in range(len(pairs))]


def _common_beginning(lists: Sequence[list[int]]) -> list[int]:
    """The longest beginning of all lists: that of the first and the last in order."""
    ends = zip(min(lists, default=[]), max(lists, default=[]), strict=False)
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], ends)]


def _prefix(model: Any, ids: list[int], rows: int) -> DynamicCache | None:
    """Keys and values of a common beginning for `rows` sequences; None where there is none."""
    if not ids:
        return None
    cache = DynamicCache(config=model.config)
    model.get_decoder()(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(rows)
    return cache
