"""AutoIF's steps in their order. Each takes what the one before kept, and counts what goes in and what comes out.

A teacher is asked in whole steps (`Asks`), so an endpoint is kept busy, and its answers are cached by request: the same
pipeline started again goes through the same steps without asking twice. Verdicts are made in the sandbox (`Judges`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniapl.answer_cache import Answer
from uniapl.autoif import replies, requests
from uniapl.autoif.cross_check import Checked, Thresholds, cross_check, distinct, enough
from uniapl.config import AutoIFSpec
from uniapl.constraints.functions import KIND, MOST_FUNCTIONS, agreed
from uniapl.records import Constraint, Prompt
from uniapl.sandbox import Judgement
from uniapl.seeding import stream, stream_seed
from uniapl.topics import TOPICS

SEEDS = Path(__file__).with_name("seeds.txt")
INSTRUCTIONS_PER_REQUEST = 50  # as the authors ask
QUERY_CHARACTERS = (20, 300)  # as the authors choose ShareGPT's queries
QUERIES_PER_REQUEST = 20
BACK_TRANSLATIONS = 3  # functions of an instruction that are translated back, as the authors do

# The answers to (text, stream of its seed) pairs, in their order.
Asks = Callable[[Sequence[tuple[str, int]]], list[Answer]]
# Judgements of (function's source, text) pairs, in their order.
Judges = Callable[[Sequence[tuple[str, str]]], Sequence[Judgement]]


@dataclass(frozen=True)
class Pipeline:
    """What all steps share; `counts` is the data card's: a step's name, rows before, rows after."""

    spec: AutoIFSpec
    asks: Asks
    judges: Judges
    counts: list[dict[str, Any]] = field(default_factory=list)

    def make(self) -> list[Prompt]:
        """Training prompts, each with the verification functions of its instruction."""
        instructions = self.augmented()
        checked = self.back_translated(self.cross_checked(instructions))
        return self.answered(self.combined(checked, self.queries()))

    def augmented(self) -> list[str]:
        """The seed instructions and the teacher's new ones, without duplicates."""
        seeds = [line for line in SEEDS.read_text(encoding="utf-8").splitlines() if line.strip()]
        # Each request shows the seeds in another order, so that the lists differ.
        streams = [stream("autoif", self.spec.seed, "seeds", index) for index in range(self.spec.augmentations)]
        texts = [requests.augment(_shuffled(seeds, one), count=INSTRUCTIONS_PER_REQUEST) for one in streams]
        answers = self._ask("augment", texts)
        found = [*seeds, *(item for answer in answers for item in replies.listed(answer.text))]
        return self._keep("instructions without duplicates", found, list(_unique(found)))

    def cross_checked(self, instructions: Sequence[str]) -> list[Checked]:
        """Instructions whose functions and cases agree."""
        times = self.spec.functions_per_instruction
        texts = [requests.function(one) for one in instructions for _ in range(times)]
        written = [replies.written(answer.text) for answer in self._ask("function", texts)]
        self._keep("replies with a function", written, [one for one in written if one])
        groups = {one: distinct(written[i * times : (i + 1) * times]) for i, one in enumerate(instructions)}
        limits = Thresholds(self.spec.min_functions, self.spec.min_cases, self.spec.agreement)
        groups = {one: pair for one, pair in groups.items() if enough(*pair, limits)}
        self._keep("instructions with enough functions and cases", instructions, list(groups))
        pairs = [(f, text) for functions, cases in groups.values() for f in functions for text, _ in cases]
        verdicts = iter([judgement.verdict for judgement in self.judges(pairs)])
        kept = []
        for instruction, (functions, cases) in groups.items():
            table = [[next(verdicts) for _ in cases] for _ in functions]
            kept.append(cross_check(instruction, functions, cases, table, limits))
        return self._keep("instructions whose functions and cases agree", kept, [one for one in kept if one])

    # DEVIATION: autoif: the teacher itself says how instruction and back-translation are related, not an NLI model.
    def back_translated(self, checked: Sequence[Checked]) -> list[Checked]:
        """Instructions that none of their functions' back-translations contradicts."""
        todo = [(one, source) for one in checked for source in one.functions[:BACK_TRANSLATIONS]]
        answers = self._ask("back_translate", [requests.back_translate(source) for _, source in todo])
        said = [(one, replies.sentence(answer.text)) for (one, _), answer in zip(todo, answers, strict=True)]
        texts = [requests.compare(one.instruction, line) for one, line in said if line]
        relations = iter([replies.relation(answer.text) for answer in self._ask("compare", texts)])
        bad = {one.instruction for one, line in said if line is None or next(relations) in ("contradiction", None)}
        return self._keep(
            "instructions without a contradiction", checked, [one for one in checked if one.instruction not in bad]
        )

    # DEVIATION: autoif: queries are the teacher's, on the training topics, not ShareGPT's users'.
    def queries(self) -> list[str]:
        """What a user might ask, on the topics of the training split."""
        topics = list(TOPICS["train"])
        texts = [requests.queries(topic, count=QUERIES_PER_REQUEST) for topic in topics]
        least, most = QUERY_CHARACTERS
        found = [
            item for answer in self._ask("queries", texts) for item in replies.listed(answer.text, longest=most)
            if len(item) >= least
        ]  # fmt: skip
        return self._keep("queries without duplicates", found, list(_unique(found)))

    def combined(self, checked: Sequence[Checked], queries: Sequence[str]) -> list[tuple[str, Checked]]:
        """Each instruction with queries that are drawn for it."""
        if checked and not queries:
            raise ValueError("the teacher wrote no query in the form that was asked for; see its answers in the cache")
        count = min(self.spec.queries_per_instruction, len(queries))
        return [
            (query, one)
            for one in checked
            for query in stream("autoif", self.spec.seed, "queries", one.instruction).sample(list(queries), count)
        ]

    def answered(self, pairs: Sequence[tuple[str, Checked]]) -> list[Prompt]:
        """Prompts that the teacher can answer: one passes, and serves the query well in the teacher's own eyes."""
        times = self.spec.answers_per_prompt
        if times == 0:
            return self._cut([training_prompt(*pair) for pair in pairs])
        texts = [requests.prompt(query, one.instruction) for query, one in pairs for _ in range(times)]
        answers = self._ask("answer", texts)
        todo = [
            (p, answer.text) for p in range(len(pairs)) for answer in answers[p * times : (p + 1) * times]
            if answer.finish_reason == "stop" and answer.text.strip()
        ]  # fmt: skip
        calls = [(source, text) for p, text in todo for source in pairs[p][1].functions]
        judgements = iter(self.judges(calls))
        passed = [(p, text) for p, text in todo if agreed([next(judgements) for _ in pairs[p][1].functions]) is True]
        able = self._keep("prompts with an answer that passes", pairs, sorted({p for p, _ in passed}))
        marks = [requests.score(pairs[p][0], pairs[p][1].instruction, text) for p, text in passed]
        scores: dict[int, list[int]] = {p: [] for p in able}
        for (p, _), answer in zip(passed, self._ask("score", marks), strict=True):
            scores[p].append(replies.scored(answer.text) or 0)
        good = [p for p in able if max(scores[p]) > self.spec.min_score]
        kept = self._keep("prompts with an answer that serves the query", able, good)
        return self._cut([training_prompt(*pairs[p]) for p in kept])

    def _cut(self, prompts: list[Prompt]) -> list[Prompt]:
        return self._keep("at most data.autoif.max_prompts", prompts, prompts[: self.spec.max_prompts])

    def _ask(self, step: str, texts: Sequence[str]) -> list[Answer]:
        """Equal texts are asked with other seeds, so that their answers differ."""
        turns: dict[str, int] = {}
        todo = []
        for text in texts:
            turn = turns[text] = turns.get(text, -1) + 1
            todo.append((text, stream_seed("autoif", self.spec.seed, step, turn)))
        return self.asks(todo) if todo else []

    def _keep(self, name: str, before: Sequence[Any], after: list[Any]) -> list[Any]:
        self.counts.append({"step": name, "before": len(before), "after": len(after)})
        print(f"autoif: {name}: {len(after)} of {len(before)}", flush=True)
        return after


def training_prompt(query: str, checked: Checked) -> Prompt:
    """A query with an instruction, judged by the instruction's functions."""
    constraint = Constraint(KIND, {"functions": list(checked.functions[:MOST_FUNCTIONS])}, checked.instruction)
    identity = f"autoif-{stream_seed('autoif', query, checked.instruction):016x}"
    return Prompt(identity, "train", requests.prompt(query, checked.instruction), (constraint,))


def _unique(texts: Iterable[str]) -> Iterable[str]:
    """Texts without those that are the same but for case, punctuation and spaces."""
    seen = set()
    for text in texts:
        key = replies.normalized(text)
        if key and key not in seen:
            seen.add(key)
            yield text


def _shuffled(items: Sequence[str], rng: random.Random) -> list[str]:
    copy = list(items)
    rng.shuffle(copy)
    return copy
