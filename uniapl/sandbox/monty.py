"""The back end that is asked first: Monty, a Python interpreter without files, network, processes or C extensions.

It knows a part of Python only. Where it gives a verdict, CPython would give the same; whatever it raises may be its own
gap, so it is no verdict. Code that could hide such a gap from us is not given to it (`may_hide_a_gap`).
"""

from __future__ import annotations

import re
from importlib import metadata
from types import TracebackType

import pydantic_monty as monty

from uniapl.sandbox.records import Call, Judgement, Limits, judged, refused

NAME = "monty"
MAX_CHECKOUTS = 2000  # of a worker process, before a new one takes its place: bounds what it may leak
# Identity cannot be redefined by the code that is judged, so only these three numbers ever come back.
ASK = "__verdict = {entry}(__answer)\n1 if __verdict is True else 0 if __verdict is False else 2\n"
# Handlers that catch what Monty raises for the parts of Python it lacks would turn a gap into a verdict; these do not.
CAUGHT = r"(?:ValueError|IndexError|KeyError|LookupError|ZeroDivisionError|OverflowError|StopIteration|AssertionError)"
HARMLESS = re.compile(
    rf"except\s+(?:{CAUGHT}|\(\s*{CAUGHT}(?:\s*,\s*{CAUGHT})*\s*,?\s*\))(?:\s+as\s+\w+)?\s*:",
)
HIDING = re.compile(r"\b(?:finally|suppress|hasattr|getattr|dir|vars|globals|locals|__\w+__)\b")
GAPS = ("ModuleNotFoundError", "ImportError", "AttributeError", "NameError", "SyntaxError", "NotImplementedError",
        "TypeError", "RuntimeError", "PermissionError")  # fmt: skip


def may_hide_a_gap(source: str) -> bool:
    """True where the code could catch, or look for, something that Monty lacks. Judged by words: too often is safe."""
    if HIDING.search(source):
        return True
    return any(not HARMLESS.match(source, found.start()) for found in re.finditer(r"\bexcept\b", source))


class MontyBackend:
    """A pool of Monty's worker processes. `judge` may be called from several threads."""

    name = NAME

    def __init__(self, *, processes: int, limits: Limits) -> None:
        self.description = {"name": NAME, "version": metadata.version("pydantic-monty")}
        self._limits = limits
        self._pool = monty.Monty(
            min_processes=1, max_processes=processes, max_checkouts_per_worker=MAX_CHECKOUTS,
            request_timeout=2 * limits.monty_seconds + 1.0, feed_duration_limit_grace=0.5,
        )  # fmt: skip

    def __enter__(self) -> MontyBackend:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def judge(self, call: Call) -> Judgement:
        """Judge one call in a session of its own. Whatever is raised is a status."""
        limits: monty.ResourceLimits = {
            "max_feed_duration_secs": self._limits.monty_seconds,
            "max_memory": self._limits.monty_memory_bytes,
            "max_suspensions": 1000,
            "max_total_sleep_secs": 0.0,
        }
        policy: monty.OSPolicy = {"sleep": "zero", "random_start": {"seed": 0}}
        try:
            with self._pool.checkout(limits=limits, os_policy=policy) as session:
                session.feed_run(call.source, print_callback=_drop)
                value = session.feed_run(
                    ASK.format(entry=call.entry), inputs={"__answer": call.answer}, print_callback=_drop
                )
        except monty.MontyCrashedError as error:
            return refused("timeout" if error.timed_out else "crashed", "Monty's worker ended", backend=NAME)
        except monty.MontyError as error:
            return _refusal(error)
        except UnicodeError:
            return refused("unsupported", "Monty takes no lone surrogates", backend=NAME)
        if type(value) is not int or value not in (0, 1, 2):
            return refused("crashed", "Monty gave no result", backend=NAME)
        if value == 2:
            return refused("not_bool", "returned neither True nor False", backend=NAME)
        return judged(value == 1, backend=NAME)


def _refusal(error: monty.MontyError) -> Judgement:
    kind = type(error.exception()).__name__
    text = f"{kind}: {error}" if not str(error).startswith(kind) else str(error)
    if kind == "TimeoutError":
        return refused("timeout", text, backend=NAME)
    if kind == "MemoryError":
        return refused("limit", text, backend=NAME)
    return refused("unsupported" if kind in GAPS else "error", text, backend=NAME)


def _drop(_stream: str, _text: str) -> None:
    """What verifier code prints goes nowhere."""
