"""Decode loops over transformers: with a cache that grows, for CPUs, and as CUDA graphs over a fixed one, for GPUs.

A CPU's time is the products', so rows that ended leave the batch. On a GPU a token of a small model is hundreds of
kernels that run faster than the host starts them; a graph starts all of them at once, and needs one shape and one place
in memory for every tensor. B rows, T positions read, L places of a fixed cache, N tokens at most, V words.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from uniapl.records import Sample

BLOCK = 512  # words whose probability is summed before one of them is looked for
SEGMENT = 256  # tokens of a graph; between two of them the cache grows and rows that ended leave it
ALIGNED_KEYS = 64  # the fixed cache's length is a multiple of it, so that its mask needs no padding
# What a token needs of memory at most: logits twice, log-probabilities, probabilities twice, float64 sums; and layers.
BYTES_A_WORD, SPARE_BYTES = 32, 2**30
CHECKED_EVERY = 16  # tokens, after which the host waits to see whether all rows have ended


class Decode(Protocol):
    """Both loops: a sample for each prompt, whose tokens `uniform_NB` draws; that is on the model's device."""

    def __call__(
        self, model: Any, prompts: Sequence[list[int]], uniform_NB: Tensor, *, end_token_id: int, temperature: float
    ) -> list[Sample]: ...


class Read(NamedTuple):
    """Rows whose prompts have been read, padded on the left."""

    logits_BV: Tensor  # of the next token
    cache: Any  # transformers'
    mask_BT: Tensor  # 1 where there is a token


