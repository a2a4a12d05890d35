"""Sampling with transformers, for machines without vLLM and for the tests.

Every row draws from a generator of its own (one uniform number a token, inverted through the cumulated probabilities),
so a row's tokens do not depend on which rows it shares a batch with, beyond rounding, and the global generator is
never touched. A prompt that is asked for several times is read once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from uniapl.attention import attend_by_document
from uniapl.decoding import Decode, decode_growing, decode_in_segments, forget_graphs
from uniapl.distributed import device
from uniapl.models import load_policy, load_tokenizer
from uniapl.norms import fuse_norms
from uniapl.records import Sample
from uniapl.shapes import DECODERS


class HFSampler:
    """See `uniapl.sampler.Sampler`."""

    name = "hf"

    def __init__(self, model_directory: Path, *, max_sequences: int, dtype: str, decode: Decode | None = None) -> None:
        """`decode` is one of `uniapl.decoding`; None: as suits the device and the model."""
        started = time.perf_counter()
        self._model = load_policy(model_directory, dtype=dtype).to(device())
        on_gpu = self._model.device.type == "cuda"
        self._decode = decode or decode_growing
        if on_gpu:
            fuse_norms(self._model)
            if self._model.config.model_type in DECODERS:
                with suppress(ValueError):  # where layers do not attend to all that stands before
                    attend_by_document(self._model)  # for a single query this lays out no key twice
                    self._decode = decode or decode_in_segments
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
            uniform_NB = _uniform([seeds[i] for i in rows], max_new_tokens).to(self._model.device)
            batch = self._decode(
                self._model, [list(prompts[i]) for i in rows], uniform_NB,
                end_token_id=self._end_token_id, temperature=temperature,
            )  # fmt: skip
            samples.update(zip(rows, batch, strict=True))
        return [samples[i] for i in range(len(prompts))]

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
        """Between two calls the weights are held, which cost more to move than their memory is worth, and a graph's."""

    def wake(self) -> None:
        """See `sleep`."""

    def close(self) -> None:
        forget_graphs()
        del self._model


def _uniform(seeds: Sequence[int], count: int) -> Tensor:
    """Numbers in [0, 1), float64 [count, rows]: each row's are those of its own seed."""
    generators = (torch.Generator().manual_seed(seed % 2**63) for seed in seeds)
    return torch.stack([torch.rand(count, generator=g, dtype=torch.float64) for g in generators], dim=1)
