"""Functions and test cases of one instruction check each other (AutoIF, section 3.2 and the authors' code).

A case is kept where at least one function gives its expected verdict; a function is kept where it gives the expected
verdict of at least 80% of the kept cases. No verdict (an exception, a time-out) counts as a wrong one here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uniapl.autoif.replies import Written

Case = tuple[str, bool]


@dataclass(frozen=True)
class Thresholds:
    """What an instruction needs to be kept."""

    min_functions: int
    min_cases: int
    agreement: float


@dataclass(frozen=True)
class Checked:
    """An instruction with the functions and cases that were kept; `accuracies` are the functions', over the cases."""

    instruction: str
    functions: tuple[str, ...]
    accuracies: tuple[float, ...]
    cases: tuple[Case, ...]


def distinct(replies: Sequence[Written | None]) -> tuple[list[str], list[Case]]:
    """The different functions and cases of all replies, in the order they came.

    A text that two cases expect different verdicts of is no case.
    """
    functions = list(dict.fromkeys(reply.source for reply in replies if reply))
    cases = list(dict.fromkeys(case for reply in replies if reply for case in reply.cases))
    expected: dict[str, set[bool]] = {}
    for text, verdict in cases:
        expected.setdefault(text, set()).add(verdict)
    return functions, [case for case in cases if len(expected[case[0]]) == 1]


def enough(functions: Sequence[str], cases: Sequence[Case], thresholds: Thresholds) -> bool:
    """True where there are enough of both to check each other."""
    return len(functions) >= thresholds.min_functions and len(cases) >= thresholds.min_cases


def cross_check(
    instruction: str, functions: Sequence[str], cases: Sequence[Case], verdicts: Sequence[Sequence[bool | None]],
    thresholds: Thresholds,
) -> Checked | None:  # fmt: skip
    """Keep what agrees; None where no function is left. `verdicts[f][c]`: function f on case c, None without one."""
    agree = [[verdict is expected for verdict, (_, expected) in zip(row, cases, strict=True)] for row in verdicts]
    kept_cases = [c for c in range(len(cases)) if any(row[c] for row in agree)]
    if not kept_cases:
        return None
    accuracies = [sum(row[c] for c in kept_cases) / len(kept_cases) for row in agree]
    kept = [f for f, accuracy in enumerate(accuracies) if accuracy >= thresholds.agreement]
    if not kept:
        return None
    return Checked(
        instruction, tuple(functions[f] for f in kept), tuple(round(accuracies[f], 4) for f in kept),
        tuple(cases[c] for c in kept_cases),
    )  # fmt: skip
