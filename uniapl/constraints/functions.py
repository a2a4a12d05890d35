"""Constraints whose verdict comes from functions that a model wrote (AutoIF): judged in the sandbox, and there alone.

Such a constraint has the kind `autoif:functions`, and its parameter `functions` holds the functions' sources. All of
them have to agree; where they do not, or one gives no verdict, there is none.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

from uniapl.sandbox import Call, Judgement, Sandbox, offered
from uniapl.sandbox.probe import remedy

KIND = "autoif:functions"
MOST_FUNCTIONS = 16  # of a constraint
LONGEST_SOURCE = 8000  # characters


def check_parameters(kwargs: dict[str, Any]) -> None:
    """Raise ValueError where these are no parameters of the kind, or no sandbox works here."""
    functions = kwargs.get("functions")
    if set(kwargs) != {"functions"} or not isinstance(functions, list) or not 0 < len(functions) <= MOST_FUNCTIONS:
        raise ValueError(f"{KIND} has one parameter, functions: 1 to {MOST_FUNCTIONS} sources")
    if not all(isinstance(source, str) and len(source) <= LONGEST_SOURCE for source in functions):
        raise ValueError(f"{KIND}: a function is a text of at most {LONGEST_SOURCE} characters")
    require_sandbox()


@cache
def require_sandbox() -> None:
    """Raise ValueError with the remedy where no sandbox works on this machine."""
    if not offered():
        raise ValueError(remedy())


@cache
def _sandbox() -> Sandbox:
    """This process's sandbox, until it ends. Ranks of a node share its cores, and each has its own."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) // ranks
    sandbox = Sandbox(processes=max(1, min(cores, int(os.environ.get("OMP_NUM_THREADS") or cores))))
    sandbox.__enter__()
    atexit.register(sandbox.__exit__, None, None, None)
    return sandbox


def describe() -> dict[str, Any]:
    """What judges here, for a manifest."""
    return _sandbox().describe()


def judge_calls(calls: Sequence[tuple[str, str]]) -> list[Judgement]:
    """Judgements of (function's source, answer) pairs, in their order."""
    return _sandbox().judge([Call(source, answer) for source, answer in calls]) if calls else []


def agreed(judgements: Sequence[Judgement]) -> bool | str:
    """The verdict of a constraint's functions on one answer; or why there is none."""
    for judgement in judgements:
        if judgement.verdict is None:
            return f"{KIND}: {judgement.status}: {judgement.reason}"
    if len({judgement.verdict for judgement in judgements}) != 1:
        return f"{KIND}: its functions disagree"
    return bool(judgements[0].verdict)
