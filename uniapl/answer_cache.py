"""Answers that were paid for: one append-only file, one JSON object a line, by the hash of what was asked.

A line is on the disk before its answer is used, so a kill loses at most what was in flight. A last line that a kill
tore is cut off when the file is opened. One process at a time has a file; the next one waits and finds its answers.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from uniapl import leases
from uniapl.provenance import canonical_json

LINE_BYTES = 32 * 2**20  # far above what `endpoint` accepts as an answer; a longer line was not written here


@dataclass(frozen=True)
class Answer:
    """One answer of a chat model. Token counts are the endpoint's; None where it gives none."""

    key: str
    text: str
    finish_reason: str  # "stop": it ended by itself; "length": cut at max_tokens; others are the endpoint's own
    prompt_tokens: int | None
    completion_tokens: int | None


def request_key(body: dict[str, Any]) -> str:
    """SHA-256 of a request's body: model, messages, sampling parameters and seed."""
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


class AnswerCache:
    """The answers of one file; `add` appends to it."""

    def __init__(self, path: Path) -> None:
        """Wait for the file's lease and read it. Raise ValueError naming file and line where a line is broken."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lease = leases.wait(path.with_name(f"{path.name}.lock"), what=str(path))
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (open for the cache's life)
        try:
            self._answers = self._read()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer to a request, if there is one."""
        return self._answers.get(key)

    def add(self, answer: Answer) -> None:
        """Bring one answer to the disk. Raise OSError where it cannot be written; the file is then as before."""
        line = json.dumps(asdict(answer), sort_keys=True).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):  # as a full disk does it
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise
        self._answers[answer.key] = answer

    def close(self) -> None:
        """Let the next process have the file."""
        self._file.close()
        self._lease.close()

    def _read(self) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        end = 0  # of the last whole line
        with open(self.path, "rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES):
                number += 1
                answer = _parse(line)
                if answer is None and file.read(1):
                    raise ValueError(f"{self.path}:{number}: not an answer's record; mend or remove this line")
                if answer is not None:
                    answers[answer.key] = answer
                    end += len(line)
                    if not line.endswith(b"\n"):
                        os.ftruncate(self._file.fileno(), end)
                        self._file.write(b"\n")
                        return answers
        os.ftruncate(self._file.fileno(), end)
        return answers


def _parse(line: bytes) -> Answer | None:
    """The record of one line; None where it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    names = {field.name for field in fields(Answer)}
    if not isinstance(row, dict) or set(row) != names:
        return None
    return Answer(**row) if all(isinstance(row[name], str) for name in ("key", "text", "finish_reason")) else None
