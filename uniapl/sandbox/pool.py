"""The sandbox as the suite uses it: judge many calls and programs on several cores, each by the back end that can.

    with Sandbox() as sandbox:
        judgements = sandbox.judge([Call(source, answer), ...])

Monty is asked first. What it gives no verdict on goes to CPython in batches; programs go there at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from types import TracebackType
from typing import Any

from uniapl.sandbox.monty import MontyBackend, may_hide_a_gap
from uniapl.sandbox.probe import available, offered, remedy
from uniapl.sandbox.process import ProcessBackend
from uniapl.sandbox.records import Call, Judgement, Limits, Program, refused, size_bytes

BATCH_ITEMS, BATCH_BYTES = 32, 4 << 20  # of one start of the CPython back end
ANSWERED = ("ok", "not_bool")  # the function returned
SLICE = 64  # calls that a thread hands to Monty at a time


class Sandbox:
    """Judges code that a model wrote. A context manager; `judge` may be called again and again.

    `backends` narrows the choice to names of `available()`; None takes Monty and the better one of the CPython back
    ends. Raise ValueError, with the remedy, where none works here or a named one does not.
    """

    def __init__(
        self, *, limits: Limits | None = None, processes: int | None = None, backends: Sequence[str] | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._processes = processes or len(os.sched_getaffinity(0))
        names = offered() if backends is None else list(backends)
        for name in names:
            if not available()[name].works:
                raise ValueError(f"sandbox back end {name} does not work here: {available()[name].reason}")
        if not names:
            raise ValueError(remedy())
        self._monty = MontyBackend(processes=self._processes, limits=self.limits) if "monty" in names else None
        self._cpython = next((available()[name].process for name in names if name != "monty"), None)
        self._stack = ExitStack()

    def __enter__(self) -> Sandbox:
        self._threads = self._stack.enter_context(ThreadPoolExecutor(self._processes, "sandbox"))
        if self._monty is not None:
            self._stack.enter_context(self._monty)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def describe(self) -> dict[str, Any]:
        """Back ends in the order they are asked, their versions, and the limits: for a manifest."""
        asked: list[MontyBackend | ProcessBackend] = [back for back in (self._monty, self._cpython) if back is not None]
        return {"backends": [back.description for back in asked], "limits": asdict(self.limits)}

    def judge(self, items: Sequence[Call | Program], *, compare: bool = False) -> list[Judgement]:
        """Judgements in the order of the items.

        `compare`: ask CPython as well about every call that Monty answered; where its answer is another one, or it
        raises, the status is "disagreement". Raise ValueError for a program where no CPython back end works.
        """
        judgements: list[Judgement | None] = [self._too_large(item) for item in items]
        open_ = [i for i, judgement in enumerate(judgements) if judgement is None]
        if self._cpython is None and any(isinstance(items[i], Program) for i in open_):
            raise ValueError(remedy())
        for part in self._threads.map(self._ask_monty, _slices([(i, items[i]) for i in open_])):
            for i, judgement in part:
                judgements[i] = judgement
        if self._cpython is not None:
            self._ask_cpython(items, judgements, open_, compare)
        final = [judgement for judgement in judgements if judgement is not None]
        assert len(final) == len(items)
        return final

    def _too_large(self, item: Call | Program) -> Judgement | None:
        sizes = {"source": size_bytes(item.source)}
        if isinstance(item, Call):
            sizes["answer"] = size_bytes(item.answer)
        for name, size in sizes.items():
            most = self.limits.source_bytes if name == "source" else self.limits.answer_bytes
            if size > most:
                return refused("limit", f"{name} of {size} bytes, at most {most}", backend="none")
        return None

    def _ask_monty(self, part: Sequence[tuple[int, Call | Program]]) -> list[tuple[int, Judgement | None]]:
        """Monty's judgements; None for what is not asked of it."""
        judgements: list[tuple[int, Judgement | None]] = []
        for i, item in part:
            if self._monty is None or isinstance(item, Program):
                judgements.append((i, None))
            elif not may_hide_a_gap(item.source):
                judgements.append((i, self._monty.judge(item)))
            elif self._cpython is None:
                why = "could hide that Monty lacks something, and CPython's sandbox does not work here"
                judgements.append((i, refused("unsupported", why, backend="monty")))
            else:
                judgements.append((i, None))
        return judgements

    def _ask_cpython(
        self, items: Sequence[Call | Program], judgements: list[Judgement | None], open_: Sequence[int], compare: bool
    ) -> None:
        """Fill in what Monty gave no verdict on, and with `compare` check those that it gave."""
        assert self._cpython is not None
        cpython, asked = self._cpython, []
        for i in open_:
            before = judgements[i]
            if before is None or before.status not in ANSWERED or compare:
                asked.append(i)

        def run(batch: list[int]) -> list[Judgement]:
            return cpython.judge([items[i] for i in batch], limits=self.limits)

        batches = list(_batches(items, asked, self._processes))
        for batch, results in zip(batches, self._threads.map(run, batches), strict=True):
            for i, result in zip(batch, results, strict=True):
                judgements[i] = _agreed(judgements[i], result)


def _agreed(monty: Judgement | None, cpython: Judgement) -> Judgement:
    """CPython's judgement; but Monty's answer stands, unless CPython answers otherwise or raises."""
    if monty is None or monty.status not in ANSWERED:
        return cpython
    outcomes = [(judgement.status, judgement.verdict) for judgement in (monty, cpython)]
    if cpython.status not in (*ANSWERED, "error") or outcomes[0] == outcomes[1]:
        return monty
    said = [status if verdict is None else verdict for status, verdict in outcomes]
    return refused("disagreement", f"monty says {said[0]}, {cpython.backend} says {said[1]}", backend=cpython.backend)


def _slices(items: Sequence[tuple[int, Call | Program]]) -> Iterator[Sequence[tuple[int, Call | Program]]]:
    for begin in range(0, len(items), SLICE):
        yield items[begin : begin + SLICE]


def _batches(items: Sequence[Call | Program], asked: Sequence[int], processes: int) -> Iterator[list[int]]:
    """Cut into batches, bounded in items and bytes, and small enough that every process gets some."""
    most = max(1, min(BATCH_ITEMS, -(-len(asked) // processes)))
    batch: list[int] = []
    size = 0
    for i in asked:
        item = items[i]
        bytes_ = size_bytes(item.source) + (size_bytes(item.answer) if isinstance(item, Call) else 0)
        if batch and (len(batch) == most or size + bytes_ > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += bytes_
    if batch:
        yield batch
