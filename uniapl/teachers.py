"""The expert's demonstrations: best of n drafts, edited until every verifier passes.

Paper: answers of Qwen3-235B-A22B-Instruct-2507. At laptop scale an editor stands in: n samples of the base model, the
best one taken (`ranked`), then edits per constraint kind (`constraints.edits`). Each kept demonstration is verified;
what cannot be mended is dropped and counted. Prompts of the discriminator get two takes from independent drafts.
Held-out prompts get demonstrations for comparing distributions only; nothing is ever trained on them.
`python -m uniapl.teachers DIR --model MODELDIR --data DATADIR`
"""

from __future__ import annotations

import csv
import functools
import io
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from uniapl import chat, models
from uniapl.config import DataSpec, MachineSpec, SamplerSpec, TeacherSpec
from uniapl.constraints import verify
from uniapl.constraints.edits import mend
from uniapl.data import discriminator_prompts, discriminator_test_prompts, policy_prompts, read_prompts
from uniapl.entry import run_stage
from uniapl.provenance import write_manifest, write_whole
from uniapl.records import Demonstration, Prompt, write_jsonl
from uniapl.sampler import make_sampler
from uniapl.seeding import stream, stream_seed

# DEVIATION: teacher: an editor over the base model's own drafts instead of a 235B model.
LEAST_KEPT_SHARE = 0.9  # below it the stage warns: prompts and editor do not fit each other
DRAFTS_PER_CALL = 512  # requests handed to the engine at once; a progress line follows each
CANNED = (
    "The morning light fell on the quiet street.", "Nobody knew where the path would lead.",
    "Water finds its own way.", "A good plan begins with a clear list.", "She wrote a letter to an old friend.",
    "The shop on the corner opens at nine.", "We waited for the rain to stop.",
    "Fresh bread smells best early in the day.", "He kept a small box of old coins.",
    "The garden needs sun, water and time.", "Most people forget the simple things.",
    "Their boat came back before night.", "It was a long road, but the view was worth it.",
    "The train left without a sound.", "Birds sing louder in spring.", "You can read the map in two ways.",
    "The old clock in the hall still works.", "Cats sleep for most of the day.",
    "They built the house with their own hands.", "A warm soup helps on a cold evening.",
    "The answer was in the last page.", "Some stories are better told slowly.", "I would start with the first step.",
    "The river is wide and calm here.", "Nothing grows without some patience.",
    "The music stopped, and everyone looked up.", "Her coat was blue and green.", "Every town has a place like this.",
    "The wind moved the leaves for hours.", "A short walk clears the head.", "What would you do in their place?",
    "The light went out in the kitchen.", "Good tools make the work easy.", "It rained, so we stayed at home.",
    "Old roads often follow rivers.", "There is more than one way to learn.",
)  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """One raw answer of the base model (or canned text) with its verdict."""

    prompt_id: str
    split: str
    take: int
    index: int
    text: str
    num_tokens: int
    truncated: bool
    status: str = "ok"
    followed: tuple[bool | None, ...] = ()

    @property
    def num_followed(self) -> int:
        return sum(one is True for one in self.followed)


@dataclass(frozen=True)
class Order:
    """One demonstration to make."""

    prompt: Prompt
    take: int


def orders(prompts: Sequence[Prompt], heldout: Sequence[Prompt], spec: DataSpec) -> list[Order]:
    """All demonstrations to make: take 0 of policy and held-out prompts, takes 0 and 1 of the discriminator's."""
    judged = [*discriminator_prompts(prompts, spec), *discriminator_test_prompts(prompts, spec)]
    single = [Order(prompt, 0) for prompt in (*policy_prompts(prompts, spec), *heldout)]
    return single + [Order(prompt, take) for prompt in judged for take in (0, 1)]


