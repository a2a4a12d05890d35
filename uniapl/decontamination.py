"""Training prompts that share text with a benchmark are left out: by 13 words in a row, or by a constraint's words.

Thirteen words is what GPT-3's and later reports use (arXiv 2005.14165, appendix C). Words are runs of letters and
digits, in lower case, so punctuation and layout hide nothing. A benchmark's text of fewer words counts as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniapl.records import Prompt

WORDS_IN_A_ROW = 13
LEAST_CONSTRAINT_WORDS = 5  # a shorter constraint ("use no commas") says nothing of where it is from
SHOWN_EXAMPLES = 5


@dataclass(frozen=True)
class Overlap:
    """Why a prompt is left out."""

    benchmark: str
    by: str  # "words" or "constraint"
    text: str


def words_of(text: str) -> list[str]:
    """A text's words as they are compared."""
    return re.findall(r"[^\W_]+", text.lower())


def runs_of(words: Sequence[str], length: int) -> Iterable[str]:
    """All runs of so many words; the whole where there are fewer."""
    if len(words) <= length:
        return [" ".join(words)] if words else []
    return (" ".join(words[begin : begin + length]) for begin in range(len(words) - length + 1))


class Benchmarks:
    """The texts that nothing may be trained on, ready to be searched."""

    def __init__(self, texts: Mapping[str, Iterable[str]]) -> None:
        """`texts` are each benchmark's prompts and questions by its name."""
        self._runs: dict[int, dict[str, str]] = {}  # by length: a run of words and the benchmark it is from
        self._prompts: dict[str, list[str]] = {}
        for name, items in texts.items():
            for item in items:
                words = words_of(item)
                length = min(len(words), WORDS_IN_A_ROW)
                for run in runs_of(words, WORDS_IN_A_ROW):
                    self._runs.setdefault(length, {}).setdefault(run, name)
                self._prompts.setdefault(name, []).append(f" {' '.join(words)} ")
        self._constraints: dict[str, Overlap | None] = {}  # what was searched for before

    def overlap(self, prompt: Prompt) -> Overlap | None:
        """The first overlap of a prompt with a benchmark; None where there is none."""
        words = words_of(prompt.text)
        whole = " ".join(words)
        for length, runs in self._runs.items():
            found = runs_of(words, length) if length == WORDS_IN_A_ROW else [whole]
            for run in found:
                if run in runs:
                    return Overlap(runs[run], "words", run)
        for constraint in prompt.constraints:
            if (overlap := self._overlap_of(constraint.text)) is not None:
                return overlap
        return None

    def _overlap_of(self, constraint: str) -> Overlap | None:
        words = words_of(constraint)
        if len(words) < LEAST_CONSTRAINT_WORDS:
            return None
        text = " ".join(words)
        if text not in self._constraints:
            names = (name for name, prompts in self._prompts.items() if any(f" {text} " in one for one in prompts))
            name = next(names, None)
            self._constraints[text] = Overlap(name, "constraint", text) if name is not None else None
        return self._constraints[text]


def without_duplicates(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts without those whose words came before."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(" ".join(words_of(prompt.text)), prompt)
    return list(first.values())


def decontaminated(prompts: Sequence[Prompt], benchmarks: Benchmarks) -> tuple[list[Prompt], dict[str, Any]]:
    """The prompts that share nothing with a benchmark, and a report: how many were left out, by what, examples."""
    unique = without_duplicates(prompts)
    overlaps = [(prompt, benchmarks.overlap(prompt)) for prompt in unique]
    found = [(prompt, overlap) for prompt, overlap in overlaps if overlap is not None]
    counts = Counter((overlap.benchmark, overlap.by) for _, overlap in found)
    report = {
        "rows": len(prompts),
        "duplicates": len(prompts) - len(unique),
        "left_out": [{"benchmark": name, "by": by, "rows": n} for (name, by), n in sorted(counts.items())],
        "examples": [
            {"prompt_id": prompt.id, "benchmark": overlap.benchmark, "by": overlap.by, "text": overlap.text}
            for prompt, overlap in found[:SHOWN_EXAMPLES]
        ],
        "kept": len(unique) - len(found),
    }
    return [prompt for prompt, overlap in overlaps if overlap is None], report
