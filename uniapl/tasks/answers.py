"""What the suite's lm-eval tasks share: prompts as documents, and answers judged by `uniapl.score.judge`.

A prompt whose answer cannot be judged (a status other than ok) is left out of every accuracy and counted apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset

from uniapl.data import read_prompts
from uniapl.records import Constraint, Prompt
from uniapl.score import judge


def load(*, data_directory: str, split: str, **_: Any) -> dict[str, Dataset]:
    """The prompts of one split of the study's data."""
    prompts = read_prompts(Path(data_directory) / f"{split}.jsonl")
    return {"test": Dataset.from_list([document(prompt) for prompt in prompts])}


def document(prompt: Prompt) -> dict[str, str]:
    """A prompt as lm-eval's document (IFEval's task calls the text `prompt`).

    Constraints are one JSON text, since their parameters have no common schema.
    """
    return {
        "prompt_id": prompt.id,
        "text": prompt.text,
        "prompt": prompt.text,
        "group": prompt.group,
        "constraints": json.dumps([asdict(c) for c in prompt.constraints]),
    }


def constraints_of(document: dict[str, Any]) -> list[Constraint]:
    """The constraints of a document of these tasks."""
    return [Constraint(**c) for c in json.loads(document["constraints"])]


def process_results(document: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Verdicts of one answer: per prompt (None where it was not judged) and per instruction, strict and loose."""
    found = judge(constraints_of(document), results[0])
    return {
        "prompt_strict": found["prompt_strict"],
        "inst_strict": found["strict"],
        "prompt_loose": found["prompt_loose"],
        "inst_loose": found["loose"],
        "not_computed": found["status"],
    }


def mean_of_judged(items: Sequence[bool | None]) -> float:
    """Share of judged prompts that pass; nan where none was judged."""
    judged = [item for item in items if item is not None]
    return sum(judged) / len(judged) if judged else float("nan")


def mean_of_instructions(items: Sequence[Sequence[bool | None]]) -> float:
    """Share of judged instructions that are followed, over all prompts."""
    return mean_of_judged([followed for prompt in items for followed in prompt])


def count_not_computed(items: Sequence[str]) -> int:
    """Prompts whose status is not ok."""
    return sum(status != "ok" for status in items)


METRICS = [
    {"metric": name, "aggregation": aggregation, "higher_is_better": name != "not_computed"}
    for name, aggregation in (
        ("prompt_strict", mean_of_judged), ("inst_strict", mean_of_instructions), ("prompt_loose", mean_of_judged),
        ("inst_loose", mean_of_instructions), ("not_computed", count_not_computed),
    )
]  # fmt: skip
