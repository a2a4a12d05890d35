"""The expert's demonstrations: `python -m uniapl.teachers DIR --model MODELDIR --data DATADIR [--access JSON]`.

Paper: answers of Qwen3-235B-A22B-Instruct-2507, here behind an endpoint or in a local vLLM (`rejection`). At laptop
scale an editor stands in: n samples of the base model, the best one edited until the verifiers pass (`editor`). Each
kept demonstration is verified, but for the other experts of an ablation (`teacher.answers`); an order that none can be
made for is dropped with its reason and counted. Held-out prompts get demonstrations for comparing distributions only;
nothing is ever trained on them. Answers that a teacher was asked for are kept beside the directories of all students,
which share them.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uniapl import chat, models
from uniapl.config import TEACHERS, DataSpec, EditorSpec, MachineSpec, SamplerSpec
from uniapl.data import discriminator_prompts, discriminator_test_prompts, read_prompts
from uniapl.entry import run_stage
from uniapl.provenance import write_manifest, write_whole
from uniapl.records import Demonstration, write_jsonl
from uniapl.teachers.drafts import Draft, Drafting, Order, canned_drafts, judged, orders, sampled_drafts
from uniapl.teachers.editor import demonstrate, exchanged
from uniapl.teachers.kinds import kinds_csv, kinds_table, print_kinds
from uniapl.teachers.reach import reached
from uniapl.teachers.rejection import sample_until_passed

LEAST_KEPT_SHARE = 0.9  # below it the stage warns: prompts and teacher do not fit each other


def _share(records: Sequence[Any], holds: Callable[[Any], bool]) -> float:
    return round(sum(map(holds, records)) / len(records), 4) if records else 0.0


def main(
    directory: Path, config: dict[str, Any], *, model: Path, data: Path, machine: MachineSpec | None = None,
    access: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make demonstrations, draw drafts and write the directory. `access` says how a chat teacher is reached."""
    started = time.monotonic()
    teacher = config["teacher"] | ({"access": access} if access else {})
    spec, data_spec = TEACHERS[teacher["kind"]].model_validate(teacher), DataSpec(**config["data"])
    train = read_prompts(data / "train.jsonl")
    todo = orders(train, read_prompts(data / "heldout.jsonl"), data_spec)
    prompts = {order.prompt.id: order.prompt for order in todo}
    weights, max_tokens = models.weights_directory(model), data_spec.max_new_tokens
    tokenizer = models.load_tokenizer(weights)
    drafting_seconds = 0.0

    def encode(text: str) -> list[int]:
        return chat.completion_ids(tokenizer, text)

    def count_tokens(text: str) -> int:
        return len(encode(text))

    def draft(some: Sequence[Order]) -> list[Draft]:
        nonlocal drafting_seconds
        began, drafting = time.monotonic(), Drafting.of(spec)
        if drafting.source == "canned":
            raw = canned_drafts(
                some, drafting, max_tokens=max_tokens, encode=encode,
                decode=lambda ids: chat.completion_text(tokenizer, ids),
            )  # fmt: skip
        else:
            raw = sampled_drafts(
                some, drafting, sampler_spec=SamplerSpec(**config["sampler"]),
                machine=machine or MachineSpec.model_validate({}), compute=config["compute"], weights=weights,
                max_tokens=max_tokens,
            )  # fmt: skip
        drafting_seconds = time.monotonic() - began
        return judged(raw, prompts)

    facts: dict[str, Any] = {}
    if isinstance(spec, EditorSpec):
        drafts = draft(todo)
        drafts_of: dict[tuple[str, int], list[Draft]] = defaultdict(list)
        for one in drafts:
            drafts_of[one.prompt_id, one.take].append(one)
        made = [
            demonstrate(
                order, drafts_of[order.prompt.id, order.take], spec=spec, max_tokens=max_tokens,
                count_tokens=count_tokens,
            )
            for order in todo
        ]  # fmt: skip
    else:  # the teacher first: a local one needs the whole of the memory
        with reached(spec, directory=directory) as (endpoint, name):
            made, answers = sample_until_passed(
                todo, spec, endpoint=endpoint, model=name, max_tokens=max_tokens, count_tokens=count_tokens
            )
            asked = endpoint.report()
        first = [answer for answer in answers if answer.index == 0]
        facts["teacher"] = asked | {
            "first_answer_strict": _share(first, lambda a: a.num_followed == len(a.followed)),
            "truncated_share": _share(answers, lambda a: a.truncated),
            "asking_seconds": round(time.monotonic() - started, 3),
        }
        write_jsonl(directory / "teacher_answers.jsonl", answers)
        compared = [*discriminator_prompts(train, data_spec), *discriminator_test_prompts(train, data_spec)]
        drafts = draft([Order(prompt, 0) for prompt in compared])

    kept: list[Demonstration] = []
    dropped: list[dict[str, Any]] = []
    dropped_kinds: Counter[str] = Counter()
    for order, one in zip(todo, made, strict=True):
        if isinstance(one, Demonstration):
            kept.append(one)
        else:
            kinds = [constraint.kind for constraint in order.prompt.constraints]
            dropped_kinds.update(kinds)
            dropped.append({"prompt_id": order.prompt.id, "take": order.take, "reason": one, "kinds": kinds})

    if isinstance(spec, EditorSpec) and spec.answers == "other":
        kept = exchanged(kept, prompts)

    rows = kinds_table(drafts, kept, prompts, dropped_kinds)
    write_jsonl(directory / "samples.jsonl", drafts)
    write_jsonl(directory / "demonstrations.jsonl", kept)
    write_jsonl(directory / "dropped.jsonl", dropped)
    write_whole(directory / "kinds.csv", kinds_csv(rows))
    print_kinds(rows)
    outputs = {
        "num_prompts": len(prompts),
        "num_orders": len(todo),
        "num_demonstrations": len(kept),
        "kept_share": round(len(kept) / len(todo), 4),
        "enough_kept": len(kept) >= LEAST_KEPT_SHARE * len(todo),
        "dropped": len(dropped),
        "edited_share": _share(kept, lambda d: bool(d.edits)),
        "edits": dict(Counter(edit for d in kept for edit in d.edits)),
        "base_prompt_strict": _share(drafts, lambda d: d.num_followed == len(d.followed)),
        "truncated_share_base": _share(drafts, lambda d: d.truncated),
        "truncated_share_demonstrations": _share(kept, lambda d: d.truncated),
        "tokens_generated": sum(one.num_tokens for one in drafts) if spec.drafts == "model" else 0,
        "drafting_seconds": round(drafting_seconds, 3),
    } | facts
    write_manifest(directory, config=config, outputs=outputs, seconds=time.monotonic() - started)
    print(
        f"teacher: {len(kept)} of {len(todo)} demonstrations kept, {outputs['edited_share']:.0%} edited; "
        f"cut: {outputs['truncated_share_base']:.0%} of drafts, "
        f"{outputs['truncated_share_demonstrations']:.0%} of demonstrations",
        flush=True,
    )
    if not outputs["enough_kept"]:
        print(
            f"warning: only {outputs['kept_share']:.0%} of the demonstrations could be made (wanted: at least "
            f"{LEAST_KEPT_SHARE:.0%}); dropped.jsonl says which kinds failed",
            flush=True,
        )


if __name__ == "__main__":
    run_stage(
        main, "Make the expert's demonstrations.", inputs=("model", "data"),
        parsed={"machine": MachineSpec.model_validate_json, "access": json.loads},
    )  # fmt: skip
