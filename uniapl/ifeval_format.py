"""Files in IFEval's format, as IFEval (arXiv 2311.07911) and IFBench (arXiv 2507.02833) publish theirs: JSONL.

A prompt file holds `key`, `prompt`, `instruction_id_list` and `kwargs` a line, an answer file `prompt` and `response`.
Parameters of 0 are kept, absent ones dropped, and whole numbers are integers, also where a file writes 5.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniapl.constraints import KINDS
from uniapl.records import Constraint, Prompt, read_jsonl

SHOWN_CHARACTERS = 60  # of a prompt in a message
# Key 2785 asked for "at least one placeholder" (Google's file until 2024-06, still the hub's) while its verifier wants
# three; Google then mended the words. Nothing else differs, so an answer to either text is judged alike.
EDITIONS = (
    "What is inside Shinto shrines? Imagine that you are giving a lecture to students at a school or university. "
    "Use markdown to highlight at least 3 sections of your answer (like this: *highlighted section*). "
    "Your answer must also contain at least {} (an example of a placeholder is [address])."
)
EDITION_WORDS = ("one placeholder", "3 placeholders")


@dataclass(frozen=True)
class AnswerLine:
    """One line of an answer file. `response` is whatever stands there; only text can be judged."""

    number: int
    prompt: str
    response: Any


def other_edition(text: str) -> str | None:
    """The same prompt's text in the other edition of IFEval; None where the editions agree."""
    texts = [EDITIONS.format(words) for words in EDITION_WORDS]
    return texts[1 - texts.index(text)] if text in texts else None


def read_prompt_file(path: Path, *, split: str) -> list[Prompt]:
    """Read prompts from a file; see `parse_prompts`."""
    return parse_prompts(read_jsonl(path), where=str(path), split=split)


def parse_prompts(rows: Iterable[tuple[int, dict[str, Any]]], *, where: str, split: str) -> list[Prompt]:
    """Prompts of numbered rows; ids are `<split>-<key>`, `group` is seen where training shows all of a prompt's kinds.

    Raise ValueError naming `where` and the number for a broken row, and for a key or a text that came before.
    """
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        try:
            prompt = _prompt(row, split)
            for what in (prompt.id, prompt.text):
                if what in seen:
                    raise ValueError(f"{shown_text(what)} came before, in line {seen[what]}")
                seen[what] = number
        except ValueError as error:
            raise ValueError(f"{where}:{number}: {error}; mend or remove this line") from None
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{where} holds no prompts; it should have one JSON object a line, as IFEval's own file")
    return prompts


def _prompt(row: dict[str, Any], split: str) -> Prompt:
    for key, kinds in (("key", (int, str)), ("prompt", (str,)), ("instruction_id_list", (list,)), ("kwargs", (list,))):
        if not isinstance(row.get(key), kinds):
            raise ValueError(
                f"no prompt in IFEval's format: '{key}' is {type_name(row[key]) if key in row else 'missing'}"
            )
    kinds, parameters = row["instruction_id_list"], row["kwargs"]
    if not kinds or len(kinds) != len(parameters):
        raise ValueError(f"{len(kinds)} instructions but {len(parameters)} sets of parameters")
    constraints = []
    for kind, kwargs in zip(kinds, parameters, strict=True):
        if not isinstance(kind, str) or not isinstance(kwargs, dict):
            raise ValueError(f"an instruction is a name and an object of parameters, not {kind!r} and {kwargs!r}")
        given = {name: _whole(value) for name, value in kwargs.items() if value is not None}
        constraints.append(Constraint(kind, given))
    group = "seen" if all(kind in KINDS and KINDS[kind].seen for kind in kinds) else "unseen"
    return Prompt(f"{split}-{row['key']}", split, row["prompt"], tuple(constraints), group=group)


def _whole(value: Any) -> Any:
    """A float without a fraction as an integer: a verifier may index with it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_answer_file(path: Path) -> list[AnswerLine]:
    """Read answers. Raise ValueError naming file and line for what is no answer, and for a prompt that came before."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name a JSONL file with 'prompt' and 'response' a line")
    answers: dict[str, AnswerLine] = {}
    for number, row in read_jsonl(path):
        for key in ("prompt", "response"):
            if key not in row:
                raise ValueError(f"{path}:{number}: '{key}' is missing; every line needs 'prompt' and 'response'")
        text = row["prompt"]
        if not isinstance(text, str):
            raise ValueError(f"{path}:{number}: 'prompt' is {type_name(text)}; it must be the prompt's exact text")
        if text in answers:
            raise ValueError(
                f"{path}:{number}: {shown_text(text)} was answered before, in line {answers[text].number};"
                " keep one answer to each prompt"
            )
        answers[text] = AnswerLine(number, text, row["response"])
    if not answers:
        raise ValueError(f"{path} holds no answers; it should have one JSON object a line: prompt, response")
    return list(answers.values())


def shown_text(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}...")


def type_name(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