@torch.no_grad()
def decode_growing(
    model: Any, prompts: Sequence[list[int]], uniform_NB: Tensor, *, end_token_id: int, temperature: float
) -> list[Sample]:
    """Token by token; rows that ended leave the batch once they are half of it."""
    ids: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    logits_BV, cache, mask_BT = read_prompts(model, prompts, padding=end_token_id)
    rows = list(range(len(prompts)))  # which prompt each row of the cache belongs to
    for step, uniform_B in enumerate(uniform_NB):
        chosen_B, chosen_logprobs_B = choose(logits_BV, uniform_B[rows], temperature)
        for row, token, logprob in zip(rows, chosen_B.tolist(), chosen_logprobs_B.tolist(), strict=True):
            if not ended[row]:
                ids[row].append(token)
                logprobs[row].append(logprob)
                ended[row] = token == end_token_id
        going = [i for i, row in enumerate(rows) if not ended[row]]
        if not going or step == len(uniform_NB) - 1:
            break
        if len(going) <= len(rows) // 2:
            kept = torch.tensor(going, device=model.device)
            cache.batch_select_indices(kept)
            mask_BT, chosen_B = mask_BT[kept], chosen_B[kept]
            rows = [rows[i] for i in going]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        output = model(
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


@torch.no_grad()
def decode_in_segments(
    model: Any, prompts: Sequence[list[int]], uniform_NB: Tensor, *, end_token_id: int, temperature: float
) -> list[Sample]:
    """Segments of fixed shapes, each a CUDA graph where there is a GPU; between two of them rows that ended leave."""
    ids_NB = torch.full(uniform_NB.shape, end_token_id, device=model.device)
    logprobs_NB = torch.zeros(uniform_NB.shape, device=model.device)
    logits_BV, cache, mask_BT = read_prompts(model, prompts, padding=end_token_id)
    ids_NB[0], logprobs_NB[0] = choose(logits_BV, uniform_NB[0], temperature)
    del logits_BV
    read = [(layer.keys, layer.values) for layer in cache.layers]
    del cache  # so that `read` alone holds it, layer by layer
    rows_B = torch.arange(len(prompts), device=model.device)
    kept_B = ids_NB[0] != end_token_id
    for start in range(1, len(uniform_NB), SEGMENT):
        if not kept_B.any():
            break
        rows_B, part = rows_B[kept_B], slice(start, start + SEGMENT)
        segment = _Segment(
            model, read, mask_BT, kept_B, ids_NB[start - 1, rows_B], uniform_NB[part, rows_B],
            end_token_id=end_token_id, temperature=temperature,
        )  # fmt: skip
        segment.run()
        ids_NB[part, rows_B], logprobs_NB[part, rows_B] = segment.ids_NB, segment.logprobs_NB
        kept_B, read, mask_BT = ~segment.ended_B, segment.cache.read(), segment.mask_BT()
        del segment
    samples = []
    for ids, logprobs in zip(ids_NB.T.tolist(), logprobs_NB.T.tolist(), strict=True):
        stopped = end_token_id in ids
        length = ids.index(end_token_id) + 1 if stopped else len(ids)
        samples.append(Sample(ids[:length], logprobs[:length], "stop" if stopped else "length"))
    return samples


class _Segment:
    """Some tokens of all rows. All state is on the device, is changed in place, and `_advance` waits for none of it.

    A row that ended goes on and nothing is taken from it.
    """

    def __init__(
        self, model: Any, read: list[tuple[Tensor, Tensor]], mask_BT: Tensor, kept_B: Tensor, tokens_B: Tensor,
        uniform_NB: Tensor, *, end_token_id: int, temperature: float,
    ) -> None:  # fmt: skip
        self._model, self._temperature, self._end_token_id = model, temperature, end_token_id
        mask_BT = mask_BT[kept_B]
        rows, number = mask_BT.shape
        length = -(-(number + len(uniform_NB)) // ALIGNED_KEYS) * ALIGNED_KEYS
        self.cache = _FixedCache(read, kept_B, length)
        self._unseen_BL = torch.full(
            (rows, length), torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device
        )
        self._unseen_BL[:, :number].masked_fill_(mask_BT.bool(), 0.0)
        self._positions_B1 = mask_BT.sum(dim=1, keepdim=True)
        self._tokens_B1 = tokens_B[:, None].clone()
        self._uniform_NB, self._step_1 = uniform_NB, torch.zeros(1, dtype=torch.long, device=model.device)
        self.ids_NB = torch.full(uniform_NB.shape, end_token_id, device=model.device)
        self.logprobs_NB = torch.zeros(uniform_NB.shape, device=model.device)
        self.ended_B = torch.zeros_like(tokens_B, dtype=torch.bool)

    def run(self) -> None:
        """All tokens, or until all rows have ended."""
        advance = self._advance
        for done in range(len(self._uniform_NB)):
            if done % CHECKED_EVERY == 1 and bool(self.ended_B.all()):
                break
            if done == 1 and self._unseen_BL.is_cuda:
                words = len(self.ended_B) * self._model.config.vocab_size
                advance = _captured(self._advance, spare_bytes=SPARE_BYTES + words * BYTES_A_WORD)
            advance()

    def mask_BT(self) -> Tensor:
        """1 where there is a token, of all that were read."""
        return (self._unseen_BL[:, : int(self.cache.place_1)] == 0).long()

    def _advance(self) -> None:
        self._unseen_BL.index_fill_(1, self.cache.place_1, 0.0)
        logits_BV = self._model(
            input_ids=self._tokens_B1,
            attention_mask=self._unseen_BL[:, None, None],
            position_ids=self._positions_B1,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        chosen_B, logprobs_B = choose(logits_BV, self._uniform_NB.index_select(0, self._step_1)[0], self._temperature)
        self.ids_NB.index_copy_(0, self._step_1, chosen_B[None])
        self.logprobs_NB.index_copy_(0, self._step_1, logprobs_B[None])
        self.ended_B.logical_or_(chosen_B == self._end_token_id)
        self._tokens_B1.copy_(chosen_B[:, None])
        for counter in (self._positions_B1, self.cache.place_1, self._step_1):
            counter.add_(1)


class _FixedCache:
    """What transformers' layers ask of a cache, in tensors of one length; `place_1` is where the next token goes."""

    def __init__(self, read: list[tuple[Tensor, Tensor]], kept_B: Tensor, length: int) -> None:
        """Takes the layers out of `read`, so that at no time all of them are there twice."""
        self.place_1 = torch.full((1,), read[0][0].shape[2], device=kept_B.device)
        self._layers: list[list[Tensor]] = []
        while read:
            more = (0, 0, 0, length - read[0][0].shape[2])
            self._layers.append([functional.pad(each[kept_B], more) for each in read.pop(0)])

    def read(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of all layers, of the tokens that were read."""
        number = int(self.place_1)
        return [(keys[:, :, :number], values[:, :, :number]) for keys, values in self._layers]

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer_idx]
        return keys.index_copy_(2, self.place_1, key), values.index_copy_(2, self.place_1, value)


_newest: list[torch.cuda.CUDAGraph] = []  # whose memory the next graph takes over


@functools.cache
def _capture_stream() -> torch.cuda.Stream:
    """One for all graphs: memory that one stream has freed is not another's."""
    return torch.cuda.Stream()


def forget_graphs() -> None:
    """Give the memory of the newest graph back."""
    _newest.clear()


def _captured(advance: Callable[[], None], *, spare_bytes: int) -> Callable[[], None]:
    """Recorded, not run; each call runs it. It must have been run before, so that libraries have begun.

    `torch.cuda.graph` would first give all cached memory back, which the update after it would have to ask for anew;
    here that is done where less than `spare_bytes` are free, since nothing can be given back in a capture.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    if torch.cuda.mem_get_info()[0] < spare_bytes:
        torch.cuda.empty_cache()
    with torch.cuda.stream(_capture_stream()):
        # Other threads may be at work meanwhile, as that which writes a checkpoint.
        graph.capture_begin(*(older.pool() for older in _newest), capture_error_mode="thread_local")
        try:
            advance()
        finally:
            graph.capture_end()
    _newest[:] = [graph]
    return graph.replay


def read_prompts(model: Any, prompts: Sequence[list[int]], *, padding: int) -> Read:
    """Read every distinct prompt once."""
    distinct = [list(p) for p in dict.fromkeys(tuple(p) for p in prompts)]
    place = {tuple(p): i for i, p in enumerate(distinct)}
    longest = max(len(p) for p in distinct)
    padded = [[padding] * (longest - len(p)) + p for p in distinct]
    present = [[0] * (longest - len(p)) + [1] * len(p) for p in distinct]
    mask_BT = torch.tensor(present, device=model.device)
    output = model(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    rows = torch.tensor([place[tuple(p)] for p in prompts], device=model.device)
    output.past_key_values.batch_select_indices(rows)
    return Read(output.logits[:, -1][rows], output.past_key_values, mask_BT[rows])


def choose(logits_BV: Tensor, uniform_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row and its log-prob at that temperature (temperature 0: the likeliest, log-probs at 1).

    The first token up to which the probabilities' sum is more than the row's number in [0, 1): first the block of
    words, then the word, since a GPU is slow at long running sums. Sums are float64.
    """
    logprobs_BV = torch.log_softmax(logits_BV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        chosen_B1 = logprobs_BV.argmax(dim=-1, keepdim=True)
        return chosen_B1.squeeze(1), logprobs_BV.gather(1, chosen_B1).squeeze(1)
    rows, words = logprobs_BV.shape
    blocks = -(-words // BLOCK)
    blocks_BNW = functional.pad(logprobs_BV.exp(), (0, blocks * BLOCK - words)).view(rows, blocks, BLOCK)
    up_to_BN = blocks_BNW.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    sought_B1 = uniform_B[:, None] * up_to_BN[:, -1:]
    block_B1 = torch.searchsorted(up_to_BN, sought_B1, right=True).clamp(max=blocks - 1)
    before_B1 = torch.where(block_B1 > 0, up_to_BN.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    block_BW = blocks_BNW.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)
    word_B1 = torch.searchsorted(block_BW.cumsum(dim=-1, dtype=torch.float64), sought_B1 - before_B1, right=True)
    chosen_B1 = (block_B1 * BLOCK + word_B1.clamp(max=BLOCK - 1)).clamp(max=words - 1)
    return chosen_B1.squeeze(1), logprobs_BV.gather(1, chosen_B1).squeeze(1)
