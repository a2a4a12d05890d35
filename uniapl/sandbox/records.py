"""What goes into the sandbox and what comes out: calls, programs, judgements, limits."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, fields
from typing import Literal

Status = Literal[
    "ok",  # the code answered: `verdict` holds True or False
    "not_bool",  # it returned something other than True or False
    "error",  # it raised, or does not compile, or names no such function
    "timeout",  # the wall clock or the processor time ran out
    "limit",  # memory ran out, or source or answer are larger than allowed
    "crashed",  # its process ended without an answer
    "unsupported",  # the only back end at hand cannot run this code
    "disagreement",  # CPython answers otherwise than Monty
    "unavailable",  # the sandbox itself could not be started
]
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class Call:
    """One verification function, applied to one answer: `entry(answer)` after `source` has run."""

    source: str
    answer: str
    entry: str = "evaluate"

    def __post_init__(self) -> None:
        if not self.entry.isidentifier() or keyword.iskeyword(self.entry):
            raise ValueError(f"{self.entry!r} is no name of a function; give the one that the source defines")


@dataclass(frozen=True)
class Program:
    """A whole program, HumanEval's for example: True where it runs to its end, False where it raises."""

    source: str


@dataclass(frozen=True)
class Judgement:
    """`verdict` is a bool where status is "ok", else None; `reason` is one short line: why there is none, or what a
    program that failed raised.
    """

    status: Status
    verdict: bool | None
    reason: str
    backend: str

    def __post_init__(self) -> None:
        assert (self.status == "ok") == (self.verdict is not None)


@dataclass(frozen=True)
class Limits:
    """What one call may use. Chosen so that every function of AutoIF's sample and HumanEval stays far below."""

    wall_seconds: float = 10.0  # CPython; generous, so that a busy machine changes no judgement
    cpu_seconds: int = 4  # CPython
    memory_bytes: int = 512 << 20  # CPython: address space, of which the interpreter takes about 40 MiB
    monty_seconds: float = 1.0  # Monty; what is too slow there runs in CPython
    monty_memory_bytes: int = 64 << 20  # Monty: its heap
    source_bytes: int = 64 << 10
    answer_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"sandbox limit {field.name} = {getattr(self, field.name)} must be above 0")
        if self.memory_bytes < 128 << 20:
            raise ValueError(
                f"sandbox limit memory_bytes = {self.memory_bytes} leaves an interpreter no room; give 128 MiB or more"
            )


def judged(verdict: bool, *, backend: str, reason: str = "") -> Judgement:
    """The judgement of code that answered."""
    return Judgement("ok", verdict, one_line(reason), backend)


def refused(status: Status, reason: str, *, backend: str) -> Judgement:
    """A judgement without verdict; the reason is cut to one printable line."""
    return Judgement(status, None, one_line(reason), backend)


def one_line(text: str) -> str:
    """Text that hostile code may have written, fit for a log: printable, on one line, at most MAX_REASON characters."""
    words = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_REASON]).split()
    return " ".join(words)[:MAX_REASON]


def size_bytes(text: str) -> int:
    """Bytes of a text in UTF-8, lone surrogates counted as three bytes each."""
    return len(text.encode("utf-8", "surrogatepass"))
