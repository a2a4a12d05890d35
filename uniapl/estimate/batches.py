"""The largest micro-batches of a step, in the sizes that the memory model counts with; `uniapl.batch` lays them out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from uniapl.config import DataSpec, MachineSpec, PolarSpec, StageSpec

PROMPT_TOKENS = 256  # assumed of a long prompt
SLOTS_A_TOKEN = 2  # of batch.py, which cannot be imported here; a test compares them


@dataclass(frozen=True)
class Attended:
    """What one call of an attention kernel computes: of n sequences q queries each, which see at most k keys."""

    n: int
    q: int
    k: int

    @property
    def pairs(self) -> int:
        """Scores of one head; elements of the mask."""
        return self.n * self.q * self.k


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch of a step, and how many of them a rank lays out at once.

    Packed there are prompts, and an answer's tokens are its own. Padded there are none: an answer is a whole row.
    """

    positions: int  # that the layers compute; in padded rows all
    predicted: int  # completion tokens, whose logits are computed
    number: int
    answers: int
    answer_tokens: int  # of the longest
    prompts: int = 0
    prompt_tokens: int = 0  # of the longest

    @classmethod
    def padded(cls, *, rows: int, width: int, predicted: int, number: int) -> Batch:
        """Rows of so many positions."""
        return cls(rows * width, predicted, number, answers=rows, answer_tokens=width)

    @property
    def slots(self) -> int:
        """Places of the prompts and of the answers, each as long as its longest."""
        return self.prompts * self.prompt_tokens + self.answers * self.answer_tokens

    @property
    def attended(self) -> tuple[Attended, ...]:
        """The calls of a layer's attention: the prompts', where they are apart, then the answers'."""
        of_answers = Attended(self.answers, self.answer_tokens, self.prompt_tokens + self.answer_tokens)
        if not self.prompts:
            return (of_answers,)
        return Attended(self.prompts, self.prompt_tokens, self.prompt_tokens), of_answers

    @property
    def pairs(self) -> int:
        """Elements of the masks of all calls."""
        return sum(call.pairs for call in self.attended)


def largest_batch(stage: StageSpec, data: DataSpec, machine: MachineSpec) -> Batch:
    """The largest micro-batch that a stage's steps can have; every position is taken to predict a token.

    Packed, it is full, one of its answers is as long as answers may be, and all others have slots for as many tokens;
    or for fewer, where that would be more slots than a micro-batch may have.
    """
    longest = PROMPT_TOKENS + data.max_new_tokens
    positions = max(longest, machine.micro_batch_tokens)
    fits = machine.packing and stage.draws_rollouts and longest < positions
    together = stage.rollouts_per_prompt if fits else 1  # answers behind one prompt
    row = PROMPT_TOKENS + together * data.max_new_tokens
    if not machine.packing:
        positions = positions // row * row
    tokens = stage.demonstrations_trained * longest
    if stage.draws_rollouts:
        tokens += stage.prompts_per_step * (stage.rollouts_per_prompt // together) * row
    number, rows = math.ceil(tokens / positions / machine.ranks), math.ceil(positions / row)
    if not machine.packing:
        return Batch.padded(rows=rows, width=row, predicted=positions, number=number)
    bound = (SLOTS_A_TOKEN * positions - rows * PROMPT_TOKENS) // (rows * together)
    return Batch(
        positions, positions, number, answers=rows * together, answer_tokens=min(data.max_new_tokens, bound),
        prompts=rows, prompt_tokens=PROMPT_TOKENS,
    )  # fmt: skip


def polar_batch(spec: PolarSpec, stage: StageSpec, data: DataSpec) -> Batch:
    """POLAR's largest micro-batch: a prompt with its reference and, for each answer, prompt and answer."""
    part = PROMPT_TOKENS + min(data.max_new_tokens, spec.max_response_length)
    row = (1 + stage.rollouts_per_prompt) * part
    positions = max(2 * part, min(spec.micro_batch_tokens, stage.prompts_per_step * row))
    prompts = math.ceil(positions / row)
    return Batch(
        positions, 0, 1, answers=prompts * stage.rollouts_per_prompt, answer_tokens=part, prompts=prompts,
        prompt_tokens=part,
    )  # fmt: skip
