"""Log-probabilities of given answers under a frozen model: for lm-eval's tasks and Figure 2's distributions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from uniapl.batch import scoring_batches
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

    What all prompts begin with (a chat template's system message) is run once. A prompt must not be empty. Softmax and
    sums are in float32, the forward in the model's type.
    """
    shared = _common_beginning([prompt[:-1] for prompt, _ in pairs])  # a prompt's last token stays its own
    found = [Likelihood(0.0, 0, True)] * len(pairs)
    scored = [i for i, (_, completion) in enumerate(pairs) if completion]
    sequences = [TokenSequence(pairs[i][0][len(shared) :], pairs[i][1], frozenset()) for i in scored]
    device, head_VD = next(model.parameters()).device, model.get_output_embeddings().weight
    prefix = _prefix(model, shared)
    for places, micro in scoring_batches(sequences, micro_tokens=micro_batch_tokens, packing=False, device=device):
        before = copy.deepcopy(prefix)
        if before is not None:
            before.batch_repeat_interleave(len(places))
        seen_BP = micro.attention_mask.new_ones(len(places), len(shared))
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
        lengths = [len(sequences[place].completion_ids) for place in places]
        pieces = zip(torch.cat(logprobs).split(lengths), torch.cat(greedy).split(lengths), strict=True)
        for place, (logprobs_T, greedy_T) in zip(places, pieces, strict=True):
            found[scored[place]] = Likelihood(float(logprobs_T.sum()), len(logprobs_T), bool(greedy_T.all()))
    return found


def _common_beginning(lists: Sequence[list[int]]) -> list[int]:
    """The longest beginning of all lists: that of the first and the last in order."""
    ends = zip(min(lists, default=[]), max(lists, default=[]), strict=False)
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], ends)]


def _prefix(model: Any, ids: list[int]) -> DynamicCache | None:
    """Keys and values of a common beginning; None where there is none."""
    if not ids:
        return None
    cache = DynamicCache(config=model.config)
    model.get_decoder()(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return cache
