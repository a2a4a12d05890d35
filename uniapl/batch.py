"""From sequences to micro-batches: which tokens each term sees, global counts, padded or packed layouts.

The terms work on completion tokens laid end to end (suffix T), so padding and packing differ only in how the
decoder is called. Packed, there is one row without padding, in which a prompt stands once and all its answers behind
it: each answer sees the prompt and itself, and its positions go on from the prompt's. Micro-batches change speed, never
the result beyond float error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uniapl.attention import Documents
from uniapl.objectives import TERMS
from uniapl.records import TokenSequence

ADVANTAGE_TERMS = ("grpo", "off_policy")  # whose gradient is a multiple of A
SLOTS_A_TOKEN = 2  # of a packed micro-batch: its documents padded to the longest, in attention alone; memory and speed
FILLER = TokenSequence([0], [], frozenset())  # no token of a completion: a forward for the other ranks' sake


@dataclass
class MicroBatch:
    """Inputs of one forward and backward. Suffixes: B rows, S positions of a row, T completion tokens end to end."""

    input_ids_BS: Tensor
    position_ids_BS: Tensor
    attention_mask: Tensor  # padded: [B, S], 1 on tokens; packed: NaN, for a model that would not look at `documents`
    predicting_T: Tensor  # index into the flattened [B, S] of the position whose state predicts each token
    targets_T: Tensor
    weights_T: dict[str, Tensor]  # per term: 0 off the term, else the normalisation's weight
    advantages_T: Tensor
    adversarial_T: Tensor
    sampler_logprobs_T: Tensor
    documents: Documents | None  # packed

    def select(self, term: str) -> Tensor:
        """Tokens on which a term acts, bool [T]."""
        if term not in self.weights_T:
            return torch.zeros_like(self.targets_T, dtype=torch.bool)
        return self.weights_T[term] > 0


def token_weight(sequence: TokenSequence, term: str, *, normalization: str, max_new_tokens: int) -> float:
    """Weight of each token of a sequence in a term's sum: 1, or 1 / |o| (grpo), or 1 / L_max (dr_grpo)."""
    if term not in sequence.terms:
        return 0.0
    if term == "sft" or normalization == "dapo":
        return 1.0
    return 1.0 / (len(sequence.completion_ids) if normalization == "grpo" else max_new_tokens)


def term_counts(sequences: Sequence[TokenSequence], *, normalization: str) -> dict[str, float]:
    """The denominators: demonstration tokens (N_sft), and tokens (dapo) or number of rollouts.

    N_grpo counts the expert's answers in the groups too. Counts all sequences of the step, also those that are left out
    of the forward.
    """
    in_groups = [s for s in sequences if "sft" not in s.terms]
    sampled = [s for s in in_groups if "off_policy" not in s.terms]

    def number(counted: Sequence[TokenSequence]) -> float:
        return float(sum(len(s.completion_ids) for s in counted) if normalization == "dapo" else len(counted))

    num_sft = float(sum(len(s.completion_ids) for s in sequences if "sft" in s.terms))
    num_groups, num_sampled = number(in_groups), number(sampled)
    return {"sft": num_sft, "grpo": num_groups, "off_policy": num_groups, "adv": num_sampled, "kl": num_sampled}


def needs_gradient(sequence: TokenSequence, coefficients: Mapping[str, float]) -> bool:
    """False where every coefficient x advantage on a sequence is 0: its forward can be left out (speed only)."""
    return (
        ("sft" in sequence.terms and coefficients["sft"] > 0)
        or (any(t in sequence.terms and coefficients[t] > 0 for t in ADVANTAGE_TERMS) and sequence.advantage != 0)
        or ("adv" in sequence.terms and coefficients["adv"] > 0 and sequence.adversarial_advantage != 0)
        or ("kl" in sequence.terms and coefficients["kl"] > 0)
    )


Row = list[TokenSequence]  # packed: sequences with the same prompt; padded: one sequence


def _rows(sequences: Sequence[TokenSequence], *, packing: bool, micro_tokens: int | None) -> list[Row]:
    """Rows in order of first appearance; a packed row that is too long is broken up, its prompt repeated."""
    if not packing:
        return [[sequence] for sequence in sequences]
    rows: list[Row] = []
    open_row: dict[tuple[int, ...], Row] = {}
    for sequence in sequences:
        row = open_row.get(tuple(sequence.prompt_ids))
        if row is None or (micro_tokens and not _fits([[*row, sequence]], micro_tokens=micro_tokens, packing=True)):
            row = open_row[tuple(sequence.prompt_ids)] = []
            rows.append(row)
        row.append(sequence)
    return rows


def _length(row: Row) -> int:
    return len(row[0].prompt_ids) + sum(len(s.completion_ids) for s in row)


