"""Per constraint kind: what base model and expert follow of it."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from uniapl.records import Demonstration, Prompt
from uniapl.teachers.drafts import Draft


def kinds_table(
    drafts: Sequence[Draft], demonstrations: Sequence[Demonstration], prompts: dict[str, Prompt], dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Per constraint kind: how often drafts and kept demonstrations follow it, and how many were dropped with it."""
    base: dict[str, list[bool]] = defaultdict(list)
    teacher: dict[str, list[bool]] = defaultdict(list)
    groups: dict[str, str] = {}
    for verdicts, records in ((base, drafts), (teacher, demonstrations)):
        for record in records:
            prompt = prompts[record.prompt_id]
            for constraint, one in zip(prompt.constraints, record.followed, strict=True):
                verdicts[constraint.kind].append(one is True)
                groups[constraint.kind] = prompt.group
    for prompt in prompts.values():  # a kind may have lost all that were ordered with it
        groups |= {one.kind: prompt.group for one in prompt.constraints if dropped[one.kind]}
    return [
        {
            "kind": kind,
            "group": groups[kind],
            "num_drafts": len(base[kind]),
            "base_accuracy": round(statistics.mean(base[kind]), 4) if base[kind] else None,
            "num_demonstrations": len(teacher[kind]),
            "teacher_accuracy": round(statistics.mean(teacher[kind]), 4) if teacher[kind] else None,
            "num_dropped": dropped[kind],
        }
        for kind in sorted(groups, key=lambda kind: (groups[kind], kind))
    ]


def print_kinds(rows: Sequence[dict[str, Any]]) -> None:
    """The table for people."""
    table = Table("kind", "group", "drafts", "base", "demonstrations", "teacher", "dropped", title="Constraint kinds")
    for row in rows:
        shares = [f"{row[key]:.0%}" if row[key] is not None else "-" for key in ("base_accuracy", "teacher_accuracy")]
        counts = [str(row[key]) for key in ("num_drafts", "num_demonstrations", "num_dropped")]
        table.add_row(row["kind"], row["group"], counts[0], shares[0], counts[1], shares[1], counts[2])
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def kinds_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The table as a file's text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
