"""How a teacher's replies are read. What does not have the form that was asked for is None, never guessed."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from uniapl.constraints.functions import LONGEST_SOURCE

FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(.+?)\s*$")
SCORE = re.compile(r"score:\s*(\d{1,2})\b", re.IGNORECASE)
RELATIONS = ("entailment", "neutral", "contradiction")
LONGEST_INSTRUCTION = 300  # characters
LONGEST_CASE = 4000


@dataclass(frozen=True)
class Written:
    """One reply to `requests.function`: a function's source and its test cases (text, expected verdict)."""

    source: str
    cases: tuple[tuple[str, bool], ...]


def listed(text: str, *, longest: int = LONGEST_INSTRUCTION) -> list[str]:
    """The items of a list with one item a line; those that are longer are left out."""
    matches = (LISTED.match(line) for line in text.splitlines())
    items = (match.group(1).strip().strip('"').strip() for match in matches if match)
    return [item for item in items if 0 < len(item) <= longest]


def written(text: str) -> Written | None:
    """A function that defines `evaluate` with one argument and parses, and those of its cases that are cases."""
    found = FENCED.search(text)
    try:
        reply = json.loads(found.group(1) if found else text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(reply, dict) or not isinstance(reply.get("func"), str):
        return None
    source = reply["func"].strip()
    if "\n" not in source:
        source = source.replace("\\n", "\n")
    if not usable(source):
        return None
    cases = reply.get("cases")
    return Written(source, tuple(case for one in cases if (case := _case(one))) if isinstance(cases, list) else ())


def usable(source: object) -> bool:
    """True for a text of bounded length that parses and defines `evaluate`."""
    if not isinstance(source, str) or len(source) > LONGEST_SOURCE:
        return False
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == "evaluate" for node in body)


def _case(one: Any) -> tuple[str, bool] | None:
    if not isinstance(one, dict) or not isinstance(one.get("input"), str) or len(one["input"]) > LONGEST_CASE:
        return None
    output = one.get("output")
    if isinstance(output, str):
        output = {"true": True, "false": False}.get(output.strip().lower())
    return (one["input"], output) if isinstance(output, bool) else None


def sentence(text: str) -> str | None:
    """A reply of one sentence."""
    line = " ".join(text.split()).strip('"')
    return line if 0 < len(line) <= 2 * LONGEST_INSTRUCTION else None


def relation(text: str) -> str | None:
    """The last of the three words in a reply."""
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word in RELATIONS]
    return words[-1] if words else None


def scored(text: str) -> int | None:
    """The score in a reply's last line, 0 to 10."""
    found = SCORE.findall(text.strip().rpartition("\n")[2])
    return int(found[-1]) if found and int(found[-1]) <= 10 else None


def normalized(text: str) -> str:
    """An instruction or query as duplicates are recognised: letters and digits, lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))