def _fits(rows: Sequence[Row], *, micro_tokens: int, packing: bool) -> bool:
    """Whether rows may be one micro-batch: its positions, and the slots that attention lays packed documents out in."""
    if not packing:
        return len(rows) * max(map(_length, rows)) <= micro_tokens
    answers = [len(sequence.completion_ids) for row in rows for sequence in row]
    slots = len(rows) * max(len(row[0].prompt_ids) for row in rows) + len(answers) * max(answers)
    return sum(map(_length, rows)) <= micro_tokens and slots <= SLOTS_A_TOKEN * micro_tokens


def split(sequences: Sequence[TokenSequence], *, micro_tokens: int, packing: bool) -> Iterator[list[TokenSequence]]:
    """Group sequences into micro-batches of at most `micro_tokens` positions (at least one row).

    Of padded rows padding counts; of packed ones attention's slots are bounded. Rows of like length go together. The
    order inside a micro-batch is the order of its completion tokens in `layout`.
    """
    group: list[Row] = []
    for row in sorted(_rows(sequences, packing=packing, micro_tokens=micro_tokens), key=lambda row: -_length(row)):
        if group and not _fits([*group, row], micro_tokens=micro_tokens, packing=packing):
            yield [sequence for full in group for sequence in full]
            group = []
        group.append(row)
    if group:
        yield [sequence for full in group for sequence in full]


def layout(
    sequences: Sequence[TokenSequence], *, packing: bool, normalization: str, max_new_tokens: int, device: torch.device
) -> MicroBatch:
    """Lay sequences out for one forward: right-padded rows of one sequence each, or prompts and answers end to end."""
    rows = _rows(sequences, packing=packing, micro_tokens=None)
    width = sum(map(_length, rows)) if packing else max(map(_length, rows))
    input_ids_BS = torch.zeros(1 if packing else len(rows), width, dtype=torch.long)
    position_ids_BS = torch.zeros_like(input_ids_BS)
    end, predicting = 0, []
    ids, positions = input_ids_BS.view(-1), position_ids_BS.view(-1)
    for b, row in enumerate(rows):
        prompt = row[0].prompt_ids
        start = end if packing else b * width
        end = start + len(prompt)
        last = end - 1
        ids[start:end] = torch.tensor(prompt)
        positions[start:end] = torch.arange(len(prompt))
        for sequence in row:
            start, length = end, len(sequence.completion_ids)
            end = start + length
            ids[start:end] = torch.tensor(sequence.completion_ids, dtype=torch.long)
            positions[start:end] = torch.arange(len(prompt), len(prompt) + length)
            before = [last, *range(start, end - 1)]  # the first token is predicted by the prompt's last
            predicting.append(torch.tensor(before[:length], dtype=torch.long))
    ordered = [sequence for row in rows for sequence in row]
    joined = any("off_policy" in sequence.terms for sequence in ordered)  # rare, and a stream of weights is memory
    lengths_B = torch.tensor([len(s.completion_ids) for s in ordered])

    def per_token(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float32).repeat_interleave(lengths_B).to(device)

    def weights(term: str) -> Tensor:
        weigh = {"normalization": normalization, "max_new_tokens": max_new_tokens}
        return per_token(token_weight(s, term, **weigh) for s in ordered)

    if packing:
        prompts, answers = zip(*((len(r[0].prompt_ids), [len(s.completion_ids) for s in r]) for r in rows), strict=True)
        documents, mask = Documents.of_row(prompts, answers, device), torch.full((1, 1, 1, 1), torch.nan)
    else:
        filled_B = torch.tensor([_length(row) for row in rows])
        documents, mask = None, (torch.arange(width) < filled_B[:, None]).long()
    sampler = [value for s in ordered for value in (s.sampler_logprobs or [0.0] * len(s.completion_ids))]
    return MicroBatch(
        input_ids_BS=input_ids_BS.to(device),
        position_ids_BS=position_ids_BS.to(device),
        attention_mask=mask.to(device),
        predicting_T=torch.cat(predicting).to(device),
        targets_T=torch.tensor([token for s in ordered for token in s.completion_ids], dtype=torch.long, device=device),
        weights_T={term: weights(term) for term in TERMS if term != "off_policy" or joined},
        advantages_T=per_token(s.advantage for s in ordered),
        adversarial_T=per_token(s.adversarial_advantage for s in ordered),
        sampler_logprobs_T=torch.tensor(sampler, dtype=torch.float32, device=device),
        documents=documents,
    )


def scoring_batches(
    sequences: Sequence[TokenSequence], *, micro_tokens: int, packing: bool, device: torch.device
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Micro-batches that nothing is trained on, each with the places of its sequences in the caller's list."""
    place = {id(sequence): index for index, sequence in enumerate(sequences)}
    for group in split(sequences, micro_tokens=micro_tokens, packing=packing):
        micro = layout(group, packing=packing, normalization="dapo", max_new_tokens=1, device=device)
        yield [place[id(sequence)] for sequence in group], micro
