"""AutoIF's prompts: `python -m uniapl.autoif DIR --access JSON`, with the study's teacher, or out of items made before.

Answers that the teacher gave are kept beside DIR, so a pipeline that was stopped asks only for what is missing. Code
that the teacher wrote runs in the sandbox; where none works, that is said before anything is asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniapl.answer_cache import Answer
from uniapl.autoif import PROMPTS
from uniapl.autoif.pipeline import Asks, Pipeline
from uniapl.autoif.published import prompts_of, read_items
from uniapl.config import TEACHERS, AutoIFSpec
from uniapl.constraints import functions
from uniapl.endpoint import Endpoint, chat_request
from uniapl.entry import run_stage
from uniapl.layers import CONFIG
from uniapl.provenance import file_sha256, write_manifest
from uniapl.records import Prompt, write_jsonl
from uniapl.teachers.reach import reached
from uniapl.teachers.rejection import without_thinking


def main(directory: Path, config: dict[str, Any], *, access: dict[str, Any] | None = None) -> None:
    """Make the prompts and write the directory. Raise ValueError where no sandbox works, or nothing is left."""
    started = time.monotonic()
    functions.require_sandbox()
    spec = AutoIFSpec.model_validate(config["autoif"])
    counts: list[dict[str, Any]] = []
    if spec.items is not None:
        items = read_items(CONFIG.parent / spec.items)
        prompts = prompts_of(items, functions.judge_calls, spec, counts)
        facts = {"items": str(spec.items), "items_sha256": file_sha256(CONFIG.parent / spec.items)}
    else:
        prompts, facts = _asked(directory, config, spec, access, counts)
    steps = ", ".join(f"{one['step']} {one['after']} of {one['before']}" for one in counts)
    if not prompts:
        raise ValueError(f"AutoIF kept no prompt ({steps}); change data.autoif; what the teacher answered is kept")
    write_jsonl(directory / PROMPTS, prompts)
    outputs = {
        "num_prompts": len(prompts),
        "steps": counts,
        "sha256": file_sha256(directory / PROMPTS),
        "sandbox": functions.describe(),
    } | facts
    write_manifest(directory, config=config, outputs=outputs, seconds=time.monotonic() - started)
    print(f"autoif: {len(prompts)} prompts", flush=True)


def _asked(
    directory: Path, config: dict[str, Any], spec: AutoIFSpec, access: dict[str, Any] | None,
    counts: list[dict[str, Any]],
) -> tuple[list[Prompt], dict[str, Any]]:  # fmt: skip
    """The whole pipeline, and what was asked of the teacher."""
    told = config["teacher"] | ({"access": access} if access else {})
    teacher = TEACHERS[told["kind"]].model_validate(told)
    with reached(teacher, directory=directory) as (endpoint, model):
        asks = _asks(endpoint, model, teacher, spec.max_reply_tokens)
        prompts = Pipeline(spec, asks, functions.judge_calls, counts).make()
        return prompts, {"teacher": endpoint.report()}


def _asks(endpoint: Endpoint, model: str, teacher: Any, max_tokens: int) -> Asks:
    """The endpoint as the pipeline asks it; answers come without their thinking."""

    def asks(todo: Sequence[tuple[str, int]]) -> list[Answer]:
        bodies = [
            chat_request(
                text, model=model, max_tokens=max_tokens, temperature=teacher.temperature, top_p=teacher.top_p,
                extra_body=teacher.extra_body, seed=seed,
            )
            for text, seed in todo
        ]  # fmt: skip
        return [replace(answer, text=without_thinking(answer.text)) for answer in endpoint.ask(bodies)]

    return asks


if __name__ == "__main__":
    run_stage(main, "Make AutoIF's prompts.", parsed={"access": json.loads})
