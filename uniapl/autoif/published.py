"""AutoIF items that somebody made before, in the form of the authors' `query_rft.jsonl`: nothing is asked of a teacher.

A row holds `instruction`, `prompt` (with the query behind `[Query]`), `eval_func` ([source, accuracy] pairs), `cases`
([text, verdict] pairs) and `gpt-answer` (answers). Functions and cases are checked against each other anew, and a
prompt is kept where one of its answers passes, as in the pipeline; the scores of answers lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniapl.autoif import replies
from uniapl.autoif.cross_check import Checked, Thresholds, cross_check
from uniapl.autoif.pipeline import Judges, training_prompt
from uniapl.config import AutoIFSpec
from uniapl.constraints.functions import agreed
from uniapl.records import Prompt, read_jsonl

QUERY = "[Query]"
MOST_ITEMS = 64  # functions, cases or answers of one row


@dataclass(frozen=True)
class Item:
    """One row: a query with an instruction, and what was written for both."""

    query: str
    instruction: str
    functions: tuple[str, ...]
    cases: tuple[tuple[str, bool], ...]
    answers: tuple[str, ...]


def read_items(path: Path) -> list[Item]:
    """The rows of a file. Raise ValueError naming file and line where one is not of this form."""
    items = []
    for number, row in read_jsonl(path):
        try:
            items.append(_item(row))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}:{number}: no AutoIF item ({reason}); mend or remove this line") from None
    if not items:
        raise ValueError(f"{path}: no AutoIF item; data.autoif.items names a file like the authors' query_rft.jsonl")
    return items


def _item(row: dict[str, Any]) -> Item:
    _, found, query = row["prompt"].partition(QUERY)
    if not found or not query.strip():
        raise ValueError(f"its prompt has no {QUERY}")
    functions = dict.fromkeys(source for source, _ in row["eval_func"] if replies.usable(source))
    cases = [(text, verdict) for text, verdict in row["cases"] if isinstance(text, str) and isinstance(verdict, bool)]
    answers = [answer for answer in row["gpt-answer"] if isinstance(answer, str)]
    if max(len(functions), len(cases), len(answers)) > MOST_ITEMS:
        raise ValueError(f"more than {MOST_ITEMS} functions, cases or answers")
    return Item(query.strip(), str(row["instruction"]).strip(), tuple(functions), tuple(cases), tuple(answers))


def prompts_of(items: Sequence[Item], judges: Judges, spec: AutoIFSpec, counts: list[dict[str, Any]]) -> list[Prompt]:
    """The prompts of items whose functions and cases agree and of whose answers one passes; `counts` gets the steps."""
    limits = Thresholds(min_functions=1, min_cases=1, agreement=spec.agreement)
    calls = [(source, text) for item in items for source in item.functions for text, _ in item.cases]
    verdicts = iter([judgement.verdict for judgement in judges(calls)])
    checked: list[tuple[Item, Checked]] = []
    for item in items:
        table = [[next(verdicts) for _ in item.cases] for _ in item.functions]
        if one := cross_check(item.instruction, item.functions, item.cases, table, limits):
            checked.append((item, one))
    counts.append({"step": "items whose functions and cases agree", "before": len(items), "after": len(checked)})
    if spec.answers_per_prompt == 0:
        kept = checked
    else:
        calls = [(source, answer) for item, one in checked for answer in item.answers for source in one.functions]
        judgements = iter(judges(calls))
        able = [
            [agreed([next(judgements) for _ in one.functions]) is True for _ in item.answers] for item, one in checked
        ]
        kept = [pair for pair, passed in zip(checked, able, strict=True) if any(passed)]
        counts.append({"step": "prompts with an answer that passes", "before": len(checked), "after": len(kept)})
    prompts = {prompt.id: prompt for item, one in kept for prompt in [training_prompt(item.query, one)]}
    taken = list(prompts.values())[: spec.max_prompts]
    counts.append({"step": "different ones, at most max_prompts", "before": len(kept), "after": len(taken)})
    return taken
