"""Sides that take turns: each is a process of its own, told to do one step and idle while the others do theirs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from bench.peers import serve
from bench.work import Work
from uniapl.launch import ALLOCATOR, visible_gpus

END_SECONDS = 30  # that a side has for ending by itself
Steps = dict[str, dict[str, Any]]  # by side: `steps`, a dict each, and `error` where it does not run


class Side:
    """One side's process."""

    def __init__(self, name: str, work: Work) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(name, work, theirs), daemon=True)
        with as_launched(name.startswith("ours")):
            self._process.start()
        theirs.close()

    def step(self, **changes: Any) -> dict[str, Any]:
        """What one step took, seconds by part; `error` where it did not run."""
        with suppress(OSError):  # it failed before it was asked, and what it said of that is still to be read
            self._connection.send(changes)
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            return {"error": "its process ended"}

    def close(self) -> None:
        """Let it end; it is killed where it does not."""
        self._connection.close()
        self._process.join(timeout=END_SECONDS)
        self._process.kill()


@contextmanager
def as_launched(ours: bool) -> Iterator[None]:
    """Processes of this suite's sides start with the allocator's settings that `uniapl.launch` gives a stage on CPU."""
    before = dict(os.environ)
    if ours and not visible_gpus():
        os.environ.update(ALLOCATOR | before)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def open_sides(names: Sequence[str], work: Work) -> Iterator[dict[str, Side]]:
    """Processes of these sides, which end with the block."""
    sides = {name: Side(name, work) for name in names}
    try:
        yield sides
    finally:
        for side in sides.values():
            side.close()


def take_turns(names: Sequence[str], work: Work, *, repetitions: int, warmups: int = 1) -> Steps:
    """Steps of all sides, one side after the other in each turn; the first `warmups` turns are not kept."""
    found: Steps = {name: {"steps": []} for name in names}
    with open_sides(names, work) as sides:
        for turn in range(-warmups, repetitions):
            for name, side in list(sides.items()):
                began = time.perf_counter()
                took = side.step()
                if "error" in took:
                    found[name]["error"] = took["error"]
                    sides.pop(name).close()
                    print(f"  {name} does not run here: {took['error']}", flush=True)
                    continue
                label = f"turn {turn + 1}" if turn >= 0 else "warm-up"
                waited = time.perf_counter() - began
                parts = "".join(f", {part} {took[part]:.2f}" for part in ("sample", "update") if took.get(part))
                print(f"  {name}, {label}: {took['step']:.2f} s{parts}, {waited:.1f} s in all", flush=True)
                if turn >= 0:
                    found[name]["steps"].append(took)
    return found
