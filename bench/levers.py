"""What each lever of the update's speed is worth: `python -m bench.levers [--output FILE]`, about 8 minutes on 2 cores.

One batch of a GRPO step (every group kept, answers of one length and random words) is updated on again and again, the
learning rate 0, so that every update computes the same. The update as it is and with one lever taken back or added take
turns; printed are seconds, the ratio to the update as it is by turn, by how much the gradient's norm differs, and the
share of the processor's limit (`bench.limit`, measured in every turn) that the update as it is reaches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.compare import reached_share
from bench.turns import open_sides
from bench.work import Work, make_work

WARMUPS = 2
SIZES = {"prompts": 8, "rollouts": 8, "new_tokens": 96}


@dataclass(frozen=True)
class Variant:
    """An update that is not as the study's: on which side, and what it is told."""

    title: str
    side: str = "ours_update"
    changes: dict[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("as it is"),
    Variant("every answer with a prompt of its own, padded", changes={"packing": False}),
    Variant("PyTorch's fused attention kernel", changes={"products_bytes": 0}),
    Variant("micro-batches of 512 tokens", changes={"micro_batch_tokens": 512}),
    Variant("micro-batches of 1,024 tokens", changes={"micro_batch_tokens": 1024}),
    Variant("logits in blocks of 64 MiB", changes={"logits_bytes": 64 * 2**20}),
    Variant("logits computed again in the backward", changes={"kept_logits_bytes": 0}),
    Variant("each matrix casts its own input", changes={"cast_once": False}),
    Variant("malloc as glibc sets it", side="update_with_plain_malloc"),
    Variant("layers compiled", side="ours_update_compiled"),
    Variant("half of the groups flat", changes={"flat_groups": 4}),
)


def measure(work: Work, variants: Sequence[Variant], *, repetitions: int) -> list[dict[str, Any]]:
    """A row for each variant; the first one is what the others are held against."""
    took: dict[str, list[dict[str, float]]] = {variant.title: [] for variant in variants}
    errors: dict[str, str] = {}
    limits = []
    with open_sides(["limit", *sorted({variant.side for variant in variants})], work) as sides:
        for turn in range(-WARMUPS, repetitions):
            limit = sides["limit"].step()
            if turn >= 0:
                limits.append(limit)
            for variant in variants:
                if variant.title in errors:
                    continue
                step = sides[variant.side].step(**variant.changes)
                if "error" in step:
                    errors[variant.title] = step["error"]
                elif turn >= 0:
                    took[variant.title].append(step)
            print(f"turn {turn + 1} of {repetitions}" if turn >= 0 else "warm-up", flush=True)
    first = took[variants[0].title]
    rows = []
    for variant in variants:
        steps = took[variant.title]
        row: dict[str, Any] = {"title": variant.title, "error": errors.get(variant.title)}
        if steps:
            row["seconds"] = [step["step"] for step in steps]
            row["ratio"] = statistics.median(b["step"] / a["step"] for a, b in zip(first, steps, strict=True))
            row["norm"] = steps[-1]["norm"]
            row["norm_differs"] = abs(steps[-1]["norm"] / first[-1]["norm"] - 1)
        rows.append(row)
    rows[0]["share_of_limit"] = reached_share(first, limits, part="step")
    rows[0]["limits"] = [limit["flops_own"] for limit in limits]
    return rows


def main() -> None:
    """Entry point."""
    from bench.step import machine

    parser = argparse.ArgumentParser(description="Time an update with single levers taken back or added.")
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--model", help="file in config/models, instead of the scale's")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for what was found")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(options.scale, Path(folder), model=options.model, sizes=SIZES, kept=True, steps=1)
        rows = measure(work, VARIANTS, repetitions=options.repetitions)
    for row in rows:
        if row["error"]:
            print(f"{row['title']}: does not run here: {row['error']}")
        else:
            print(
                f"{row['title']}: {statistics.median(row['seconds']):.2f} s [{min(row['seconds']):.2f}, "
                f"{max(row['seconds']):.2f}], {row['ratio']:.2f} x, norm differs by {row['norm_differs']:.1e}"
            )
    print(f"{rows[0]['title']}: {rows[0]['share_of_limit']:.0%} of the processor's limit")
    if options.output:
        found = {"machine": machine(), "work": work.described(), "rows": rows}
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
