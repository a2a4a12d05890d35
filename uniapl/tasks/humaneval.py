"""HumanEval's programs: put together from a model's answer, and run in the sandbox, the only place where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uniapl.sandbox.pool import Sandbox
from uniapl.sandbox.records import Program
from uniapl.tasks.programs import whole_program


def run_programs(programs: Sequence[str]) -> list[tuple[str, bool | None]]:
    """Status of each program, and whether it ran to its end; None where the sandbox itself could not run it.

    A program that raises, takes too long, or takes too much memory has failed: those are answers of the model.
    Raise ValueError with the remedy where no sandbox works here.
    """
    with Sandbox() as sandbox:
        judgements = sandbox.judge([Program(program) for program in programs])
    return [(one.status, passed(one.status, one.verdict)) for one in judgements]


def passed(status: str, verdict: bool | None) -> bool | None:
    """What a judgement says of the program."""
    return None if status == "unavailable" else bool(verdict)


def process_results(document: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Whether the program passes its tests; left out of the accuracy, and counted, where it could not be run."""
    ((status, verdict),) = run_programs([whole_program(document, results[0])])
    if verdict is None:
        return {"not_computed": status}
    return {"pass@1": float(verdict), "not_computed": "ok"}
