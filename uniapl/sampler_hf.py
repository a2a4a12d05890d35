"""A decode loop over transformers with a KV cache, for machines without vLLM and for the tests.

Every row draws from a generator of its own (one uniform number a token, inverted through the cumulated probabilities),
so a row's tokens do not depend on which rows it shares a batch with, beyond rounding, and the global generator is
never touched. A prompt that is asked for several times is read once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniapl.distributed import device
from uniapl.models import load_policy, load_tokenizer
from uniapl.records import Sample


class HFSampler:
    """See `uniapl.sampler.Sampler`."""

    name = "hf"

    def __init__(self, model_directory: Path, *, max_sequences: int, dtype: str) -> None:
        started = time.perf_counter()
        self._device = device()
        self._model = load_policy(model_directory, dtype=dtype).to(self._device)
        self._end_token_id = int(load_tokenizer(model_directory).eos_token_id)
        self._max_sequences = max_sequences
        self.start_seconds = time.perf_counter() - started

    def generate(
        self, prompts: Sequence[list[int]], *, seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[Sample]:
        assert len(prompts) == len(seeds), f"{len(prompts)} prompts but {len(seeds)} seeds"
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))
        samples: dict[int, Sample] = {}
        for start in range(0, len(order), self._max_sequences):
            rows = order[start : start + self._max_sequences]
            batch = self._decode(
                [list(prompts[i]) for i in rows],
                [torch.Generator().manual_seed(seeds[i] % 2**63) for i in rows],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
            )
            samples.update(zip(rows, batch, strict=True))
        return [samples[i] for i in range(len(prompts))]

    @torch.no_grad()
    def _decode(
        self, prompts: list[list[int]], generators: list[torch.Generator], *, max_new_tokens: int, temperature: float
    ) -> list[Sample]:
        """Decode one batch; rows that ended leave it once they are half of it."""
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        logits_BV, cache, mask_BT = self._read_prompts(prompts)
        rows = list(range(len(prompts)))  # which prompt each row of the cache belongs to
        for step in range(max_new_tokens):
            chosen_B, chosen_logprobs_B = _choose(logits_BV, [generators[r] for r in rows], temperature)
            for row, token, logprob in zip(rows, chosen_B.tolist(), chosen_logprobs_B.tolist(), strict=True):
                if not ended[row]:
                    ids[row].append(token)
                    logprobs[row].append(logprob)
                    ended[row] = token == self._end_token_id
            going = [i for i, row in enumerate(rows) if not ended[row]]
            if not going or step == max_new_tokens - 1:
                break
            if len(going) <= len(rows) // 2:
                kept = torch.tensor(going, device=self._device)
                cache.batch_select_indices(kept)
                mask_BT, chosen_B = mask_BT[kept], chosen_B[kept]
                rows = [rows[i] for i in going]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
            output = self._model(
                input_ids=chosen_B[:, None],
                attention_mask=mask_BT,
                position_ids=mask_BT.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits_BV = output.logits[:, -1]
        return [
            Sample(token_ids, values, "stop" if stopped else "length")
            for token_ids, values, stopped in zip(ids, logprobs, ended, strict=True)
        ]

    def _read_prompts(self, prompts: list[list[int]]) -> tuple[Tensor, Any, Tensor]:
        """Read every distinct prompt once, padded on the left; return last logits, cache and mask of all rows."""
        distinct = [list(p) for p in dict.fromkeys(tuple(p) for p in prompts)]
        place = {tuple(p): i for i, p in enumerate(distinct)}
        longest = max(len(p) for p in distinct)
        padded = [[self._end_token_id] * (longest - len(p)) + p for p in distinct]
        present = [[0] * (longest - len(p)) + [1] * len(p) for p in distinct]
        mask_BT = torch.tensor(present, device=self._device)
        output = self._model(
            input_ids=torch.tensor(padded, device=self._device),
            attention_mask=mask_BT,
            position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        rows = torch.tensor([place[tuple(p)] for p in prompts], device=self._device)
        output.past_key_values.batch_select_indices(rows)
        return output.logits[:, -1][rows], output.past_key_values, mask_BT[rows]

    @torch.no_grad()
    def push_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> float:
        started = time.perf_counter()
        own = dict(self._model.named_parameters(remove_duplicate=False))
        missing = set(dict(self._model.named_parameters()))
        for name, tensor in named_tensors:
            own[name].copy_(tensor)
            missing.discard(name)
        assert not missing, f"weights not pushed: {sorted(missing)[:3]}"
        return time.perf_counter() - started

    def sleep(self) -> None:
        if self._device.type == "cuda":
            self._model.to("cpu")
            torch.cuda.empty_cache()

    def wake(self) -> None:
        self._model.to(self._device)

    def close(self) -> None:
        del self._model


def _choose(logits_BV: Tensor, generators: list[torch.Generator], temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob at that temperature (temperature 0: the likeliest, log-probs at 1)."""
    logprobs_BV = torch.log_softmax(logits_BV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        chosen_B = logprobs_BV.argmax(dim=-1)
    else:
        uniform_B = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
        cumulated_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
        threshold_B1 = uniform_B.to(logits_BV.device)[:, None] * cumulated_BV[:, -1:]
        chosen_B = torch.searchsorted(cumulated_BV, threshold_B1, right=True).squeeze(1)
        chosen_B = chosen_B.clamp(max=logits_BV.shape[1] - 1)
    return chosen_B, logprobs_BV.gather(1, chosen_B[:, None]).squeeze(1)
