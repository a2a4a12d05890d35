"""Scores of answers that lie in a file: `uniapl score --task ifeval --responses FILE --output FILE`.

The verdicts are `uniapl.constraints.verify`'s, those of training and of every evaluation. They equal lm-eval's (task
ifeval) but for the two prompts whose letter is a symbol, which lm-eval replaces by a random letter; docs/evaluation.md.
A verdict that cannot be computed is a status and left out of the accuracies; an answer that is missing is counted.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniapl.benchmarks import known_source, prompt_file
from uniapl.constraints import verify
from uniapl.ifeval_format import AnswerLine, other_edition, read_answer_file, read_prompt_file, shown_text, type_name
from uniapl.records import Constraint, Prompt, write_jsonl

ACCURACIES = ("prompt_strict", "inst_strict", "prompt_loose", "inst_loose")
SECONDS_PER_VERDICT = 30.0  # a hostile answer makes some verifiers' regular expressions take hours


@dataclass(frozen=True)
class Scored:
    """Rows in the answer file's order, and the prompts that it does not answer."""

    rows: list[dict[str, Any]]
    missing: list[Prompt]


def counted_symbols(constraints: Sequence[Constraint]) -> str | None:
    """The symbol whose frequency is judged; None for letters. lm-eval draws a random letter in its place."""
    for constraint in constraints:
        letter = constraint.kwargs.get("letter")
        if constraint.kind == "keywords:letter_frequency" and is_symbol(letter):
            return letter
    return None


def is_symbol(letter: Any) -> bool:
    """One character that is none of a to z."""
    return isinstance(letter, str) and len(letter) == 1 and not "a" <= letter.lower() <= "z"


def judge(constraints: Sequence[Constraint], response: str) -> dict[str, Any]:
    """Strict and loose verdicts of one answer, per instruction and per prompt; None where one was not computed."""
    strict, loose = (verify(constraints, response, strict=way) for way in (True, False))
    return {
        "strict": list(strict.followed),
        "loose": list(loose.followed),
        "prompt_strict": strict.passed,
        "prompt_loose": loose.passed,
        "status": strict.status if strict.status != "ok" else loose.status,
    }


