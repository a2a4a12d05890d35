"""What a study asks a chat teacher: how many requests, and their mean lengths. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uniapl.config import AutoIFSpec, EditorSpec, Study
from uniapl.estimate.work import Lengths
from uniapl.topics import TOPICS

TEACHER_PASSES = 0.8  # assumed: the share of its answers that pass all verifiers and are whole
NEW_INSTRUCTIONS = 0.5  # assumed: the share of AutoIF's new instructions that came in no reply before
CHECKED_INSTRUCTIONS = 0.5  # assumed: the share of instructions that AutoIF's checks of functions and cases keep
# Of autoif/pipeline.py, which cannot be imported here; a test compares them.
INSTRUCTIONS_PER_REQUEST, BACK_TRANSLATIONS = 50, 3
SEEDS = Path(__file__).resolve().parent.parent / "autoif" / "seeds.txt"
# Mean tokens of AutoIF's requests and replies, assumed; an answer's reply goes with the cap.
AUTOIF_TOKENS = {
    "augment": (800, 750), "function": (230, 450), "back_translate": (220, 25), "compare": (120, 5),
    "queries": (100, 600), "score": (700, 120),
}  # fmt: skip


@dataclass(frozen=True)
class Requests:
    """Requests of one kind that are sent together; lengths are means in tokens."""

    number: float  # expected
    least: float  # in any case
    most: float  # in any case
    prompt_tokens: float
    completion_tokens: float
    cap: int


@dataclass(frozen=True)
class Asked:
    """All that one rule asks, for all students together: they share its answers."""

    rule: str
    parts: tuple[Requests, ...]

    @property
    def requests(self) -> float:
        """Expected."""
        return math.fsum(part.number for part in self.parts)

    @property
    def least(self) -> float:
        """Where the first answers pass."""
        return math.fsum(part.least for part in self.parts)

    @property
    def most(self) -> float:
        """Where every request that may be sent is sent."""
        return math.fsum(part.most for part in self.parts)

    @property
    def prompt_tokens(self) -> float:
        """Expected."""
        return math.fsum(part.number * part.prompt_tokens for part in self.parts)

    @property
    def completion_tokens(self) -> float:
        """Expected."""
        return math.fsum(part.number * part.completion_tokens for part in self.parts)


def num_orders(study: Study) -> int:
    """Demonstrations that are ordered at most, as `teachers.drafts.orders`: filters may leave fewer policy prompts."""
    data = study.data
    return data.num_policy + data.num_heldout + 2 * (data.num_discriminator + data.num_discriminator_test)


def asked_of(study: Study, lengths: Lengths) -> tuple[Asked, ...]:
    """The requests of each rule that asks a chat teacher."""
    found = []
    if study.data.autoif is not None and study.data.autoif.items is None:
        found.append(Asked("autoif", autoif_requests(study.data.autoif, lengths)))
    if not isinstance(study.teacher, EditorSpec):
        found.append(Asked("demonstrations", demonstration_requests(study, study.teacher.num_samples, lengths)))
    return tuple(found)


def demonstration_requests(study: Study, num_samples: int, lengths: Lengths) -> tuple[Requests, ...]:
    """Round by round: each asks again where no answer has passed yet."""
    orders, cap = num_orders(study), study.data.max_new_tokens
    prompt, answer = lengths.prompt_tokens, lengths.demonstration_share * cap
    return tuple(
        Requests(orders * (1 - TEACHER_PASSES) ** index, orders if index == 0 else 0, orders, prompt, answer, cap)
        for index in range(num_samples)
    )


def autoif_requests(spec: AutoIFSpec, lengths: Lengths) -> tuple[Requests, ...]:
    """AutoIF's steps in their order; nothing may survive its checks, or everything."""
    seeds = sum(bool(line.strip()) for line in SEEDS.read_text(encoding="utf-8").splitlines())
    written = spec.augmentations * INSTRUCTIONS_PER_REQUEST
    instructions, most = seeds + NEW_INSTRUCTIONS * written, seeds + written
    checked = CHECKED_INSTRUCTIONS * instructions
    answers = spec.queries_per_instruction * spec.answers_per_prompt

    def step(name: str, number: float, *, least: float, most: float) -> Requests:
        return Requests(number, least, most, *AUTOIF_TOKENS[name], spec.max_reply_tokens)

    topics, functions = len(TOPICS["train"]), spec.functions_per_instruction
    return (
        step("augment", spec.augmentations, least=spec.augmentations, most=spec.augmentations),
        step("function", functions * instructions, least=functions * seeds, most=functions * most),
        step("back_translate", BACK_TRANSLATIONS * checked, least=0, most=BACK_TRANSLATIONS * most),
        step("compare", BACK_TRANSLATIONS * checked, least=0, most=BACK_TRANSLATIONS * most),
        step("queries", topics, least=topics, most=topics),
        Requests(
            answers * checked, 0, answers * most, lengths.prompt_tokens,
            lengths.answer_share * spec.max_reply_tokens, spec.max_reply_tokens,
        ),
        step("score", TEACHER_PASSES * answers * checked, least=0, most=answers * most),
    )  # fmt: skip


def totals(asked: Sequence[Asked]) -> Asked:
    """All rules' requests as one."""
    return Asked("all", tuple(part for one in asked for part in one.parts))