def canned_drafts(
    todo: Sequence[Order], spec: TeacherSpec, *, max_tokens: int, encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> list[Draft]:  # fmt: skip
    """Drafts of a few canned sentences each, cut at `max_tokens` like sampled ones. `encode` adds the end token."""
    drafts = []
    for order in todo:
        for index in range(spec.num_samples):
            rng = stream(spec.seed, "canned", order.take, order.prompt.id, index)
            ids = encode(" ".join(rng.sample(CANNED, rng.randint(1, 4))))
            truncated = len(ids) > max_tokens
            text = decode(ids[:max_tokens])
            identity = (order.prompt.id, order.prompt.split, order.take, index)
            drafts.append(Draft(*identity, text, min(len(ids), max_tokens), truncated))
    return drafts


def sampled_drafts(
    todo: Sequence[Order], spec: TeacherSpec, *, sampler_spec: SamplerSpec, machine: MachineSpec, compute: str,
    weights: Path, max_tokens: int,
) -> list[Draft]:  # fmt: skip
    """num_samples drafts of the base model per order; each has a seed of its own.

    On CPU two engines in processes with half of the threads each share the orders: faster than one with all of them.
    """
    sample = functools.partial(
        _sample_share, spec=spec, sampler_spec=sampler_spec, machine=machine, compute=compute, weights=weights,
        max_tokens=max_tokens,
    )  # fmt: skip
    elsewhere = torch.cuda.is_available() or sampler_spec.kind == "server"
    if elsewhere or torch.get_num_threads() == 1 or len(todo) < 2:
        return sample(todo, num_threads=torch.get_num_threads(), name="drafts")
    half, threads = (len(todo) + 1) // 2, torch.get_num_threads()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        first = pool.submit(sample, todo[:half], num_threads=(threads + 1) // 2, name="drafts, first half")
        second = pool.submit(sample, todo[half:], num_threads=threads // 2, name="drafts, second half")
        return first.result() + second.result()


def _sample_share(
    todo: Sequence[Order], *, spec: TeacherSpec, sampler_spec: SamplerSpec, machine: MachineSpec, compute: str,
    weights: Path, max_tokens: int, num_threads: int, name: str,
) -> list[Draft]:  # fmt: skip
    """All drafts of some orders, by one engine."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    torch.set_num_threads(num_threads)
    tokenizer = models.load_tokenizer(weights)
    requests = [(order, index) for order in todo for index in range(spec.num_samples)]
    sampler = make_sampler(sampler_spec, weights, dtype=compute, machine=machine)
    drafts: list[Draft] = []
    started, num_tokens = time.monotonic(), 0
    try:
        for start in range(0, len(requests), DRAFTS_PER_CALL):
            chunk = requests[start : start + DRAFTS_PER_CALL]
            samples = sampler.generate(
                [chat.prompt_ids(tokenizer, order.prompt.text) for order, _ in chunk],
                seeds=[stream_seed(spec.seed, "teacher", order.take, order.prompt.id, index) for order, index in chunk],
                max_new_tokens=max_tokens,
                temperature=spec.temperature,
            )
            for (order, index), sample in zip(chunk, samples, strict=True):
                num_tokens += len(sample.token_ids)
                text = chat.completion_text(tokenizer, sample.token_ids)
                cut = sample.finish_reason == "length"
                identity = (order.prompt.id, order.prompt.split, order.take, index)
                drafts.append(Draft(*identity, text, len(sample.token_ids), cut))
            seconds = time.monotonic() - started
            eta = seconds / len(drafts) * (len(requests) - len(drafts))
            rate = num_tokens / seconds
            print(f"{name}: {len(drafts)}/{len(requests)}, {rate:.0f} tokens/s, {eta:.0f} s left", flush=True)
    finally:
        sampler.close()
    return drafts


def judged(drafts: Sequence[Draft], prompts: dict[str, Prompt]) -> list[Draft]:
    """The drafts with the verifiers' verdicts."""
    done = []
    for draft in drafts:
        verdict = verify(prompts[draft.prompt_id].constraints, draft.text)
        done.append(Draft(**(vars(draft) | {"status": verdict.status, "followed": verdict.followed})))
    return done


def ranked(drafts: Sequence[Draft]) -> list[Draft]:
    """Best first: most constraints followed, not cut, closest to the median length in tokens, first drawn."""
    median = statistics.median(draft.num_tokens for draft in drafts)
    return sorted(drafts, key=lambda d: (-d.num_followed, d.truncated, abs(d.num_tokens - median), d.index))


def demonstrate(
    order: Order, drafts: Sequence[Draft], *, seed: int, max_tokens: int, count_tokens: Callable[[str], int]
) -> Demonstration | str:
    """The best draft that can be mended as a verified demonstration, or the reason why there is none."""
    unjudged = next((draft.status for draft in drafts if draft.status != "ok"), None)
    if unjudged is not None:
        return unjudged
    prompt = order.prompt
    for draft in ranked(drafts):
        rng = stream(seed, "mend", order.take, prompt.id, draft.index)
        mended = mend(
            prompt.constraints, draft.text.strip(), rng=rng, max_tokens=max_tokens, count_tokens=count_tokens,
            topic=prompt.topic,
        )  # fmt: skip
        if mended is None:
            continue
        verdict = verify(prompt.constraints, mended.text)
        if verdict.passed:
            return Demonstration(
                prompt_id=prompt.id,
                split=prompt.split,
                take=order.take,
                text=mended.text,
                original=draft.text,
                edits=mended.edits,
                followed=tuple(one is True for one in verdict.followed),
                num_tokens=count_tokens(mended.text),
                truncated=draft.truncated and not mended.edits,
            )
    return f"no draft of {len(drafts)} could be mended"


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


def _print_kinds(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("kind", "group", "drafts", "base", "demonstrations", "teacher", "dropped", title="Constraint kinds")
    for row in rows:
        shares = [f"{row[key]:.0%}" if row[key] is not None else "-" for key in ("base_accuracy", "teacher_accuracy")]
        counts = [str(row[key]) for key in ("num_drafts", "num_demonstrations", "num_dropped")]
        table.add_row(row["kind"], row["group"], counts[0], shares[0], counts[1], shares[1], counts[2])
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _share(records: Sequence[Any], holds: Callable[[Any], bool]) -> float:
    return round(sum(map(holds, records)) / len(records), 4) if records else 0.0


def main(
    directory: Path, config: dict[str, Any], *, model: Path, data: Path, machine: MachineSpec | None = None
) -> None:
    """Draw drafts, make demonstrations and write the directory."""
    started = time.monotonic()
    spec, data_spec = TeacherSpec(**config["teacher"]), DataSpec(**config["data"])
    todo = orders(read_prompts(data / "train.jsonl"), read_prompts(data / "heldout.jsonl"), data_spec)
    prompts = {order.prompt.id: order.prompt for order in todo}
    weights, max_tokens = models.weights_directory(model), data_spec.max_new_tokens
    tokenizer = models.load_tokenizer(weights)

    def encode(text: str) -> list[int]:
        return chat.completion_ids(tokenizer, text)

    if spec.drafts == "canned":
        raw = canned_drafts(
            todo, spec, max_tokens=max_tokens, encode=encode, decode=lambda ids: chat.completion_text(tokenizer, ids)
        )
    else:
        engine = SamplerSpec(**config["sampler"])
        raw = sampled_drafts(
            todo,
            spec,
            sampler_spec=engine,
            machine=machine or MachineSpec.model_validate({}),
            compute=config["compute"],
            weights=weights,
            max_tokens=max_tokens,
        )
    drafting_seconds = time.monotonic() - started
    drafts = judged(raw, prompts)
    drafts_of: dict[tuple[str, int], list[Draft]] = defaultdict(list)
    for draft in drafts:
        drafts_of[draft.prompt_id, draft.take].append(draft)

    kept: list[Demonstration] = []
    dropped: list[dict[str, Any]] = []
    dropped_kinds: Counter[str] = Counter()
    for order in todo:
        made = demonstrate(
            order, drafts_of[order.prompt.id, order.take], seed=spec.seed, max_tokens=max_tokens,
            count_tokens=lambda text: len(encode(text)),
        )  # fmt: skip
        if isinstance(made, Demonstration):
            kept.append(made)
        else:
            kinds = [constraint.kind for constraint in order.prompt.constraints]
            dropped_kinds.update(kinds)
            dropped.append({"prompt_id": order.prompt.id, "take": order.take, "reason": made, "kinds": kinds})

    rows = kinds_table(drafts, kept, prompts, dropped_kinds)
    write_jsonl(directory / "samples.jsonl", drafts)
    write_jsonl(directory / "demonstrations.jsonl", kept)
    write_jsonl(directory / "dropped.jsonl", dropped)
    write_whole(directory / "kinds.csv", _csv(rows))
    _print_kinds(rows)
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
        "tokens_generated": sum(draft.num_tokens for draft in drafts) if spec.drafts == "model" else 0,
        "drafting_seconds": round(drafting_seconds, 3),
    }
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
        parsed={"machine": MachineSpec.model_validate_json},
    )  # fmt: skip