def accuracies(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The four accuracies over what could be judged; None where nothing could."""
    return {name: hits / judged if judged else None for name, (hits, judged) in counts(rows).items()}


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Behind each accuracy: how many verdicts are positive, and how many there are."""
    found = {}
    for name in ACCURACIES:
        level, way = name.split("_")
        verdicts = [row[name] for row in rows] if level == "prompt" else [one for row in rows for one in row[way]]
        judged = [one for one in verdicts if one is not None]
        found[name] = (sum(judged), len(judged))
    return found


def score_answers(answers: Sequence[AnswerLine], prompts: Sequence[Prompt], *, where: str) -> Scored:
    """Judge every answer. Raise ValueError, beginning with `where`, for an answer to a prompt that is none of these."""
    by_text = {prompt.text: prompt for prompt in prompts}
    pairs = []
    for answer in answers:
        prompt = by_text.get(answer.prompt) or by_text.get(other_edition(answer.prompt) or "")
        if prompt is None:
            raise ValueError(f"{where}:{answer.number}: {_unknown(answer.prompt, by_text)}")
        pairs.append((answer, prompt))
    repeated = [key for key, times in Counter(prompt.id for _, prompt in pairs).items() if times > 1]
    if repeated:
        raise ValueError(f"{where}: {repeated[0]} is answered twice, in both of its editions; keep one answer to it")
    rows = []
    for answer, prompt in pairs:
        with _limited():
            rows.append(_row(answer, prompt))
    answered = {prompt.id for _, prompt in pairs}
    return Scored(rows, [prompt for prompt in prompts if prompt.id not in answered])


def _unknown(text: str, by_text: dict[str, Prompt]) -> str:
    """Why a prompt is none of the task's, with the remedy."""
    words = text.split()
    for known, prompt in by_text.items():
        if known.split() == words:
            return f"the prompt differs from {prompt.id} in white space alone; give the exact text of the prompt file"
    return f"{shown_text(text)} is no prompt of this task; check --task and --data"


def _row(answer: AnswerLine, prompt: Prompt) -> dict[str, Any]:
    """One line of the output."""
    kinds = [constraint.kind for constraint in prompt.constraints]
    row: dict[str, Any] = {"prompt_id": prompt.id, "prompt": answer.prompt, "kinds": kinds}
    if isinstance(answer.response, str):
        row |= judge(prompt.constraints, answer.response)
    else:
        none: list[None] = [None] * len(kinds)
        status = f"unavailable: the response is {type_name(answer.response)}, not text"
        row |= {"strict": none, "loose": none, "prompt_strict": None, "prompt_loose": None, "status": status}
    symbol = counted_symbols(prompt.constraints)
    notes = [f"counts the symbol '{symbol}', for which lm-eval draws a random letter"] if symbol else []
    if answer.prompt != prompt.text:
        notes.append("the prompt's words are those of another edition of IFEval; the constraints are the same")
    return row | ({"note": "; ".join(notes)} if notes else {})


@contextmanager
def _limited() -> Iterator[None]:
    """Interrupt a verifier that takes too long on an answer, and the next one; an interrupted verdict is a status."""

    def interrupt(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no verdict after {SECONDS_PER_VERDICT:.0f} seconds")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_VERDICT, SECONDS_PER_VERDICT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def score_file(task: str, responses: Path, output: Path, *, data: Path | None) -> None:
    """Judge an answer file, write one line a prompt, and print the four accuracies.

    Raise ValueError in one line for a file that is missing, broken or does not belong to the task.
    """
    if output.is_dir():
        raise ValueError(f"{output} is a folder; --output names the file to write")
    if output.exists() and responses.exists() and output.samefile(responses):
        raise ValueError(f"--output {output} would overwrite the answers; name another file")
    answers = read_answer_file(responses)
    path = prompt_file(task, data)
    if output.exists() and output.samefile(path):
        raise ValueError(f"--output {output} would overwrite the prompts; name another file")
    source, known = known_source(task, path)
    if not known:
        print(f"warning: {path} is no known edition of {task} ({source}); its own prompts are used", file=sys.stderr)
    scored = score_answers(answers, read_prompt_file(path, split=task), where=str(responses))
    try:
        write_jsonl(output, scored.rows)
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
        raise ValueError(f"{output} cannot be written: {error.strerror}; name a file in a folder of yours") from None
    for line in summary_lines(scored, source=source):
        print(line)


def summary_lines(scored: Scored, *, source: str) -> list[str]:
    """What is printed: accuracies, what was missing, what was not computed, and where lm-eval differs."""
    rows, missing = scored.rows, scored.missing
    lines = [f"{len(rows)} of {len(rows) + len(missing)} prompts answered; prompts: {source}"]
    failed = [{"strict": no, "loose": no} for no in ([False] * len(prompt.constraints) for prompt in missing)]
    everything = [*rows, *(row | {"prompt_strict": False, "prompt_loose": False} for row in failed)]
    as_failed = counts(everything)
    for name, (hits, judged) in counts(rows).items():
        line = f"  {name:<14} {_percent(hits, judged)}  {hits}/{judged}"
        if missing:
            line += f"   with the missing ones counted as failed: {_percent(hits, as_failed[name][1])}"
        lines.append(line)
    if missing:
        names = ", ".join(prompt.id for prompt in missing[:5]) + (", ..." if len(missing) > 5 else "")
        lines.append(f"{len(missing)} prompts have no answer: {names}")
    for status, times in Counter(row["status"] for row in rows if row["status"] != "ok").items():
        lines.append(f"{times} prompts not computed, in no accuracy: {status}")
    symbols = [row["prompt_id"] for row in rows if "random letter" in row.get("note", "")]
    if symbols:
        lines.append(
            f"{', '.join(symbols)}: a symbol is counted; lm-eval draws a random letter, its verdict may differ"
        )
    return lines


def _percent(hits: int, judged: int) -> str:
    return f"{hits / judged:7.2%}" if judged else "      —"
